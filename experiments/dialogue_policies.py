"""A network in the dialogue game: its policy as a table, and conversations sampled from it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import Params, conversations, decoders, language
from bellmax.envs import dialogue, dialogue_exact
from bellmax.envs.dialogue import DialogueGame, DialogueState


def legal_tokens(game: DialogueGame) -> tuple[bool, ...]:
    """Returns which tokens the teacher may say: its words.

    Args:
      game: the game.

    Returns:
      One truth value a token. [V].
    """
    return tuple(token < game.num_words for token in range(game.vocab_size))


def policy_table(
    model: language.LanguageModel, params: Params, game: DialogueGame
) -> Float[Array, "H X U"]:
    """Returns a network's law over utterances after every prefix, for `dialogue_exact`.

    Args:
      model: the network as functions.
      params: its parameters.
      game: the game.

    Returns:
      Probabilities, uniform in rows that are no prefix. [H, X, U].
    """
    words, last = game.num_words, game.utterance_length - 1
    # Every choice of all words but the last, whose law is read off at once.
    heads = np.indices((words,) * last).reshape(last, words**last).T
    table = dialogue_exact.uniform_policy(game)
    for turn in range(game.num_turns):
        prefixes = dialogue_exact.enumerate_prefixes(game, turn)
        count, length = prefixes.shape
        rows = np.concatenate(
            [np.repeat(prefixes, len(heads), axis=0), np.tile(heads, (count, 1))], axis=1
        )
        logits = model.apply(params, jnp.asarray(rows, jnp.int32))[:, length - 1 :, :words]
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        said = jnp.take_along_axis(log_probs[:, :-1], jnp.asarray(rows[:, length:, None]), axis=-1)
        utterances = said.sum(axis=(1, 2))[:, None] + log_probs[:, -1]
        table = table.at[turn, :count].set(jnp.exp(utterances).reshape(count, -1))
    return table


class Conversations(NamedTuple):
    """Conversations of a policy, and what other words at each turn would have done.

    Attributes:
      states: how each conversation ended. [B] on every leaf.
      batch: the same for the agent; its preferences are still to be filled in.
      turn_preferences: probability that the short-sighted judge prefers what was said at each turn
        to a second utterance drawn at the same prefix and tried on the same student. [B, H].
    """

    states: DialogueState
    batch: conversations.ConversationBatch
    turn_preferences: Float[Array, "B H"]


def make_decoder(
    model: language.LanguageModel, game: DialogueGame, *, mixture: float | None = None
) -> decoders.Decoder:
    """Returns the sampler of a policy that says the teacher's words alone.

    Args:
      model: the network as functions.
      game: the game.
      mixture: weight on the reference in the geometric mixture that MTPO-tau samples from; None to
        sample from the policy itself.

    Returns:
      A decoder of parameters `(policy,)`, or `(policy, reference)` with a mixture.
    """
    legal = jnp.array(legal_tokens(game))
    if mixture is None:
        return decoders.combine((model,), functools.partial(conversations.mask_logits, legal=legal))

    def mix(logits, reference_logits):
        # The mixture's normaliser does not matter: masking comes last, and renormalises.
        mixed = (1 - mixture) * logits + mixture * reference_logits
        return conversations.mask_logits(mixed, legal=legal)

    return decoders.combine((model, model), mix)


class _Listening(NamedTuple):
    """A conversation between turns: what the sampler has read, and the next word's logits."""

    cache: Any
    logits: Float[Array, "B V"]


def _utter(
    decoder: decoders.Decoder,
    params: Params,
    listening: _Listening,
    keys: PRNGKeyArray,
    place: Array,
    length: int,
) -> tuple[Int[Array, "B K"], Any]:
    """Samples K words; returns them and the cache that has read all but the last."""
    cache, logits, words = listening.cache, listening.logits, []
    rows, size = logits.shape
    # All the noise at once: an argmax with Gumbel noise is a draw.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (length, size)))(keys)
    for k in range(length):
        if k:
            places = jnp.full((rows, 1), place + k, jnp.int32)
            logits, cache = decoder.step(
                params, words[-1][:, None], cache, places, jnp.zeros(rows, jnp.int32)
            )
        words.append(jnp.argmax(logits + noise[:, k], axis=-1).astype(jnp.int32))
    return jnp.stack(words, axis=1), cache


