"""Configs of the `control` binary."""
