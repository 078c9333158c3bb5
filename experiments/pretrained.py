"""Policies that come from a folder in Hugging Face's layout, and go back into one.

network, start = load(config.model, tokenizer)
...
save(config.model, network, params, workdir / "policies" / "logistic")
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import safetensors

from bellmax.agents import Params, networks
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors, language_config, mesh
from bellmax.experiments.data import tokenizers

_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "config.json"
# What a folder holds besides weights belongs to the tokenizer or to sampling, but for their index.
_SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model")
_INDEX_ENDING = ".index.json"


class WithTokenizer(Protocol):
    """What a config has that names a tokenizer."""

    @property
    def model(self) -> language_config.ModelConfig:
        """The network."""
        ...

    @property
    def data(self) -> Any:
        """With `tokenizer` and `end_token`."""
        ...


def make_tokenizer(config: WithTokenizer) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a run.

    Args:
      config: the run.

    Returns:
      That of `config.data.tokenizer`, or else the checkpoint's, or else bytes.

    Raises:
      UserError: there is no such tokenizer, or it has no such end token.
    """
    name, end_token = config.data.tokenizer, config.data.end_token
    checkpoint = config.model.checkpoint
    if not name:
        name = str(pathlib.Path(checkpoint) / _TOKENIZER_FILE) if checkpoint else "byte"
        if checkpoint and not pathlib.Path(name).is_file():
            raise errors.UserError(
                f"config.model.checkpoint {checkpoint!r} has no {_TOKENIZER_FILE}: give one with "
                "--config.data.tokenizer=..."
            )
    if not end_token:
        return tokenizers.make_tokenizer(name)
    if name == "byte" or name.startswith("characters:"):
        raise errors.UserError(
            f"config.data.end_token must be empty for the tokenizer {name!r}, which has an end "
            f"token of its own; got {end_token!r}."
        )
    return tokenizers.HuggingFaceTokenizer(name, end_token)


def network_shape(keys: language_config.ModelConfig, vocab_size: int) -> networks.TransformerConfig:
    """Returns the network's shape, without reading any weight.

    Args:
      keys: the model group.
      vocab_size: tokens of the run's tokenizer.

    Returns:
      The checkpoint's, or else that of the keys.

    Raises:
      UserError: a key or the checkpoint's `config.json` is wrong, or its vocabulary is too small.
    """
    if not keys.checkpoint:
        return language_config.make_network(keys, vocab_size)
    with _reading(keys.checkpoint):
        network = networks.load_config(keys.checkpoint, **_computing(keys))
    _check_vocabulary(keys.checkpoint, network, vocab_size)
    return network


def load(
    keys: language_config.ModelConfig, vocab_size: int
) -> tuple[networks.TransformerConfig, Params | None]:
    """Returns the network's shape, and what its parameters start from.

    Args:
      keys: the model group.
      vocab_size: tokens of the run's tokenizer.

    Returns:
      The shape, as `network_shape`, and the checkpoint's parameters on the host; None without one.

    Raises:
      UserError: as `network_shape`, or a tensor is missing or has another shape.
    """
    network = network_shape(keys, vocab_size)
    if not keys.checkpoint:
        return network, None
    with _reading(keys.checkpoint):
        return networks.load_pretrained(keys.checkpoint, **_computing(keys))


def save(
    keys: language_config.ModelConfig,
    network: networks.TransformerConfig,
    params: Params,
    folder: pathlib.Path,
) -> None:
    """Writes a policy as the checkpoint that it came from, tokenizer included.

    All processes call it, the first one writes. A run without a checkpoint writes nothing: what
    bears its name is in Orbax's checkpoints.

    Args:
      keys: the model group.
      network: the network's shape.
      params: its parameters, on the mesh. They are written in `compute_dtype`, in which the run
        has computed with them.
      folder: receives `model.safetensors` and copies of the checkpoint's other small files; made if
        it is missing.
    """
    if not keys.checkpoint:
        return
    whole = mesh.gather(jax.tree.map(lambda leaf: leaf.astype(network.compute_dtype), params))
    if jax.process_index():
        return
    networks.save_pretrained(folder, network, whole)
    source = pathlib.Path(keys.checkpoint)
    for pattern in _SMALL_FILES:
        for path in source.glob(pattern):
            if not path.name.endswith(_INDEX_ENDING):
                shutil.copyfile(path, folder / path.name)
    # The shape is the checkpoint's still, whose file also says what readers other than us ask for.
    described = json.loads((source / _CONFIG_FILE).read_text())
    described.pop("dtype", None)
    described["torch_dtype"] = network.compute_dtype
    (folder / _CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n")


def _computing(keys: language_config.ModelConfig) -> dict[str, Any]:
    """What a checkpoint does not say."""
    return {
        "compute_dtype": keys.compute_dtype,
        "remat": keys.remat,
        "scan_layers": keys.scan_layers,
    }


@contextlib.contextmanager
def _reading(checkpoint: str) -> Iterator[None]:
    place = f"config.model.checkpoint {checkpoint!r}"
    try:
        with config_lib.user_errors(place):
            yield
    except (OSError, KeyError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise errors.UserError(f"{place} cannot be read: {error}") from None


def _check_vocabulary(
    checkpoint: str, network: networks.TransformerConfig, vocab_size: int
) -> None:
    if vocab_size > network.vocab_size:
        raise errors.UserError(
            f"config.model.checkpoint {checkpoint!r} has a vocabulary of {network.vocab_size} "
            f"tokens, and the tokenizer of config.data.tokenizer one of {vocab_size}: they do not "
            "belong together."
        )