def converse(
    decoder: decoders.Decoder,
    params: Params,
    game: DialogueGame,
    key: PRNGKeyArray,
    index: Int[Array, " B"],
    *,
    second_opinions: bool = False,
) -> Conversations:
    """Plays one conversation a row to its end: words from a network, answers from the game.

    Args:
      decoder: the teacher, from `make_decoder`.
      params: the decoder's parameters, a tuple.
      game: the game.
      key: randomness; consumed.
      index: global number of each row, which with the key decides its randomness. [B].
      second_opinions: whether a second utterance is drawn and judged at each turn; without, the
        turn preferences are 1/2.

    Returns:
      The conversations; the batch holds preferences of 0.
    """
    rows, length = index.shape[0], game.utterance_length
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(index)
    reset_keys = jax.vmap(functools.partial(jax.random.fold_in, data=0))(keys)
    states, _ = jax.vmap(dialogue.reset, in_axes=(0, None))(reset_keys, game)
    params = decoder.prepare(params)
    here = jnp.zeros(rows, jnp.int32)
    logits, cache = decoder.step(
        params,
        states.tokens[:, :1],
        decoder.init_cache(rows, game.conversation_length),
        here[:, None],
        here,
    )
    take_turn = jax.vmap(dialogue.step, in_axes=(0, 0, 0, None))

    def play(carry, turn):
        states, listening = carry
        turn_keys = jax.vmap(functools.partial(jax.random.fold_in, data=1 + turn))(keys)
        said_keys, student_keys, other_keys, rival_keys = jax.vmap(
            functools.partial(jax.random.split, num=4), out_axes=1
        )(turn_keys)
        place = turn * game.turn_length
        words, cache = _utter(decoder, params, listening, said_keys, place, length)
        after, _ = take_turn(student_keys, states, words, game)
        judged = jnp.full(rows, 0.5)
        if second_opinions:
            others, _ = _utter(decoder, params, listening, other_keys, place, length)
            rivals, _ = take_turn(rival_keys, states, others, game)
            judged = jax.vmap(dialogue.turn_preference, in_axes=(0, 0, None))(after, rivals, game)
        # The last word, its end, the answer and its end, read as one block.
        block = jax.lax.dynamic_slice_in_dim(after.tokens, place + length, 4, axis=1)
        places = jnp.broadcast_to(place + length + jnp.arange(4), block.shape)
        logits, cache = decoder.step(params, block, cache, places, jnp.full(rows, 3, jnp.int32))
        return (after, _Listening(cache, logits)), judged

    start = (states, _Listening(cache, logits))
    (states, _), judged = jax.lax.scan(play, start, jnp.arange(game.num_turns))
    return Conversations(states, as_batch(states.tokens, game, index), judged.T)


def as_batch(
    tokens: Int[Array, "B T"], game: DialogueGame, index: Int[Array, " B"] | None = None
) -> conversations.ConversationBatch:
    """Returns whole conversations as the agent reads them, with preferences of 0.

    Args:
      tokens: whole conversations. [B, T].
      game: the game.
      index: global number of each row; None for 0..B-1. [B].

    Returns:
      The batch.
    """
    rows, shape = tokens.shape[0], tokens.shape
    starts = np.arange(game.num_turns) * game.turn_length
    places = np.arange(game.conversation_length) - 1
    is_word = (places >= 0) & (places % game.turn_length < game.utterance_length)
    turns = np.maximum(places, 0) // game.turn_length
    return conversations.ConversationBatch(
        tokens=tokens,
        mask=jnp.broadcast_to(jnp.asarray(is_word, jnp.float32), shape),
        turns=jnp.broadcast_to(jnp.asarray(turns, jnp.int32), shape),
        turn_starts=jnp.broadcast_to(jnp.asarray(starts, jnp.int32), (rows, game.num_turns)),
        turn_mask=jnp.ones((rows, game.num_turns)),
        preferences=jnp.zeros(rows),
        index=jnp.arange(rows) if index is None else index,
        weight=jnp.ones(rows),
    )
