"""Environments and generators: pure functions whose laws are known."""

from bellmax.envs import gold_bench

__all__ = ["gold_bench"]
