"""The keys of a run in the dialogue game as frozen dataclasses."""

import dataclasses

from bellmax.envs import dialogue
from bellmax.envs.dialogue import DialogueGame
from bellmax.experiments import checks, errors, language_config, optimizers
from bellmax.experiments import config as config_lib

SOURCE = "dialogue"


@dataclasses.dataclass(frozen=True)
class GameConfig:
    """The keys of `config.data`; see `envs.dialogue.make`, and below.

    Attributes:
      source: "dialogue", which tells this flow of data from those of prompts.
    """

    source: str
    num_types: int
    num_turns: int
    utterance_length: int
    num_parts: int
    score: float
    turn_score: float
    cyclic: float


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The keys of `config.loss`; see `agents.mtpo.make`, and below.

    Attributes:
      methods: keys of `METHODS`, each trained in turn from the same start.
      mixture: weight on the reference of what `mtpo_mixture` samples from, in [0, 1].
      num_rivals: conversations that each is compared with, 1 to batch_size - 1; 1 in the paper.
    """

    methods: tuple[str, ...]
    alpha: float
    trace_decay: float
    mixture: float
    num_rivals: int
    value_coefficient: float
    value_gradient: float
    policy_delay: int
    normalise_advantages: bool


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The keys of `config.train`; see `language_config.StagesConfig`.

    Attributes:
      batch_size: conversations of a step, over all devices; an even number.
      accumulate_steps: as there.
    """

    num_steps: int
    batch_size: int
    accumulate_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    mesh_data: int
    mesh_fsdp: int
    mesh_tensor: int


@dataclasses.dataclass(frozen=True)
class DialogueConfig:
    """A whole run."""

    seed: int
    model: language_config.ModelConfig
    optimizer: optimizers.OptimizerConfig
    data: GameConfig
    loss: LossConfig
    train: TrainConfig


def make_game(config: GameConfig) -> DialogueGame:
    """Returns the game of a config.

    Args:
      config: the data group.

    Returns:
      The game.

    Raises:
      UserError: a key is out of range.
    """
    laws = dataclasses.asdict(config)
    laws.pop("source")
    with config_lib.user_errors("config.data"):
        return dialogue.make(**laws)


def check(config: DialogueConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a count is out of range, or there are no methods.
    """
    train, loss = config.train, config.loss
    if config.model.checkpoint:
        raise errors.UserError(
            "config.model.checkpoint must be empty for dialogues, whose words are the game's own; "
            f"got {config.model.checkpoint!r}."
        )
    keys = (
        "num_steps",
        "accumulate_steps",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
    )
    checks.at_least_one("train", train, keys)
    checks.parts("train.batch_size", train.batch_size, train.accumulate_steps)
    if train.batch_size < 2 or train.batch_size % 2:
        raise errors.UserError(
            f"config.train.batch_size must be an even number, got {train.batch_size}."
        )
    if not 1 <= loss.num_rivals < train.batch_size:
        raise errors.UserError(
            "config.loss.num_rivals must be between 1 and config.train.batch_size - 1, got "
            f"{loss.num_rivals}."
        )
    if not loss.alpha > 0:
        raise errors.UserError(f"config.loss.alpha must be positive, got {loss.alpha}.")
    if not 0 <= loss.mixture <= 1:
        raise errors.UserError(f"config.loss.mixture must be in [0, 1], got {loss.mixture}.")
    if not loss.methods or len(set(loss.methods)) != len(loss.methods):
        raise errors.UserError(
            f"config.loss.methods must hold distinct methods, got {list(loss.methods)}."
        )
