"""Configs of the `horizon` binary."""
