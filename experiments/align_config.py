"""The keys of an `align` run as frozen dataclasses, and what is made of them."""

import dataclasses
import functools

from bellmax.agents import language, networks
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors
from bellmax.experiments.data import sources
from bellmax.experiments.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The keys of `config.model`; see `networks.TransformerConfig`, and below.

    Attributes:
      logit_softcap: cap of the logits; 0 for none.
      chunk_size: tokens per chunk of the head; 0 holds all logits at once.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    embed_dim: int
    mlp_dim: int
    tied_embeddings: bool
    compute_dtype: str
    logit_softcap: float
    remat: bool
    scan_layers: bool
    chunk_size: int


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
class TrainConfig:
    """The keys of `config.train`; each is described in `configs/align/base.py`."""

    warm_start_steps: int
    warm_start_learning_rate: float
    warm_start_on: str
    num_steps: int
    batch_size: int
    live_reference: bool
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    mesh_data: int
    mesh_fsdp: int
    mesh_tensor: int


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
    for group, keys in (
        (config.train, ("warm_start_steps", "num_steps", "batch_size", "log_every")),
        (config.train, ("evaluate_every", "checkpoint_every", "keep_checkpoints")),
    ):
        for key in keys:
            if getattr(group, key) < 1:
                raise errors.UserError(
                    f"config.train.{key} must be at least 1, got {getattr(group, key)}."
                )
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
    if config.seed < 0:
        raise errors.UserError(f"config.seed must be at least 0, got {config.seed}.")


def make_network(config: ModelConfig, vocab_size: int) -> networks.TransformerConfig:
    """Returns the network's shape.

    Args:
      config: the model group.
      vocab_size: tokens of the tokenizer.

    Returns:
      A checked shape.

    Raises:
      UserError: a key has a value that no network can have.
    """
    keys = dataclasses.asdict(config)
    keys.pop("chunk_size")
    keys["logit_softcap"] = keys["logit_softcap"] or None
    with config_lib.user_errors("config.model"):
        return networks.TransformerConfig(vocab_size=vocab_size, **keys)


def make_model(network: networks.TransformerConfig) -> language.LanguageModel:
    """Returns the network as the functions that agents take.

    Args:
      network: the network's shape.

    Returns:
      Functions of parameters, the shape bound.
    """
    return language.LanguageModel(
        apply=functools.partial(networks.apply, network),
        hidden_states=functools.partial(networks.hidden_states, network),
        unembedding=functools.partial(networks.unembedding, network),
        softcap=network.logit_softcap,
    )
