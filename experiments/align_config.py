"""The keys of an `align` run as frozen dataclasses."""

import dataclasses

from bellmax.experiments import errors, language_config
from bellmax.experiments.data import sources
from bellmax.experiments.language_config import ModelConfig, StagesConfig
from bellmax.experiments.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The keys of `config.loss`; see `preference_losses.LossOptions`, and below.

    Attributes:
      names: losses, each trained in turn from the same warm start.
      betas: one for each name.
    """

    names: tuple[str, ...]
    betas: tuple[float, ...]
    label_smoothing: float
    sft_weight: float


@dataclasses.dataclass(frozen=True)
class TrainConfig(StagesConfig):
    """The keys of `config.train`; see `language_config.StagesConfig`, and below.

    Attributes:
      live_reference: evaluate the reference at every step, instead of once before them.
    """

    live_reference: bool


@dataclasses.dataclass(frozen=True)
class AlignConfig:
    """A whole run."""

    seed: int
    model: ModelConfig
    optimizer: OptimizerConfig
    data: sources.DataConfig
    loss: LossConfig
    train: TrainConfig


def check(config: AlignConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a count is below 1, a number out of range, or losses and betas do not pair up.
    """
    language_config.check_stages(config.seed, config.model, config.train)
    names, betas = config.loss.names, config.loss.betas
    if not names or len(names) != len(betas) or len(set(names)) != len(names):
        raise errors.UserError(
            f"config.loss.betas must hold one value for each of config.loss.names, which are "
            f"distinct; got {len(betas)} betas for {list(names)}."
        )
    if not 0 <= config.loss.label_smoothing < 0.5:
        raise errors.UserError(
            "config.loss.label_smoothing must be at least 0 and below 0.5, got "
            f"{config.loss.label_smoothing}."
        )
