"""Agents: stateless pure functions that compose losses, networks and optax optimisers.

Each agent is a module with `make(...)`, which binds the static parts into an `Agent(init, act,
update)`.
"""

from bellmax.agents import (
    decoders,
    language,
    networks,
    optimizers,
    preference,
    sampling,
    supervised,
)
from bellmax.agents.agent import Agent, Metrics, Params, PreferenceBatch, SupervisedBatch

__all__ = [
    "Agent",
    "Metrics",
    "Params",
    "PreferenceBatch",
    "SupervisedBatch",
    "decoders",
    "language",
    "networks",
    "optimizers",
    "preference",
    "sampling",
    "supervised",
]
