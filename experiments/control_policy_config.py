"""The keys of `control` runs that learn policies, from their own rollouts or from a replay."""

import dataclasses

from bellmax.experiments import checks, control_config, errors
from bellmax.experiments.control_config import EnvironmentConfig, ReplayConfig, SeedsConfig
from bellmax.experiments.optimizers import OptimizerConfig

ROLLOUTS, REPLAY = "rollouts", "replay"
ACTIVATIONS = ("relu", "tanh")


@dataclasses.dataclass(frozen=True)
class PolicyModelConfig:
    """The keys of `config.model`: policy and values have networks of their own.

    Attributes:
      hidden_sizes: widths of the hidden layers of each.
      activation: one of `ACTIVATIONS`.
      initial_std: standard deviation of continuous actions at the start, in units of half their
        range.
    """

    hidden_sizes: tuple[int, ...]
    activation: str
    initial_std: float


@dataclasses.dataclass(frozen=True)
class RolloutLossConfig:
    """The keys of `config.loss` of rollouts; see `agents.ppo.make` and `agents.mdpo.make`.

    Attributes:
      names: keys of `control_policies.ON_POLICY`, each trained in turn from the same start.
      epochs: passes over a rollout, of each.
      minibatches: parts of a pass, an update each, of each.
      value_clip: 0 for none.
      reward_scale: rewards are multiplied by it before they are learnt from.
    """

    names: tuple[str, ...]
    epochs: tuple[int, ...]
    minibatches: tuple[int, ...]
    discount: float
    trace_decay: float
    clip_epsilon: float
    value_coefficient: float
    value_clip: float
    entropy_coefficient: float
    normalise_advantages: bool
    reward_scale: float


@dataclasses.dataclass(frozen=True)
class RolloutTrainConfig(SeedsConfig):
    """The keys of `config.train` of rollouts.

    Attributes:
      rollout_length: steps of every environment in a rollout.
      rollouts_per_step: rollouts, with their updates, in one step of the loop.
    """

    rollout_length: int
    rollouts_per_step: int

    @property
    def rounds_per_step(self) -> int:
        """Rollouts in one step of the loop."""
        return self.rollouts_per_step

    @property
    def env_steps_per_round(self) -> int:
        """Environment steps of a seed in a rollout."""
        return self.rollout_length * self.num_environments

    @property
    def num_rollouts(self) -> int:
        """Rollouts of the whole run."""
        return self.num_steps * self.rollouts_per_step


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """A whole run on the policy's own rollouts; its `flow` is "rollouts"."""

    flow: str
    seed: int
    model: PolicyModelConfig
    optimizer: OptimizerConfig
    data: EnvironmentConfig
    loss: RolloutLossConfig
    train: RolloutTrainConfig


@dataclasses.dataclass(frozen=True)
class OffPolicyLossConfig:
    """The keys of `config.loss` of a replay; see `agents.mdpo_off_policy.make`.

    Attributes:
      names: keys of `control_policies.OFF_POLICY`, each trained in turn from the same start.
      reward_scale: rewards are multiplied by it before they are learnt from.
    """

    names: tuple[str, ...]
    discount: float
    target_decay: float
    inverse_step: float
    entropy_weight: float
    num_inner_steps: int
    output_penalty: float
    reward_scale: float


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig:
    """A whole run of a policy on a replay; its `flow` is "replay"."""

    flow: str
    seed: int
    model: PolicyModelConfig
    optimizer: OptimizerConfig
    data: EnvironmentConfig
    loss: OffPolicyLossConfig
    train: ReplayConfig


def check(config: RolloutConfig | OffPolicyConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a count is below 1, a number is out of range, or methods and their numbers do not
        pair up.
    """
    model = config.model
    checks.at_least_one("train", config.train)
    control_config.check_environment(config.data)
    if model.activation not in ACTIVATIONS:
        raise errors.UserError(
            f"config.model.activation must be one of {', '.join(ACTIVATIONS)}, got "
            f"{model.activation!r}."
        )
    if not model.initial_std > 0:
        raise errors.UserError(f"config.model.initial_std must be positive, got {model}.")
    if isinstance(config, OffPolicyConfig):
        control_config.check_replay(config.train)
        control_config.check_names(config.loss.names)
        return
    loss, train = config.loss, config.train
    control_config.check_names(loss.names, epochs=loss.epochs, minibatches=loss.minibatches)
    for key in ("epochs", "minibatches"):
        if min(getattr(loss, key)) < 1:
            raise errors.UserError(
                f"config.loss.{key} must be at least 1, got {list(getattr(loss, key))}."
            )
    for parts in loss.minibatches:
        if train.env_steps_per_round % parts:
            raise errors.UserError(
                "config.loss.minibatches must divide the steps of a rollout, "
                f"{train.env_steps_per_round}, got {parts}."
            )
