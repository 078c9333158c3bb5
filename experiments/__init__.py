"""Binaries, and what they share: files, devices, clocks, terminals."""
