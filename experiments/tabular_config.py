"""The keys of a `tabular` run as frozen dataclasses, and what makes them a run."""

import dataclasses

import numpy as np

from bellmax.experiments import errors


@dataclasses.dataclass(frozen=True)
class GamesConfig:
    """The keys of `config.games`; each is described in `configs/tabular/base.py`."""

    names: tuple[str, ...]
    methods: tuple[str, ...]
    reference: tuple[float, ...]
    tau: float
    constant_step: float
    self_play_step: float
    gradient_step: float
    mixture: float
    meta_games: str


@dataclasses.dataclass(frozen=True)
class TreesConfig:
    """The keys of `config.trees`; each is described in `configs/tabular/base.py`."""

    names: tuple[str, ...]
    methods: tuple[str, ...]
    alpha: float
    num_actions: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The keys of `config.train`; each is described in `configs/tabular/base.py`."""

    num_steps: int
    num_points: int


@dataclasses.dataclass(frozen=True)
class TabularConfig:
    """A whole run."""

    seed: int
    games: GamesConfig
    trees: TreesConfig
    train: TrainConfig


def check(config: TabularConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: there is nothing to solve or to solve it with, or a number is out of range.
    """
    games, trees, train = config.games, config.trees, config.train
    if not games.names and not trees.names:
        raise errors.UserError(
            "config.games.names and config.trees.names are both empty: name what to solve."
        )
    for group, keys in (("games", games), ("trees", trees)):
        for key in ("names", "methods"):
            values = getattr(keys, key)
            if len(set(values)) != len(values):
                raise errors.UserError(f"config.{group}.{key} names one twice: {list(values)}.")
        if keys.names and not keys.methods:
            raise errors.UserError(f"config.{group}.methods is empty: name a method.")
    positive = {
        "games.tau": games.tau,
        "games.constant_step": games.constant_step,
        "games.self_play_step": games.self_play_step,
        "games.gradient_step": games.gradient_step,
        "trees.alpha": trees.alpha,
    }
    for key, value in positive.items():
        if not value > 0:
            raise errors.UserError(f"config.{key} must be positive, got {value}.")
    at_least = {
        "seed": (config.seed, 0),
        "train.num_steps": (train.num_steps, 10),
        "train.num_points": (train.num_points, 2),
        "trees.num_actions": (trees.num_actions, 2),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            raise errors.UserError(f"config.{key} must be at least {least}, got {value}.")
    if not 0 <= games.mixture <= 1:
        raise errors.UserError(f"config.games.mixture must be in [0, 1], got {games.mixture}.")
    if games.reference and not (
        min(games.reference) > 0 and np.isclose(sum(games.reference), 1, rtol=0, atol=1e-9)
    ):
        raise errors.UserError(
            "config.games.reference must hold positive probabilities that sum to 1, or nothing for "
            f"the uniform one; got {games.reference}."
        )


def count(key: str, name: str, text: str, least: int) -> int:
    """Returns the number behind the colon of a name such as `random:50`.

    Args:
      key: the key that holds the name.
      name: the whole name.
      text: what is behind the colon.
      least: the lowest number allowed.

    Returns:
      The number.

    Raises:
      UserError: there is none, or it is too low.
    """
    if not text.isdecimal() or int(text) < least:
        raise errors.UserError(
            f"{key} holds {name!r}: behind the colon there must be a whole number of at least "
            f"{least}."
        )
    return int(text)


def points(num_steps: int, num_points: int) -> np.ndarray:
    """Returns the steps at which policies are evaluated.

    Args:
      num_steps: last step.
      num_points: at most so many.

    Returns:
      Steps from 1 to the last, distinct, evenly spaced in their logarithm, and the powers of 10.
    """
    spaced = np.round(np.geomspace(1, num_steps, num_points)).astype(int)
    powers = 10 ** np.arange(int(np.log10(num_steps)) + 1)
    return np.unique(np.concatenate([spaced, powers, [num_steps]]))
