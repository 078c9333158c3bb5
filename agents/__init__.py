"""Agents: stateless pure functions that compose losses, networks and optax optimisers.

Each agent is a module with `make(...)`, which binds the static parts into an `Agent(init, act,
update)`.
"""

from bellmax.agents import (
    conversations,
    decoders,
    duels,
    followers,
    judges,
    language,
    mtpo,
    nash,
    networks,
    opponents,
    optimizers,
    preference,
    sampling,
    supervised,
    tabular,
)
from bellmax.agents.agent import (
    Agent,
    DuelBatch,
    Metrics,
    Params,
    PreferenceBatch,
    PromptBatch,
    SequenceBatch,
    SupervisedBatch,
)

__all__ = [
    "Agent",
    "DuelBatch",
    "Metrics",
    "Params",
    "PreferenceBatch",
    "PromptBatch",
    "SequenceBatch",
    "SupervisedBatch",
    "conversations",
    "decoders",
    "duels",
    "followers",
    "judges",
    "language",
    "mtpo",
    "nash",
    "networks",
    "opponents",
    "optimizers",
    "preference",
    "sampling",
    "supervised",
    "tabular",
]
