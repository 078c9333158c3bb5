r"""Log-probabilities of tokens from hidden states, without holding the logits of all positions.

For T tokens and a vocabulary of V, logits and their gradient take 8 T V bytes in float32, more than
anything else in a language model's step. Here both passes walk over chunks of tokens: the forward
pass keeps one number a token (the log-normaliser), and the backward pass recomputes a chunk's
logits from it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks


class _Head(NamedTuple):
    """What a chunk of hidden states meets: the unembedding, and a bias and a soft cap or None."""

    unembedding: Float[Array, "D V"]
    bias: Float[Array, " V"] | None
    softcap: Float[Array, ""] | None


def chunked_token_log_probs(
    hidden: Float[Array, "... T D"],
    unembedding: Float[Array, "D V"],
    tokens: Int[Array, "... T"],
    *,
    chunk_size: int = 512,
    softcap: _checks.Knob | None = None,
    bias: Float[Array, " V"] | None = None,
) -> Float[Array, "... T"]:
    r"""Returns the log-probability of each token, from what the logits are made of.

    .. math:: z_t = c \tanh((h_t W + b) / c), \quad
              \log p_t = z_{t, y_t} - \log \sum_v \exp z_{t, v}

    It equals `token_log_probs(hidden @ unembedding, tokens)`, but no array of T x V exists in the
    forward or the backward pass; the price is one more product with the unembedding. Gradients
    reach `hidden`, `unembedding` and `bias`, in reverse mode only. A token outside [0, V) gives NaN
    and no gradient. Where the incoming gradient is 0, as under a mask, a hidden state may hold NaN.

    Args:
      hidden: hidden states that predict `tokens` at the same positions. [..., T, D].
      unembedding: maps hidden states to logits. [D, V].
      tokens: token ids in [0, V). [..., T].
      chunk_size: tokens that are in memory as logits at once, at least 1; all leading axes count,
        and the number need not divide them. Larger is faster up to a few hundred.
      softcap: c > 0, in units of logits, a constant for differentiation; None for no cap.
      bias: added to the logits before the cap. [V].

    Returns:
      Log-probabilities in nats, accumulated in float32 (float64 for float64 inputs). [..., T].

    Raises:
      ValueError: shapes do not fit, `chunk_size` is below 1 or `softcap` not above 0.
      TypeError: `hidden`, `unembedding` or `bias` is not floating point, or `tokens` not of
        integers.

    References:
      Hsu et al., Liger Kernel, 2024, which fuses the head and the cross-entropy in the same way.
      https://arxiv.org/abs/2410.10989
    """
    tokens = _checks.as_integer("tokens", tokens)
    for name, value in (("hidden", hidden), ("unembedding", unembedding), ("bias", bias)):
        if value is not None:
            _checks.is_float(name, value)
    if hidden.ndim < 1 or hidden.shape[:-1] != tokens.shape:
        raise ValueError(
            "tokens must have the shape of hidden without its last axis, got tokens "
            f"{tokens.shape} and hidden {hidden.shape}."
        )
    if unembedding.ndim != 2 or unembedding.shape[0] != hidden.shape[-1]:
        raise ValueError(
            f"unembedding must be [D, V] with D = {hidden.shape[-1]}, got {unembedding.shape}."
        )
    if bias is not None and bias.shape != unembedding.shape[1:]:
        raise ValueError(f"bias must be [V] = {unembedding.shape[1:]}, got {bias.shape}.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token, got {chunk_size}.")
    if softcap is not None:
        _checks.positive("softcap", softcap)
    dtype = _accumulator(hidden, unembedding)
    flat, rows = tokens.reshape(-1), hidden.reshape(-1, hidden.shape[-1])
    if flat.size == 0:
        return jnp.zeros(tokens.shape, dtype)
    cap = None if softcap is None else _checks.knob("softcap", softcap, jnp.zeros((), dtype))
    rows, head, flat = _vary_alike((rows, _Head(unembedding, bias, cap), flat))
    result = _log_probs(rows, head, flat, min(chunk_size, flat.size))
    return result.reshape(tokens.shape)


def _vary_alike(tree: Any) -> Any:
    """Marks all arrays as varying over the same mesh axes, which a scan's carry needs in shard_map.

    Outside shard_map nothing varies and nothing is done. Done out here, where differentiation sees
    it, a replicated unembedding gets the sum of its gradients over the axes.
    """
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(tree)))

    def vary(leaf: Array) -> Array:
        missing = tuple(axes - _varying_axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def _varying_axes(array: Array) -> frozenset[str]:
    """Returns the shard_map axes over which an array varies; JAX 0.10 renamed the attribute."""
    kind = jax.typeof(array)
    manual = getattr(kind, "manual_axis_type", None)
    return frozenset(getattr(kind, "vma", ()) if manual is None else manual.varying)


def _split(array: Array, chunk_size: int) -> Array:
    """Deals the first axis out to C chunks, filled up with zeros: [C, chunk, ...].

    Row i goes to chunk i modulo C: where rows are spread over devices, every chunk is spread over
    all of them, and no device waits for another one's chunk.
    """
    short = -array.shape[0] % chunk_size
    padded = jnp.pad(array, ((0, short),) + ((0, 0),) * (array.ndim - 1))
    return jnp.swapaxes(padded.reshape(chunk_size, -1, *array.shape[1:]), 0, 1)


def _join(chunks: Array, size: int) -> Array:
    """Undoes `_split`: [C, chunk, ...] to [size, ...]."""
    return jnp.swapaxes(chunks, 0, 1).reshape(-1, *chunks.shape[2:])[:size]


def _accumulator(rows: Array, unembedding: Array) -> jnp.dtype:
    """Returns the dtype of logits: float32, or float64 where an input has it."""
    return jnp.promote_types(jnp.promote_types(rows.dtype, unembedding.dtype), jnp.float32)


def _chunk_logits(rows: Array, head: _Head) -> Float[Array, "chunk V"]:
    dtype = _accumulator(rows, head.unembedding)
    logits = jnp.dot(rows, head.unembedding, preferred_element_type=dtype)
    if head.bias is not None:
        logits = logits + head.bias.astype(dtype)[None, :]
    return logits if head.softcap is None else head.softcap * jnp.tanh(logits / head.softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _log_probs(rows: Array, head: _Head, tokens: Array, chunk_size: int) -> Float[Array, " N"]:
    return _forward(rows, head, tokens, chunk_size)[0]


def _forward(rows: Array, head: _Head, tokens: Array, chunk_size: int):
    size = head.unembedding.shape[1]

    def one_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        chunk_rows, chunk_tokens = chunk
        logits = _chunk_logits(chunk_rows, head)
        log_normaliser = jax.nn.logsumexp(logits, axis=-1)
        valid = (chunk_tokens >= 0) & (chunk_tokens < size)
        index = jnp.where(valid, chunk_tokens, 0)[:, None]
        picked = jnp.take_along_axis(logits, index, axis=-1)[:, 0]
        return jnp.where(valid, picked - log_normaliser, jnp.nan), log_normaliser

    chunks = (_split(rows, chunk_size), _split(tokens, chunk_size))
    log_probs, log_normalisers = jax.lax.map(one_chunk, chunks)
    log_probs = _join(log_probs, tokens.size)
    return log_probs, (rows, head, tokens, log_normalisers)


def _backward(chunk_size: int, residuals, cotangent: Float[Array, " N"]):
    rows, head, tokens, log_normalisers = residuals
    dtype = cotangent.dtype
    # A row without a weight (padded, masked, or of no valid token) is silent whatever it holds.
    weights = jnp.where((tokens >= 0) & (tokens < head.unembedding.shape[1]), cotangent, 0)
    rows = jnp.where(weights[:, None] != 0, rows, 0)

    def one_chunk(sums: _Head, chunk):
        chunk_rows, chunk_tokens, log_normaliser, weight = chunk
        logits = _chunk_logits(chunk_rows, head)
        probs = jnp.exp(logits - log_normaliser[:, None])
        is_token = chunk_tokens[:, None] == jnp.arange(logits.shape[1])[None, :]
        slope = jnp.where(weight[:, None] != 0, (is_token - probs) * weight[:, None], 0)
        if head.softcap is not None:
            slope = slope * (1 - jnp.square(logits / head.softcap))
        slope = slope.astype(dtype)
        to_rows = jnp.dot(slope, head.unembedding.T, preferred_element_type=dtype)
        to_unembedding = sums.unembedding + jnp.dot(
            chunk_rows.T, slope, preferred_element_type=dtype
        )
        to_bias = None if sums.bias is None else sums.bias + slope.sum(axis=0)
        return _Head(to_unembedding, to_bias, sums.softcap), to_rows

    zeros = _Head(
        jnp.zeros_like(head.unembedding, dtype),
        None if head.bias is None else jnp.zeros_like(head.bias, dtype),
        None if head.softcap is None else jnp.zeros_like(head.softcap, dtype),
    )
    chunks = (
        _split(rows, chunk_size),
        _split(tokens, chunk_size),
        log_normalisers,
        _split(weights, chunk_size),
    )
    sums, to_rows = jax.lax.scan(one_chunk, zeros, chunks)
    to_head = jax.tree.map(lambda total, like: total.astype(like.dtype), sums, head)
    return _join(to_rows, tokens.size).astype(rows.dtype), to_head, None


_log_probs.defvjp(_forward, _backward)
