"""Checkpoints in Hugging Face's layout, read into this library's transformer and written back.

A directory holds `config.json` and `model.safetensors`, or several files of weights that
`model.safetensors.index.json` names. The models read are those whose blocks are this library's:
Llama and Mistral without sliding windows, and Qwen2 (the same with biases on queries, keys and
values).
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from bellmax.agents.networks.blocks import TransformerConfig
from bellmax.agents.networks.transformer import Params, init, stack_layers, unstack_layers

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_MODEL_TYPES = ("llama", "mistral", "qwen2")
# Our path within a layer, theirs, and whether the matrix is the other way round.
_LAYER = (
    ("attention_norm/scale", "input_layernorm.weight", False),
    ("mlp_norm/scale", "post_attention_layernorm.weight", False),
    ("attention/query/kernel", "self_attn.q_proj.weight", True),
    ("attention/key/kernel", "self_attn.k_proj.weight", True),
    ("attention/value/kernel", "self_attn.v_proj.weight", True),
    ("attention/output/kernel", "self_attn.o_proj.weight", True),
    ("mlp/gate/kernel", "mlp.gate_proj.weight", True),
    ("mlp/up/kernel", "mlp.up_proj.weight", True),
    ("mlp/down/kernel", "mlp.down_proj.weight", True),
)
_BIASES = tuple(
    (f"attention/{ours}/bias", f"self_attn.{theirs}_proj.bias", False)
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
)


def load_config(
    directory: str | os.PathLike[str],
    *,
    compute_dtype: str = "float32",
    remat: bool = False,
    scan_layers: bool = False,
) -> TransformerConfig:
    """Reads the shape of a Llama, Mistral or Qwen2 model, and none of its weights.

    Args:
      directory: holds `config.json`.
      compute_dtype: see `TransformerConfig`; what the file was saved in does not matter.
      remat: see `TransformerConfig`.
      scan_layers: see `TransformerConfig`.

    Returns:
      The network's shape.

    Raises:
      FileNotFoundError: the directory has no `config.json`.
      ValueError: the model has what this library's transformer has not; the message names the file.
    """
    return TransformerConfig(
        **_shape(pathlib.Path(directory) / _CONFIG),
        compute_dtype=compute_dtype,
        remat=remat,
        scan_layers=scan_layers,
    )


def load_pretrained(
    directory: str | os.PathLike[str],
    *,
    compute_dtype: str = "float32",
    remat: bool = False,
    scan_layers: bool = False,
) -> tuple[TransformerConfig, Params]:
    """Reads a checkpoint of a Llama, Mistral or Qwen2 model.

    Args:
      directory: holds `config.json` and the weights as safetensors.
      compute_dtype: see `TransformerConfig`; what the file was saved in does not matter.
      remat: see `TransformerConfig`.
      scan_layers: see `TransformerConfig`; layers are then stacked.

    Returns:
      The network's shape, and its parameters: float32 arrays on the host, for a mesh to place.

    Raises:
      FileNotFoundError: the directory lacks one of the files.
      ValueError: the model has what this library's transformer has not, or a tensor is missing or
        has another shape than `config.json` says; the message names file and tensor.

    Example:
      config, params = networks.load_pretrained("Qwen2.5-0.5B")
      logits = networks.apply(config, params, tokens)
    """
    config = load_config(
        directory, compute_dtype=compute_dtype, remat=remat, scan_layers=scan_layers
    )
    params: dict[str, Any] = {}
    with _Tensors(pathlib.Path(directory)) as tensors:
        for path, name, turned, shape in _names(config):
            tensor = tensors.read(name, shape[::-1] if turned else shape)
            _put(params, path, np.ascontiguousarray(tensor.T) if turned else tensor)
    return config, stack_layers(params) if scan_layers else params


def save_pretrained(
    directory: str | os.PathLike[str],
    config: TransformerConfig,
    params: Params,
    *,
    max_position_embeddings: int = 32768,
) -> None:
    """Writes a network so that `load_pretrained` and Hugging Face's `from_pretrained` read it.

    Args:
      directory: receives `config.json` and `model.safetensors`; made if it is missing.
      config: the network's shape.
      params: its parameters, in any floating-point dtype, which is kept.
      max_position_embeddings: the longest sequence that readers should feed it.

    Raises:
      ValueError: no model of that layout has a cap on its logits.
    """
    if config.logit_softcap is not None:
        raise ValueError(
            "config.logit_softcap must be None: neither Llama nor Qwen2 caps its logits, got "
            f"{config.logit_softcap}."
        )
    layers = unstack_layers(params) if config.scan_layers else params
    tensors = {}
    for path, name, turned, _ in _names(config):
        leaf = _get(layers, path)
        # On the host: a model that several devices share may not fit one.
        whole = np.asarray(leaf)
        tensors[name] = np.ascontiguousarray(whole.T if turned else whole)
    dtype = str(next(iter(tensors.values())).dtype)
    described = {
        "architectures": ["Qwen2ForCausalLM" if config.attention_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if config.attention_bias else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": max_position_embeddings,
        "torch_dtype": dtype,
    }
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # Beside their places first: what bears the name is whole.
    partial = folder / f"{_WEIGHTS}.partial"
    safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / _WEIGHTS)
    partial = folder / f"{_CONFIG}.partial"
    partial.write_text(json.dumps(described, indent=2) + "\n")
    partial.replace(folder / _CONFIG)


def _shape(path: pathlib.Path) -> dict[str, Any]:
    """Returns what `TransformerConfig` takes from a config.json, or says why it cannot be."""
    keys = json.loads(path.read_text())
    rope = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    refused = {
        "model_type": keys.get("model_type") not in _MODEL_TYPES,
        "hidden_act": keys.get("hidden_act", "silu") != "silu",
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        # Llama's own switch adds a bias to the output as well.
        "attention_bias": bool(keys.get("attention_bias")),
        "mlp_bias": bool(keys.get("mlp_bias")),
        "quantization_config": keys.get("quantization_config") is not None,
        "sliding_window": keys.get("sliding_window") is not None
        and bool(keys.get("use_sliding_window", keys.get("model_type") == "mistral")),
    }
    for key, is_refused in refused.items():
        if is_refused:
            raise ValueError(
                f"{path}: {key} = {keys.get(key, rope or None)!r} has no counterpart here; read "
                f"are {', '.join(_MODEL_TYPES)} with silu, plain rotary positions, no biases but "
                "Qwen2's, no sliding window and no quantised weights."
            )
    heads = _needed(path, keys, "num_attention_heads")
    width = _needed(path, keys, "hidden_size")
    return {
        "vocab_size": _needed(path, keys, "vocab_size"),
        "num_layers": _needed(path, keys, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": keys.get("num_key_value_heads") or heads,
        "head_dim": keys.get("head_dim") or width // heads,
        "embed_dim": width,
        "mlp_dim": _needed(path, keys, "intermediate_size"),
        "tied_embeddings": bool(keys.get("tie_word_embeddings", False)),
        "rope_theta": float(rope.get("rope_theta", keys.get("rope_theta", 10_000.0))),
        "norm_epsilon": float(keys.get("rms_norm_eps", 1e-6)),
        "attention_bias": keys["model_type"] == "qwen2",
    }


def _needed(path: pathlib.Path, keys: Mapping[str, Any], key: str) -> int:
    if not isinstance(keys.get(key), int):
        raise ValueError(f"{path}: {key} must be an integer, got {keys.get(key)!r}.")
    return keys[key]


def _names(config: TransformerConfig) -> Iterator[tuple[str, str, bool, tuple[int, ...]]]:
    """Yields each array's path here, its name there, whether it is turned, and its shape here."""
    plain = dataclasses.replace(config, scan_layers=False)
    shapes = jax.eval_shape(functools.partial(init, plain), jax.random.key(0))
    names = [("embedder/embedding", "model.embed_tokens.weight", False)]
    for layer in range(config.num_layers):
        for path, name, turned in _LAYER + (_BIASES if config.attention_bias else ()):
            names.append((f"layers_{layer}/{path}", f"model.layers.{layer}.{name}", turned))
    names.append(("final_norm/scale", "model.norm.weight", False))
    if not config.tied_embeddings:
        names.append(("unembedder/kernel", "lm_head.weight", True))
    for path, name, turned in names:
        yield path, name, turned, _get(shapes, path).shape


