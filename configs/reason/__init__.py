"""Configurations of the reason binary."""
