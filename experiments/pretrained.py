"""Policies that come from a folder in Hugging Face's layout, and go back into one.

tokenizer = make_tokenizer(config)
network = network_shape(config.model, tokenizer.vocab_size)
start = load(config.model, mesh)
...
save(config.model, network, params, workdir / "policies" / "logistic", tokenizer=tokenizer)
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import safetensors
from jax.sharding import Mesh

from bellmax.agents import Params, networks
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors, language_config, mesh, metrics
from bellmax.experiments.data import tokenizers

_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "config.json"
_GENERATION_FILE = "generation_config.json"
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
      That of `config.data.tokenizer`, or else the checkpoint's, which ends where the checkpoint's
      own sampling does, or else bytes.

    Raises:
      UserError: there is no such tokenizer, or it has no such end token.
    """
    name, end_token = config.data.tokenizer, config.data.end_token
    checkpoint = config.model.checkpoint
    own = pathlib.Path(checkpoint) / _TOKENIZER_FILE if checkpoint else None
    if not name and own is not None:
        if not own.is_file():
            raise errors.UserError(
                f"config.model.checkpoint {checkpoint!r} has no {_TOKENIZER_FILE}: give one with "
                "--config.data.tokenizer=..."
            )
        return tokenizers.HuggingFaceTokenizer(own, end_token or _end_id(checkpoint))
    name = name or "byte"
    is_file = name != "byte" and not name.startswith("characters:")
    if not is_file and own is not None and own.is_file():
        raise errors.UserError(
            f"config.data.tokenizer must be empty or a tokenizer.json where "
            f"config.model.checkpoint {checkpoint!r} has a tokenizer of its own, got {name!r}."
        )
    if not end_token:
        return tokenizers.make_tokenizer(name)
    if not is_file:
        raise errors.UserError(
            f"config.data.end_token must be empty for the tokenizer {name!r}, which has an end "
            f"token of its own; got {end_token!r}."
        )
    return tokenizers.HuggingFaceTokenizer(name, end_token)


def _end_id(checkpoint: str) -> int | None:
    """Returns the token that a checkpoint's own sampling stops at; None if it does not say."""
    for name in (_GENERATION_FILE, _CONFIG_FILE):
        path = pathlib.Path(checkpoint) / name
        with _reading(checkpoint):
            found = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return found[0] if isinstance(found, list) else found
    return None


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


def load(keys: language_config.ModelConfig, devices: Mesh) -> Params | None:
    """Returns the parameters that a run starts from.

    Args:
      keys: the model group.
      devices: the mesh.

    Returns:
      The checkpoint's, float32 arrays on the mesh; None without a checkpoint.

    Raises:
      UserError: a tensor is missing or has another shape.
    """
    if not keys.checkpoint:
        return None
    with _reading(keys.checkpoint):
        _, params = networks.load_pretrained(keys.checkpoint, **_computing(keys))
    return mesh.place_state(devices, params)


def save(
    keys: language_config.ModelConfig,
    network: networks.TransformerConfig,
    params: Params,
    folder: pathlib.Path,
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> None:
    """Writes a policy as the checkpoint that it came from, with the tokenizer that it has learnt.

    All processes call it, the first one writes. A run without a checkpoint writes nothing: its
    policies are in Orbax's checkpoints.

    Args:
      keys: the model group.
      network: the network's shape.
      params: its parameters, on the mesh; they are written in `compute_dtype`.
      folder: receives `model.safetensors` and copies of the checkpoint's other small files; made if
        it is missing.
      tokenizer: the run's, whose end token readers are told to stop at; None where tokens are no
        text.
    """
    if not keys.checkpoint:
        return
    writes = jax.process_index() == 0

    def whole(leaf: Any) -> Any:
        # One by one, and kept by one process: all of them may be more than a host holds.
        found = mesh.gather(leaf.astype(network.compute_dtype))
        return found if writes else None

    found = jax.tree.map(whole, params)
    if not writes:
        return
    networks.save_pretrained(folder, network, found)
    source = pathlib.Path(keys.checkpoint)
    for pattern in _SMALL_FILES:
        for path in source.glob(pattern):
            if path.name != _CONFIG_FILE and not path.name.endswith(_INDEX_ENDING):
                shutil.copyfile(path, folder / path.name)
    if isinstance(tokenizer, tokenizers.HuggingFaceTokenizer):
        shutil.copyfile(tokenizer.path, folder / _TOKENIZER_FILE)
    ends = {} if tokenizer is None else {"eos_token_id": tokenizer.end_id}
    if (folder / _GENERATION_FILE).is_file():
        _rewrite(source / _GENERATION_FILE, folder / _GENERATION_FILE, ends)
    # The shape is the checkpoint's still, whose file also says what readers other than us ask for.
    _rewrite(
        source / _CONFIG_FILE,
        folder / _CONFIG_FILE,
        {"torch_dtype": network.compute_dtype, **ends},
        without=("dtype",),
    )


def _rewrite(
    source: pathlib.Path,
    target: pathlib.Path,
    changes: Mapping[str, Any],
    *,
    without: Sequence[str] = (),
) -> None:
    described = json.loads(source.read_text())
    kept = {key: value for key, value in described.items() if key not in without}
    metrics.write_json(target, {**kept, **changes})


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
