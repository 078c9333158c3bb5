"""Language models as functions of parameters, and the one place where tokens are shifted.

The log-probability of token t comes from the logits at position t - 1. `completion_log_probs` does
that shift, for every agent; the functions in `bellmax.losses` never shift.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax import losses
from bellmax.agents.agent import Params


class LanguageModel(NamedTuple):
    """A causal language model as functions, with its configuration already bound.

    Attributes:
      apply: `(params, tokens[B, T]) -> logits[B, T, V]`; position t sees tokens 0..t only.
      hidden_states: `(params, tokens[B, T]) -> hidden[B, T, D]`, what the unembedding multiplies;
        needed for the chunked path only.
      unembedding: `(params) -> [D, V]`, needed for the chunked path only.
      softcap: soft cap c of the logits, c tanh(logits / c), which the chunked path repeats; None
        for none.
    """

    apply: Callable[..., Array]
    hidden_states: Callable[..., Array] | None = None
    unembedding: Callable[[Params], Array] | None = None
    softcap: float | None = None


def check_chunking(model: LanguageModel, chunk_size: int | None) -> None:
    """Refuses a chunk size that the model or arithmetic cannot serve.

    Args:
      model: the language model.
      chunk_size: tokens per chunk, or None for the path that holds all logits.

    Raises:
      ValueError: `chunk_size` is below 1, or the model lacks `hidden_states` or `unembedding`.
    """
    if chunk_size is None:
        return
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token or None, got {chunk_size}.")
    if model.hidden_states is None or model.unembedding is None:
        raise ValueError(
            "chunk_size needs a model with both `hidden_states` and `unembedding`; got "
            f"hidden_states={model.hidden_states} and unembedding={model.unembedding}."
        )


def last_counted(mask: Array) -> Int[Array, "B 1"]:
    """Returns the place of the last token that counts, -1 in a row in which none does.

    Args:
      mask: 1, or anything but 0, on the tokens that count. [B, T].

    Returns:
      Places. [B, 1].
    """
    places = jnp.arange(mask.shape[1])
    return jnp.max(jnp.where(jnp.asarray(mask) != 0, places, -1), axis=1, keepdims=True)


def without_padding(
    tokens: Int[Array, "B T"], mask: Array, weight: Float[Array, " B"] | None = None
) -> Int[Array, "B T"]:
    """Returns tokens that any network can read: 0 after the last one that counts.

    Padding may hold ids that are no tokens (-100, or the size of the vocabulary). Their embeddings
    are NaN, and causal attention multiplies what it does not see by 0, which leaves NaN.

    Args:
      tokens: prompt and completion, padded on the right. [B, T].
      mask: 1 on the tokens that count. [B, T].
      weight: 0 for a row that does not count and may hold anything; None where all count. [B].

    Returns:
      The tokens; a row in which nothing counts is all 0. [B, T].
    """
    places = jnp.arange(tokens.shape[1])
    counted = jnp.asarray(mask) != 0
    if weight is not None:
        counted = counted & (weight > 0)[:, None]
    return jnp.where(places <= last_counted(counted), tokens, 0)


def completion_log_probs(
    model: LanguageModel,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    chunk_size: int | None = None,
) -> Float[Array, "B T"]:
    r"""Returns log p(tokens[t] | tokens[:t]) at every position t.

    Position 0 has nothing to be predicted from and holds 0: a completion mask never counts it,
    since the prompt comes first.

    Args:
      model: the language model.
      params: its parameters.
      tokens: prompt and completion, padded on the right (causal attention keeps padding from
        reaching any counted token); of the vocabulary, see `without_padding`. [B, T].
      chunk_size: tokens per chunk of the path that never holds [B, T, V]; None for the plain path,
        which is faster for small vocabularies.

    Returns:
      Log-probabilities in nats, float32. [B, T].

    Raises:
      ValueError: the model cannot serve `chunk_size`, or T is below 2.
    """
    check_chunking(model, chunk_size)
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be [B, T] with T at least 2, got shape {tokens.shape}.")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if chunk_size is None:
        shifted = losses.token_log_probs(model.apply(params, inputs), targets)
    else:
        assert model.hidden_states is not None
        assert model.unembedding is not None
        shifted = losses.chunked_token_log_probs(
            model.hidden_states(params, inputs),
            model.unembedding(params),
            targets,
            chunk_size=chunk_size,
            softcap=model.softcap,
        )
    return jnp.pad(shifted, ((0, 0), (1, 0)))
