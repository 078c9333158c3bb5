"""Keys that all binaries of language policies share, and the network that is made of them."""

import dataclasses
import functools

from bellmax.agents import language, networks
from bellmax.experiments import checks, errors
from bellmax.experiments import config as config_lib


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The keys of `config.model`; see `networks.TransformerConfig`, and below.

    Attributes:
      checkpoint: folder of a Llama, Mistral or Qwen2 model in Hugging Face's layout, which the
        policy starts from; its shape takes the place of the keys that say one (layers, heads,
        widths, embeddings, softcap). Empty for a network of these keys from scratch.
      logit_softcap: cap of the logits; 0 for none.
      chunk_size: tokens per chunk of the head; 0 holds all logits at once.
    """

    checkpoint: str
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
class StagesConfig:
    """The keys of `config.train` that every binary of language policies has.

    Attributes:
      warm_start_steps: steps of supervised training, which gives the reference; 0 for the
        checkpoint as it is.
      warm_start_learning_rate: its peak.
      warm_start_on: what it imitates, `chosen` completions or `both` of a pair.
      num_steps: steps of each stage after it.
      batch_size: rows of a batch, over all devices.
      accumulate_steps: parts of a batch that are learnt from one after another; the step is that of
        the whole, in the memory of a part.
      log_every: steps whose metrics are averaged into one row.
      evaluate_every: steps between evaluations.
      checkpoint_every: steps between checkpoints.
      keep_checkpoints: checkpoints that are kept.
      mesh_data: devices along this axis of the mesh; -1 for all that are left.
      mesh_fsdp: likewise.
      mesh_tensor: likewise.
    """

    warm_start_steps: int
    warm_start_learning_rate: float
    warm_start_on: str
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


def check_stages(seed: int, model: ModelConfig, train: StagesConfig) -> None:
    """Refuses counts that no stage can have.

    Args:
      seed: the run's seed.
      model: the model group.
      train: the train group.

    Raises:
      UserError: a count is below 1, or the seed is negative.
    """
    check_warm_start(model, train.warm_start_steps)
    names = (
        "num_steps",
        "batch_size",
        "accumulate_steps",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
    )
    checks.at_least_one("train", train, names)
    checks.parts("train.batch_size", train.batch_size, train.accumulate_steps)
    checks.seed(seed)


def check_warm_start(model: ModelConfig, num_steps: int) -> None:
    """Refuses a policy that knows nothing: neither a checkpoint's nor one that imitates.

    Args:
      model: the model group.
      num_steps: `config.train.warm_start_steps`.

    Raises:
      UserError: there are no such steps, or none and no checkpoint.
    """
    least = 0 if model.checkpoint else 1
    if num_steps < least:
        raise errors.UserError(
            f"config.train.warm_start_steps must be at least {least} "
            f"{'with' if model.checkpoint else 'without'} config.model.checkpoint, got {num_steps}."
        )


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
    shape = {field.name for field in dataclasses.fields(networks.TransformerConfig)}
    # A binary may have keys of its own in the group.
    keys = {key: value for key, value in dataclasses.asdict(config).items() if key in shape}
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
