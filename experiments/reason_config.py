"""The keys of a `reason` run as frozen dataclasses."""

import dataclasses

from bellmax.experiments import checks, errors, language_config
from bellmax.experiments import config as config_lib
from bellmax.experiments.data import sources
from bellmax.experiments.language_config import StagesConfig
from bellmax.experiments.optimizers import OptimizerConfig

JUDGES = ("known", "pairwise", "bradley_terry")


@dataclasses.dataclass(frozen=True)
class ModelConfig(language_config.ModelConfig):
    """The keys of `config.model`; see `language_config.ModelConfig`, and below.

    Attributes:
      judge_rank: numbers of a completion that the pairwise judge compares; see `agents.judges`.
    """

    judge_rank: int


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The keys of `config.loss`; see `reason_methods.MethodOptions`, and below.

    Attributes:
      names: methods, each trained in turn from the same warm start.
      taus: one for each name.
      judge: who decides duels in training: the bench's own law (known), or a judge that is fitted
        to the pairs (pairwise, bradley_terry). The method `rlhf` always takes the reward of a
        fitted bradley_terry.
    """

    names: tuple[str, ...]
    taus: tuple[float, ...]
    judge: str
    eta: float
    mixture: float
    average_decay: float
    iteration_steps: int


@dataclasses.dataclass(frozen=True)
class TrainConfig(StagesConfig):
    """The keys of `config.train`; see `language_config.StagesConfig`, and below.

    Attributes:
      judge_steps: steps of a judge's fit.
      judge_learning_rate: its peak.
      max_new_tokens: most tokens of a sampled completion, the end token included.
      num_opponents: completions that each first completion meets, at least 1.
      num_evaluation_prompts: held-out prompts of the evaluation where it has to be sampled.
    """

    judge_steps: int
    judge_learning_rate: float
    max_new_tokens: int
    num_opponents: int
    num_evaluation_prompts: int


@dataclasses.dataclass(frozen=True)
class ReasonConfig:
    """A whole run."""

    seed: int
    model: ModelConfig
    optimizer: OptimizerConfig
    data: sources.DataConfig
    loss: LossConfig
    train: TrainConfig


def check(config: ReasonConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a count is below 1, a number out of range, a name unknown, or methods and taus do
        not pair up.
    """
    language_config.check_stages(config.seed, config.model, config.train)
    counts = (
        ("model", config.model, ("judge_rank",)),
        ("loss", config.loss, ("iteration_steps",)),
        (
            "train",
            config.train,
            ("judge_steps", "max_new_tokens", "num_opponents", "num_evaluation_prompts"),
        ),
    )
    for group, keys, names in counts:
        checks.at_least_one(group, keys, names)
    if config.train.num_evaluation_prompts < 2:
        raise errors.UserError(
            "config.train.num_evaluation_prompts must be at least 2, for a standard error, got "
            f"{config.train.num_evaluation_prompts}."
        )
    loss = config.loss
    if not loss.names or len(loss.names) != len(loss.taus):
        raise errors.UserError(
            "config.loss.taus must hold one value for each of config.loss.names; got "
            f"{len(loss.taus)} taus for {list(loss.names)}."
        )
    if len(set(loss.names)) != len(loss.names):
        raise errors.UserError(f"config.loss.names must be distinct, got {list(loss.names)}.")
    if loss.judge not in JUDGES:
        raise errors.UserError(
            f"config.loss.judge must be one of {', '.join(JUDGES)}, got {loss.judge!r}."
            f"{config_lib.did_you_mean(loss.judge, JUDGES)}"
        )
    if loss.judge == "known" and config.data.source not in sources.BENCHES:
        raise errors.UserError(
            f"config.loss.judge is 'known', which only {' and '.join(sources.BENCHES)} have; give "
            f"--config.loss.judge=pairwise for the source {config.data.source!r}."
        )
    if config.model.chunk_size:
        raise errors.UserError(
            f"config.model.chunk_size must be 0 in reason, got {config.model.chunk_size}: the "
            "sampler needs all logits of a token."
        )
