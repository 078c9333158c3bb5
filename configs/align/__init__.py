"""Configurations of the align binary."""
