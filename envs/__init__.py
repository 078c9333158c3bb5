"""Environments and generators: pure functions whose laws are known."""

from bellmax.envs import (
    chains,
    cyclic_bench,
    dialogue,
    dialogue_exact,
    gold_bench,
    gridworlds,
    horizon_chains,
    maze,
    preference_bandit,
    preference_games,
    preference_mdp,
    tabular,
    wrappers,
)
from bellmax.envs.environment import ArraySpec, DiscreteSpec, Environment
from bellmax.envs.preference_games import PreferenceGame
from bellmax.envs.preference_mdp import PreferenceMDP
from bellmax.envs.tabular import TabularMDP
from bellmax.envs.types import TimeStep

__all__ = [
    "ArraySpec",
    "DiscreteSpec",
    "Environment",
    "PreferenceGame",
    "PreferenceMDP",
    "TabularMDP",
    "TimeStep",
    "chains",
    "cyclic_bench",
    "dialogue",
    "dialogue_exact",
    "gold_bench",
    "gridworlds",
    "horizon_chains",
    "maze",
    "preference_bandit",
    "preference_games",
    "preference_mdp",
    "tabular",
    "wrappers",
]
