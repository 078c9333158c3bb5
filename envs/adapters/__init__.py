"""Environments of other libraries as ours; a library is imported when one of its is asked for."""

from bellmax.envs.adapters.gymnax import make as make_gymnax

__all__ = ["make_gymnax"]
