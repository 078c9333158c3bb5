"""The keys of a `control` run as frozen dataclasses."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bellmax.experiments import checks, errors
from bellmax.experiments import config as config_lib
from bellmax.experiments.optimizers import OptimizerConfig

LAWS = ("categorical", "quantile")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The keys of `config.model`; see `agents.networks.value.ValueNetworkConfig`, and below.

    Attributes:
      law: what the outputs are, one of `LAWS`.
      num_outputs: atoms, or quantiles.
      v_min: the least atom; quantiles have no bounds.
      v_max: the greatest.
    """

    hidden_sizes: tuple[int, ...]
    conv_channels: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    observation_scale: float
    dueling: bool
    noisy: bool
    law: str
    num_outputs: int
    v_min: float
    v_max: float


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig:
    """The keys of `config.data`.

    Attributes:
      source: a key of `control_methods.SOURCES`.
      name: the environment's name there.
      sticky_actions: probability that an action is the last one again, in [0, 1).
      reward_clip: rewards are learnt from after clipping to this distance from 0, and reported as
        they are; 0 for no clipping.
    """

    source: str
    name: str
    sticky_actions: float
    reward_clip: float


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The keys of `config.loss`; see `agents.distributional_q.make`, and below.

    Attributes:
      names: keys of `control_methods.TRACES`, each trained in turn from the same start.
      trace_decays: lambda of each.
      mixings: alpha of each, the weight of the greedy policy in the target policy.
      kind: see `losses.categorical_loss`.
      kappa: see `losses.quantile_huber_loss`.
      target_every: updates between renewals of the target network.
    """

    names: tuple[str, ...]
    trace_decays: tuple[float, ...]
    mixings: tuple[float, ...]
    discount: float
    kind: str
    kappa: float
    double: bool
    target_every: int


@dataclasses.dataclass(frozen=True)
class SeedsConfig(abc.ABC):
    """The keys of `config.train` that every flow has.

    Attributes:
      num_seeds: networks that are trained side by side, with environments of their own.
      num_env_steps: environment steps of each seed, over its environments.
      num_environments: environments of a seed.
      evaluation_episodes: greedy episodes of an evaluation, of each seed.
      evaluation_steps: steps after which such an episode counts as it is.
      log_every: steps of the loop whose metrics are averaged into one row.
      evaluate_every: steps of the loop between evaluations.
      checkpoint_every: steps of the loop between checkpoints, which hold the replay.
      keep_checkpoints: checkpoints that are kept.
      mesh_data: devices that seeds are spread over; -1 for all that are left.
      mesh_fsdp: likewise.
      mesh_tensor: likewise; seeds are not spread over it.
    """

    num_seeds: int
    num_env_steps: int
    num_environments: int
    evaluation_episodes: int
    evaluation_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    mesh_data: int
    mesh_fsdp: int
    mesh_tensor: int

    @property
    @abc.abstractmethod
    def rounds_per_step(self) -> int:
        """Updates from the replay, or rollouts with theirs, in one step of the loop."""

    @property
    @abc.abstractmethod
    def env_steps_per_round(self) -> int:
        """Environment steps of a seed in a round."""

    @property
    def env_steps_per_step(self) -> int:
        """Environment steps of a seed in one step of the loop."""
        return self.env_steps_per_round * self.rounds_per_step

    @property
    def num_steps(self) -> int:
        """Steps of the loop."""
        return -(-self.num_env_steps // self.env_steps_per_step)


@dataclasses.dataclass(frozen=True)
class ReplayConfig(SeedsConfig):
    """The keys of `config.train` that flows through a replay share.

    Steps of the loop are windows of `updates_per_step` updates.

    Attributes:
      env_steps_per_update: environment steps of a seed between updates, a multiple of
        `num_environments`.
      updates_per_step: updates in one step of the loop, which is one program.
      batch_size: sequences of an update.
      replay_size: transitions that a seed keeps.
      learning_starts: environment steps of a seed before its first update.
    """

    env_steps_per_update: int
    updates_per_step: int
    batch_size: int
    replay_size: int
    learning_starts: int

    @property
    def rounds_per_step(self) -> int:
        """Updates in one step of the loop."""
        return self.updates_per_step

    @property
    def env_steps_per_round(self) -> int:
        """Environment steps of a seed between updates."""
        return self.env_steps_per_update

    @property
    def shortest_replay(self) -> int:
        """Steps of an environment that a sample takes: a transition, and what is seen after it."""
        return 2

    @property
    def steps_before_learning(self) -> int:
        """Steps of every environment before the first update."""
        started = -(-self.learning_starts // self.num_environments)
        return max(self.shortest_replay, started)

    @property
    def num_updates(self) -> int:
        """Updates that are done: those that fall due before learning starts are left out."""
        waited = -(-self.steps_before_learning * self.num_environments // self.env_steps_per_update)
        return self.num_steps * self.updates_per_step - (waited - 1)


@dataclasses.dataclass(frozen=True)
class TrainConfig(ReplayConfig):
    """The keys of `config.train`; see `ReplayConfig`, and below.

    Attributes:
      sequence_length: transitions of a sequence.
      priority_exponent: 0 for uniform replay.
      importance_exponent: by which sequences are weighed where there are priorities.
      epsilon_start: exploration at the first update.
      epsilon_end: exploration after `epsilon_env_steps`.
      epsilon_env_steps: environment steps, counted from the first update, of the linear decline.
    """

    sequence_length: int
    priority_exponent: float
    importance_exponent: float
    epsilon_start: float
    epsilon_end: float
    epsilon_env_steps: int

    @property
    def shortest_replay(self) -> int:
        """Steps of an environment that a sample takes."""
        return self.sequence_length + 1


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """A whole run."""

    seed: int
    model: ModelConfig
    optimizer: OptimizerConfig
    data: EnvironmentConfig
    loss: LossConfig
    train: TrainConfig


def check(config: ControlConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a count is below 1, a number is out of range, a name is unknown, or methods and
        their numbers do not pair up.
    """
    train, loss, model = config.train, config.loss, config.model
    checks.at_least_one("train", train)
    checks.at_least_one("loss", loss)
    check_replay(train)
    _check_shares(config)
    if model.law not in LAWS:
        raise errors.UserError(
            f"config.model.law must be one of {', '.join(LAWS)}, got {model.law!r}."
            f"{config_lib.did_you_mean(model.law, LAWS)}"
        )
    if model.law == "categorical" and (model.num_outputs < 2 or not model.v_min < model.v_max):
        raise errors.UserError(
            "config.model must have num_outputs of at least 2 and v_min below v_max, got "
            f"{model.num_outputs}, {model.v_min} and {model.v_max}."
        )
    check_names(loss.names, trace_decays=loss.trace_decays, mixings=loss.mixings)