class _Tensors:
    """The tensors of a directory, each read when it is asked for."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._files: dict[str, Any] = {}

    def __enter__(self):
        index = self._folder / _INDEX
        if index.exists():
            self._where = json.loads(index.read_text())["weight_map"]
        else:
            weights = self._open(_WEIGHTS)
            self._where = dict.fromkeys(weights.keys(), _WEIGHTS)
        return self

    def __exit__(self, *exception):
        for file in self._files.values():
            file.__exit__(*exception)

    def _open(self, name: str) -> Any:
        if name not in self._files:
            path = self._folder / name
            if not path.exists():
                raise FileNotFoundError(f"{path} is not there.")
            self._files[name] = safetensors.safe_open(path, framework="flax").__enter__()
        return self._files[name]

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a tensor in float32; its shape must be the one given."""
        if name not in self._where:
            raise ValueError(f"{self._folder}: there is no tensor {name}.")
        tensor = np.asarray(self._open(self._where[name]).get_tensor(name), np.float32)
        if tensor.shape != shape:
            raise ValueError(
                f"{self._folder / self._where[name]}: {name} must have shape {shape} by "
                f"{_CONFIG}, got {tensor.shape}."
            )
        return tensor


def _put(tree: dict[str, Any], path: str, leaf: np.ndarray) -> None:
    *owners, last = path.split("/")
    for owner in owners:
        tree = tree.setdefault(owner, {})
    tree[last] = leaf


def _get(tree: Params, path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree
