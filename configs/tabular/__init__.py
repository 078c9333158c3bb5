"""Configurations of the tabular binary."""