def check_replay(train: ReplayConfig) -> None:
    """Refuses sizes of a replay that do not fit each other.

    Args:
      train: the group of keys, of counts that are at least 1.

    Raises:
      UserError: the replay is too small, or learning would never start.
    """
    if train.env_steps_per_update % train.num_environments:
        raise errors.UserError(
            "config.train.env_steps_per_update must be a multiple of config.train.num_environments "
            f"({train.num_environments}), got {train.env_steps_per_update}."
        )
    needed = train.steps_before_learning * train.num_environments
    if train.replay_size < needed:
        raise errors.UserError(
            "config.train.replay_size must hold a sequence of every environment and what comes "
            f"before learning starts, {needed}, got {train.replay_size}."
        )
    if train.num_updates < 1:
        raise errors.UserError(
            f"config.train.num_env_steps must be above the {needed} environment steps before "
            f"learning starts, got {train.num_env_steps}."
        )


def check_names(names: Sequence[str], **of_each: Sequence[Any]) -> None:
    """Refuses methods that are not distinct, or numbers that do not pair up with them.

    Args:
      names: the methods.
      **of_each: keys of `config.loss` that hold one value a method.

    Raises:
      UserError: they do not fit.
    """
    if not names or len(set(names)) != len(names):
        raise errors.UserError(f"config.loss.names must hold distinct methods, got {list(names)}.")
    for key, values in of_each.items():
        if len(values) != len(names):
            raise errors.UserError(
                f"config.loss.{key} must hold one value for each of config.loss.names; got "
                f"{len(values)} for {list(names)}."
            )


def check_shares(shares: Mapping[str, Sequence[float]]) -> None:
    """Refuses numbers outside [0, 1].

    Args:
      shares: numbers by key, without the leading `config.`.

    Raises:
      UserError: there is one.
    """
    for key, values in shares.items():
        for value in values:
            if not 0 <= value <= 1:
                raise errors.UserError(f"config.{key} must be in [0, 1], got {value}.")


def _check_shares(config: ControlConfig) -> None:
    """Refuses probabilities and weights outside [0, 1]."""
    loss, train = config.loss, config.train
    keys = ("epsilon_start", "epsilon_end", "priority_exponent", "importance_exponent")
    shares = {f"train.{key}": (getattr(train, key),) for key in keys}
    shares |= {"loss.trace_decays": loss.trace_decays, "loss.mixings": loss.mixings}
    check_shares(shares)
    check_environment(config.data)


def check_environment(data: EnvironmentConfig) -> None:
    """Refuses chances out of range.

    Args:
      data: the group of keys.

    Raises:
      UserError: one is.
    """
    if not 0 <= data.sticky_actions < 1:
        raise errors.UserError(
            f"config.data.sticky_actions must be in [0, 1), got {data.sticky_actions}."
        )
