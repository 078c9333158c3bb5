"""Data sets and pipelines."""
