r"""Log-probabilities of tokens from hidden states, without holding the logits of all positions.

For T tokens and a vocabulary of V, logits and their gradient take 8 T V bytes in float32, more than
anything else in a language model's step. Here both passes walk over chunks of tokens and, within
one, over blocks of words: the forward pass keeps one number a token (the log-normaliser), and the
backward pass recomputes a block's logits from it. Long chunks of narrow blocks and not the
reverse: the gradient of the unembedding is then written once a chunk, not once every few tokens.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks

# A block of words is wide enough for a fast product and narrow enough to stay in a cache.
_WIDEST_BLOCK = 1024
_FEWEST_BLOCKS = 8


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
      chunk_size: the logits of this many tokens fit in the memory that is used at once, at least 1
        token; all leading axes count, and the number need not divide them. (More tokens than that
        are treated together, each with a part of the vocabulary.)
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
    result: Array = _log_probs(rows, head, flat, chunk_size)
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


def _split(array: Array, count: int) -> Array:
    """Deals the first axis out to `count` chunks, filled up with zeros: [count, chunk, ...].

    Row i goes to chunk i modulo `count`: where rows are spread over devices, every chunk is spread
    over all of them, and no device waits for another one's chunk.
    """
    short = -array.shape[0] % count
    padded = jnp.pad(array, ((0, short),) + ((0, 0),) * (array.ndim - 1))
    return jnp.swapaxes(padded.reshape(-1, count, *array.shape[1:]), 0, 1)


def _join(chunks: Array, size: int) -> Array:
    """Undoes `_split`: [count, chunk, ...] to [size, ...]."""
    return jnp.swapaxes(chunks, 0, 1).reshape(-1, *chunks.shape[2:])[:size]


def _accumulator(rows: Array, unembedding: Array) -> jnp.dtype:
    """Returns the dtype of logits: float32, or float64 where an input has it."""
    return jnp.promote_types(jnp.promote_types(rows.dtype, unembedding.dtype), jnp.float32)


def _block_width(vocabulary: int) -> int:
    """Returns the number of words in a block: at most 1024, and at least 8 blocks if there are."""
    count = max(min(_FEWEST_BLOCKS, vocabulary), -(-vocabulary // _WIDEST_BLOCK))
    return -(-vocabulary // count)


def _chunk_count(num_tokens: int, vocabulary: int, chunk_size: int) -> int:
    """Returns how many chunks keep a chunk times a block within `chunk_size` x vocabulary."""
    longest = chunk_size * (vocabulary // _block_width(vocabulary))
    return -(-num_tokens // longest)


class _Block(NamedTuple):
    """What a chunk of tokens has to do with one block of words."""

    start: Int[Array, ""]
    words: Int[Array, " block"]  # -1 for a word that the block before has counted.
    unembedding: Float[Array, "D block"]
    logits: Float[Array, "chunk block"]


def _block(rows: Array, head: _Head, index: Array) -> _Block:
    size, dtype = head.unembedding.shape[1], _accumulator(rows, head.unembedding)
    width = _block_width(size)
    # The last block ends where the vocabulary ends, and may begin inside the one before.
    start = jnp.minimum(index * width, size - width)
    words = start + jnp.arange(width)
    unembedding = jax.lax.dynamic_slice_in_dim(head.unembedding, start, width, axis=1)
    logits = jnp.dot(rows, unembedding, preferred_element_type=dtype)
    if head.bias is not None:
        bias = jax.lax.dynamic_slice_in_dim(head.bias, start, width)
        logits = logits + bias.astype(dtype)[None, :]
    if head.softcap is not None:
        logits = head.softcap * jnp.tanh(logits / head.softcap)
    return _Block(start, jnp.where(words >= index * width, words, -1), unembedding, logits)


def _block_indices(head: _Head) -> Int[Array, " blocks"]:
    size = head.unembedding.shape[1]
    return jnp.arange(-(-size // _block_width(size)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _log_probs(rows: Array, head: _Head, tokens: Array, chunk_size: int) -> Float[Array, " N"]:
    return _forward(rows, head, tokens, chunk_size)[0]


def _forward(rows: Array, head: _Head, tokens: Array, chunk_size: int):
    size, dtype = head.unembedding.shape[1], _accumulator(rows, head.unembedding)

    def one_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        chunk_rows, chunk_tokens = chunk

        def one_block(carry: tuple[Array, Array], index: Array):
            log_normaliser, picked = carry
            block = _block(chunk_rows, head, index)
            new = jnp.where(block.words[None, :] >= 0, block.logits, -jnp.inf)
            column = chunk_tokens - block.start
            inside = (column >= 0) & (column < new.shape[1])
            column = jnp.where(inside, column, 0)[:, None]
            here = jnp.take_along_axis(block.logits, column, axis=-1)[:, 0]
            log_normaliser = jnp.logaddexp(log_normaliser, jax.nn.logsumexp(new, axis=-1))
            return (log_normaliser, jnp.where(inside, here, picked)), None

        # A token that is in no block has no log-probability.
        nothing = jnp.full_like(chunk_tokens, -jnp.inf, dtype)
        unknown = jnp.full_like(chunk_tokens, jnp.nan, dtype)
        (log_normaliser, picked), _ = jax.lax.scan(
            one_block, (nothing, unknown), _block_indices(head)
        )
        return picked - log_normaliser, log_normaliser

    count = _chunk_count(tokens.size, size, chunk_size)
    log_probs, log_normalisers = jax.lax.map(
        one_chunk, (_split(rows, count), _split(tokens, count))
    )
    return _join(log_probs, tokens.size), (rows, head, tokens, log_normalisers)


def _backward(chunk_size: int, residuals, cotangent: Float[Array, " N"]):
    rows, head, tokens, log_normalisers = residuals
    size, dtype = head.unembedding.shape[1], cotangent.dtype
    # A row without a weight (padded, masked, or of no valid token) is silent whatever it holds.
    weights = jnp.where((tokens >= 0) & (tokens < size), cotangent, 0)
    rows = jnp.where(weights[:, None] != 0, rows, 0)

    def one_chunk(sums: _Head, chunk):
        chunk_rows, chunk_tokens, log_normaliser, weight = chunk

        def one_block(carry: tuple[_Head, Array], index: Array):
            sums, to_rows = carry
            block = _block(chunk_rows, head, index)
            probs = jnp.exp(block.logits - log_normaliser[:, None])
            is_token = chunk_tokens[:, None] == block.words[None, :]
            counts = (weight[:, None] != 0) & (block.words[None, :] >= 0)
            slope = jnp.where(counts, (is_token - probs) * weight[:, None], 0)
            if head.softcap is not None:
                slope = slope * (1 - jnp.square(block.logits / head.softcap))
            slope = slope.astype(dtype)
            to_block = jnp.dot(chunk_rows.T, slope, preferred_element_type=dtype)
            to_unembedding = _add_columns(sums.unembedding, to_block, block.start)
            to_bias = None
            if sums.bias is not None:
                to_bias = _add_columns(sums.bias, slope.sum(axis=0), block.start)
            to_rows += jnp.dot(slope, block.unembedding.T, preferred_element_type=dtype)
            return (_Head(to_unembedding, to_bias, sums.softcap), to_rows), None

        carry = (sums, jnp.zeros_like(chunk_rows, dtype))
        return jax.lax.scan(one_block, carry, _block_indices(head))[0]

    count = log_normalisers.shape[0]
    chunks = (_split(rows, count), _split(tokens, count), log_normalisers, _split(weights, count))
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype), head)
    sums, to_rows = jax.lax.scan(one_chunk, zeros, chunks)
    to_head = jax.tree.map(lambda total, like: total.astype(like.dtype), sums, head)
    return _join(to_rows, tokens.size).astype(rows.dtype), to_head, None


def _add_columns(total: Array, columns: Array, start: Array) -> Array:
    """Adds to a few columns (the last axis) of an array, in place under jit."""
    old = jax.lax.dynamic_slice_in_dim(total, start, columns.shape[-1], axis=-1)
    return jax.lax.dynamic_update_slice_in_dim(total, old + columns, start, axis=-1)


_log_probs.defvjp(_forward, _backward)
