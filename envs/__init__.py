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
    token_arithmetic,
    token_countdown,
    token_increasing,
    token_lock,
    token_longform,
    token_programs,
    token_tasks,
    wrappers,
)
from bellmax.envs.environment import ArraySpec, DiscreteSpec, Environment
from bellmax.envs.preference_games import PreferenceGame
from bellmax.envs.preference_mdp import PreferenceMDP
from bellmax.envs.tabular import TabularMDP
from bellmax.envs.token_longform import LongFormTask
from bellmax.envs.token_tasks import TokenProblem, TokenTask
from bellmax.envs.types import TimeStep

__all__ = [
    "ArraySpec",
    "DiscreteSpec",
    "Environment",
    "LongFormTask",
    "PreferenceGame",
    "PreferenceMDP",
    "TabularMDP",
    "TimeStep",
    "TokenProblem",
    "TokenTask",
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
    "token_arithmetic",
    "token_countdown",
    "token_increasing",
    "token_lock",
    "token_longform",
    "token_programs",
    "token_tasks",
    "wrappers",
]
