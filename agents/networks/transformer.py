"""A decoder-only transformer: functions of a configuration and a plain tree of parameters.

The block is that of Llama: RMSNorm before attention and before a gated MLP, rotary positions,
grouped queries, no biases (but those of queries, keys and values where they are asked for).
Parameters are float32 whatever the compute dtype; norms, softmax and logits are float32 as well.
Paths are regular, so that sharding rules and foreign checkpoints (`checkpoints`) map onto them by
pattern:

    embedder/embedding [V, D]                    unembedder/kernel [D, V] (untied only)
    layers_0/attention_norm/scale [D]            layers_0/mlp_norm/scale [D]
    layers_0/attention/{query,key,value,output}/kernel
    layers_0/attention/{query,key,value}/bias    (with `attention_bias` only)
    layers_0/mlp/{gate,up,down}/kernel           final_norm/scale [D]

With `scan_layers` the layers are one tree, `layers/...`, whose arrays have a leading axis of
layers.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bellmax.agents.networks.blocks import Transformer, TransformerConfig

Params = Any


class Cache(NamedTuple):
    """Keys and values of the tokens that were decoded so far.

    Heads come before tokens, and each layer has arrays of its own: a step then reads them where
    they are and writes one token in place.

    Attributes:
      keys: a tuple of [B, M, S, H], one a layer; with `scan_layers` one array [L, B, M, S, H],
        which a step copies.
      values: laid out as `keys`.
      valid: whether a slot holds a token that may be seen. [B, S].
      length: slots in use.
    """

    keys: Any
    values: Any
    valid: Bool[Array, "B S"]
    length: Int[Array, ""]


@functools.partial(jax.jit, static_argnums=0)
def init(config: TransformerConfig, key: PRNGKeyArray) -> Params:
    """Returns fresh parameters.

    Projections start normal with variance 1 / fan-in (those that end a residual branch divided by
    twice the number of layers), embeddings with standard deviation 0.02, norms at 1.

    Args:
      config: the network's shape.
      key: randomness; consumed.

    Returns:
      A nested dict of float32 arrays; paths are in the module's docstring.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    visible = jnp.ones((1, 1, 1), bool)
    variables = Transformer(config).init(key, tokens, tokens, visible, None, 0)
    return variables["params"]


def hidden_states(
    config: TransformerConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    mask: Array | None = None,
    positions: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Returns what the unembedding multiplies: the residual stream after the last norm.

    Args:
      config: the network's shape.
      params: its parameters.
      tokens: token ids in [0, V); anything where `mask` is 0. [B, T].
      mask: 1 on real tokens, 0 on padding, which no token sees; None where there is none. [B, T].
      positions: positions for the rotary embedding; None counts real tokens from 0. [B, T].

    Returns:
      Hidden states in the compute dtype. [B, T, D].

    Raises:
      ValueError: `tokens` is not [B, T], or `mask` or `positions` has another shape.
    """
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be [B, T], got shape {tokens.shape}.")
    for name, array in (("mask", mask), ("positions", positions)):
        if array is not None and array.shape != tokens.shape:
            raise ValueError(f"{name} must have tokens' shape {tokens.shape}, got {array.shape}.")
    length = tokens.shape[1]
    visible = jnp.tril(jnp.ones((length, length), bool))[None]
    if mask is not None:
        real = jnp.asarray(mask) != 0
        # Padding may hold an id outside the vocabulary, whose embedding would be NaN.
        tokens = jnp.where(real, tokens, 0)
        visible = visible & real[:, None, :]
    if positions is None and mask is None:
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    elif positions is None:
        positions = jnp.maximum(jnp.cumsum(jnp.asarray(mask) != 0, axis=1) - 1, 0)
    visible = jnp.broadcast_to(visible, (tokens.shape[0], length, length))
    hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, visible, None, 0)
    return hidden


def unembedding(config: TransformerConfig, params: Mapping[str, Any]) -> Float[Array, "D V"]:
    """Returns the matrix that maps hidden states to logits, in the compute dtype.

    Args:
      config: the network's shape.
      params: its parameters.

    Returns:
      The unembedding: the transposed embedding where they are tied. [D, V].
    """
    if config.tied_embeddings:
        matrix = params["embedder"]["embedding"].T
    else:
        matrix = params["unembedder"]["kernel"]
    return matrix.astype(config.compute_dtype)


def _logits(config: TransformerConfig, params: Params, hidden: Float[Array, "B T D"]):
    rows = hidden.reshape(-1, hidden.shape[-1])
    logits = jnp.dot(rows, unembedding(config, params), preferred_element_type=jnp.float32)
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits.reshape(*hidden.shape[:-1], config.vocab_size)


def apply(
    config: TransformerConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    mask: Array | None = None,
    positions: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T V"]:
    """Returns the logits of the next token at every position.

    Args:
      config: the network's shape.
      params: its parameters.
      tokens: token ids in [0, V); anything where `mask` is 0. [B, T].
      mask: 1 on real tokens, 0 on padding, which no token sees; None where there is none. [B, T].
      positions: positions for the rotary embedding; None counts real tokens from 0. [B, T].

    Returns:
      Logits, float32. [B, T, V].

    Raises:
      ValueError: `tokens` is not [B, T], or `mask` or `positions` has another shape.
    """
    hidden = hidden_states(config, params, tokens, mask=mask, positions=positions)
    return _logits(config, params, hidden)


def init_cache(config: TransformerConfig, batch_size: int, max_length: int) -> Cache:
    """Returns an empty cache.

    Args:
      config: the network's shape.
      batch_size: rows B.
      max_length: slots S: the most tokens, padding included, that will be decoded.

    Returns:
      The cache, in the compute dtype.
    """
    shape = (batch_size, config.num_kv_heads, max_length, config.head_dim)

    def empty():
        if config.scan_layers:
            return jnp.zeros((config.num_layers, *shape), config.compute_dtype)
        return tuple(jnp.zeros(shape, config.compute_dtype) for _ in range(config.num_layers))

    return Cache(
        keys=empty(),
        values=empty(),
        valid=jnp.zeros((batch_size, max_length), bool),
        length=jnp.zeros((), jnp.int32),
    )


def decode_step(
    config: TransformerConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    cache: Cache,
    positions: Int[Array, "B T"],
    *,
    select: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T V"], Cache]:
    """Returns logits of a block of tokens that follow those in a cache, and the new cache.

    The logits equal those of `apply` over all tokens so far. The caller keeps within the cache's
    slots: a block that begins past the last slot would overwrite it.

    Args:
      config: the network's shape.
      params: its parameters.
      tokens: the next tokens, one or a whole prompt. [B, T].
      cache: tokens so far.
      positions: positions for the rotary embedding; below 0 for padding, which no token will see.
        [B, T].
      select: place in the block of the one token of each row whose logits are wanted; None for the
        logits of all. [B].

    Returns:
      Logits, float32 [B, T, V], or [B, 1, V] with `select`; and the new cache.

    Raises:
      ValueError: `positions` has another shape than `tokens`, or the block is larger than the
        cache.
    """
    slots = cache.valid.shape[1]
    if positions.shape != tokens.shape:
        raise ValueError(
            f"positions must have tokens' shape {tokens.shape}, got {positions.shape}."
        )
    if tokens.shape[1] > slots:
        raise ValueError(f"tokens must fit the cache's {slots} slots, got {tokens.shape[1]}.")
    # Start by axis, and not all at once: indices of one call must have one type, x64 or not.
    valid = jax.lax.dynamic_update_slice_in_dim(cache.valid, positions >= 0, cache.length, axis=1)
    order = cache.length + jnp.arange(tokens.shape[1])
    visible = (jnp.arange(slots)[None, :] <= order[:, None])[None] & valid[:, None, :]
    tokens = jnp.where(positions >= 0, tokens, 0)
    outputs: Any = Transformer(config).apply(
        {"params": params},
        tokens,
        jnp.maximum(positions, 0),
        visible,
        (cache.keys, cache.values),
        cache.length,
    )
    hidden, (keys, values) = outputs
    if select is not None:
        hidden = jnp.take_along_axis(hidden, select[:, None, None], axis=1)
    cache = Cache(keys, values, valid, cache.length + tokens.shape[1])
    return _logits(config, params, hidden), cache


def num_parameters(params: Params) -> int:
    """Returns how many numbers a tree of parameters holds.

    Args:
      params: any pytree of arrays.

    Returns:
      The count.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns `layers_0`, `layers_1`, ... into the one tree `layers` that `scan_layers` reads.

    Args:
      params: parameters of a network without `scan_layers`.

    Returns:
      The same parameters for a network with it.
    """
    names = sorted((n for n in params if n.startswith("layers_")), key=lambda n: int(n[7:]))
    rest = {name: value for name, value in params.items() if name not in names}

    def stack(*rows):
        # What was read from a file stays on the host.
        on_host = all(isinstance(row, np.ndarray) for row in rows)
        return np.stack(rows) if on_host else jnp.stack(rows)

    layers = jax.tree.map(stack, *(params[name] for name in names))
    return {**rest, "layers": layers}


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the one tree `layers` back into `layers_0`, `layers_1`, ...

    Args:
      params: parameters of a network with `scan_layers`.

    Returns:
      The same parameters for a network without it.
    """
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = params["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]
    unstacked = {
        f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(count)
    }
    return {**rest, **unstacked}
