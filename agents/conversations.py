"""Conversations with language models: their batches, and one pass over all turns of them.

A turn is one action. Its log-probability is the sum over its tokens, its value one number, read off
the hidden state of the token before it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax import losses
from bellmax.agents import language
from bellmax.agents.agent import Params


class ConversationBatch(NamedTuple):
    """Conversations of up to H turns; each row is padded on the right.

    Attributes:
      tokens: all that was said by both speakers. [B, T].
      mask: 1 on the policy's own tokens; 0 on the other speaker's, and on padding. [B, T].
      turns: number of the turn, 0..H-1, that each of the policy's tokens belongs to; anything where
        `mask` is 0. [B, T].
      turn_starts: place of the last token before each turn, whose hidden state gives the value; in
        0..T-2. [B, H].
      turn_mask: 1 where there is such a turn; a row's turns come first. [B, H].
      preferences: probability that the conversation beats the other one of its context, or a
        reward: [B]. Of a judge of single turns, one a turn: [B, H].
      index: global number of the row; None for 0..B-1. [B].
      weight: weight of the row in every average, 0 for a padding row; None for ones. [B].
    """

    tokens: Int[Array, "B T"]
    mask: Array
    turns: Int[Array, "B T"]
    turn_starts: Int[Array, "B H"]
    turn_mask: Array
    preferences: Float[Array, "B"] | Float[Array, "B H"]
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None


class TurnLaws(NamedTuple):
    """What the losses read of each turn, [B, H]; 0 on turns that there are not.

    Attributes:
      log_probs: log-probability of the turn's tokens under the policy, nats.
      kl: divergence of policy from reference, nats: exact in each token, summed over the visited
        prefixes of the turn.
      values: V of the state in which the turn begins.
    """

    log_probs: Float[Array, "B H"]
    kl: Float[Array, "B H"]
    values: Float[Array, "B H"]


def _logits(model: language.LanguageModel, params: Params, hidden: Array, legal: Array | None):
    assert model.unembedding is not None
    logits = jnp.matmul(hidden, model.unembedding(params), preferred_element_type=jnp.float32)
    if model.softcap is not None:
        logits = model.softcap * jnp.tanh(logits / model.softcap)
    return mask_logits(logits, legal=legal)


def mask_logits(logits: Float[Array, "... V"], *, legal: Array | None) -> Float[Array, "... V"]:
    """Returns logits that are -inf where a token may not be said.

    Args:
      logits: of the next token. [..., V].
      legal: true where a token may be said; None where all may. [V].

    Returns:
      The logits. [..., V].
    """
    return logits if legal is None else jnp.where(legal, logits, -jnp.inf)


def turn_laws(
    model: language.LanguageModel,
    params: Params,
    reference_params: Params,
    batch: ConversationBatch,
    *,
    legal: Array | None = None,
    value_gradient: float | Array = 1.0,
) -> TurnLaws:
    """Returns log-probability, divergence and value of every turn, in one pass of each network.

    Args:
      model: policy and reference as functions; needs `hidden_states` and `unembedding`.
      params: `policy` and `value`, as in `agents.mtpo.State`.
      reference_params: the reference's; gradient-stopped.
      batch: the conversations, the rest of a row after its last counted token being padding; the
        preferences are not read.
      legal: true where the policy may say a token at all; None where all may. [V].
      value_gradient: factor on the gradient that the values send into the policy's network; the
        value head's own is not scaled.

    Returns:
      The turns, differentiable in `params`. What masked tokens and turns hold changes nothing.
    """
    assert model.hidden_states is not None
    # Position t - 1 predicts token t: shifted here for log-probabilities and divergences alike.
    tokens = language.without_padding(batch.tokens, batch.mask, batch.weight)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    hidden = model.hidden_states(params["policy"], inputs)
    logits = _logits(model, params["policy"], hidden, legal)
    reference = jax.lax.stop_gradient(reference_params)
    reference_logits = _logits(model, reference, model.hidden_states(reference, inputs), legal)
    counted = (jnp.asarray(batch.mask) != 0)[:, 1:]
    num_turns = batch.turn_starts.shape[1]
    belongs = (batch.turns[:, 1:, None] == jnp.arange(num_turns)) & counted[..., None]

    def by_turn(values):
        return jnp.sum(jnp.where(belongs, values[..., None], 0.0), axis=1)

    # A masked target may be no token that the policy could say.
    said = losses.token_log_probs(logits, jnp.where(counted, targets, _some_legal(legal)))
    there = jnp.asarray(batch.turn_mask) != 0
    starts = jnp.where(there, batch.turn_starts, 0)
    states = jnp.take_along_axis(hidden.astype(jnp.float32), starts[..., None], axis=1)
    states = value_gradient * states + (1 - value_gradient) * jax.lax.stop_gradient(states)
    values = states @ params["value"]["kernel"] + params["value"]["bias"]
    laws = TurnLaws(by_turn(said), by_turn(losses.categorical_kl(logits, reference_logits)), values)
    return jax.tree.map(lambda value: jnp.where(there, value, 0.0), laws)


def _some_legal(legal: Array | None) -> Array | int:
    return 0 if legal is None else jnp.argmax(legal)
