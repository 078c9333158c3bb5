r"""A teacher, a hidden student and a judge of whole conversations: dialogue in tokens, exactly.

A student of type z is drawn and never shown. For H turns the teacher utters K words; word 0 asks,
word 1 + z teaches in the style that suits type z. The student then learns one of the L parts of the
lesson with a probability that grows with the words in its own style, and answers with one word:

    P(learns | z, turn h)   = attention[h] learn_probs[words in style z], nothing beyond L parts
    P(answers s | z, level) = reveal 1[s = z] + (1 - reveal) idle(s | level)

where `reveal` grows with the words that ask, and an idle answer is "understood" with a probability
that depends on what has been learnt, else any of the other words. Teaching in the wrong style
teaches little and asking teaches next to nothing, so asking looks bad turn by turn; it pays once
the turns that follow can use the answer.

Nobody pays rewards. A judge compares whole conversations by what came of them, the outcome (type,
parts learnt, manner), where the manner is the last word that the teacher said:

.. math:: P(o \succ o') = \sigma(r(z, \ell) - r(z', \ell') + c\, M[m, m'])

with M antisymmetric and cyclic: c = 0 leaves a Bradley-Terry judge. A short-sighted judge compares
two ways of taking the same turn, `turn_preference`. The setting is a small one of the spirit of the
Education Dialogue of Shani et al., 2024, https://arxiv.org/abs/2405.14655, with the judge known.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bellmax.envs.environment import ArraySpec, Environment
from bellmax.envs.types import TimeStep


class DialogueGame(NamedTuple):
    """The laws of a game; sizes are read off the shapes.

    Teacher words have ids 0..Z, student words (the Z types and "understood") the Z + 1 ids after
    them, then come the end of a turn and padding.

    Attributes:
      type_probs: law of the hidden type. [Z].
      learn_probs: chance to learn from an utterance with 0..K words in the student's style. [K +
        1].
      reveal_probs: chance that an answer names the type, after 0..K words that ask. [K + 1].
      understood_probs: chance that an answer which does not is "understood", with 0..L parts
        learnt. [L + 1].
      attention: factor on the chance to learn at each turn, in [0, 1]. [H].
      scores: r, what the judge thinks of a student of a type with 0..L parts learnt. [Z, L + 1].
      turn_score: what the short-sighted judge thinks of a part learnt in the turn itself.
      cyclic: c >= 0, weight of the manner, which no score explains.
      manners: M, the advantage of a last word over another; antisymmetric. [Z + 1, Z + 1].
    """

    type_probs: Float[Array, " Z"]
    learn_probs: Float[Array, " K+1"]
    reveal_probs: Float[Array, " K+1"]
    understood_probs: Float[Array, " L+1"]
    attention: Float[Array, " H"]
    scores: Float[Array, "Z L+1"]
    turn_score: Float[Array, ""]
    cyclic: Float[Array, ""]
    manners: Float[Array, "Z+1 Z+1"]

    @property
    def num_types(self) -> int:
        """Types Z of student."""
        return self.type_probs.shape[0]

    @property
    def num_turns(self) -> int:
        """Turns H of a conversation."""
        return self.attention.shape[0]

    @property
    def num_parts(self) -> int:
        """Parts L of the lesson."""
        return self.understood_probs.shape[0] - 1

    @property
    def utterance_length(self) -> int:
        """Words K of an utterance."""
        return self.learn_probs.shape[0] - 1

    @property
    def num_words(self) -> int:
        """Words Z + 1 of the teacher, and as many of the student."""
        return self.num_types + 1

    @property
    def num_outcomes(self) -> int:
        """Outcomes O: type, parts learnt and manner."""
        return self.num_types * (self.num_parts + 1) * self.num_words

    @property
    def end_token(self) -> int:
        """Id of the token that ends a turn of either speaker, and that begins a conversation."""
        return 2 * self.num_words

    @property
    def pad_token(self) -> int:
        """Id that stands where nothing has been said yet."""
        return 2 * self.num_words + 1

    @property
    def vocab_size(self) -> int:
        """Tokens V in all."""
        return 2 * self.num_words + 2

    @property
    def turn_length(self) -> int:
        """Tokens of a turn: the utterance, its end, the answer, its end."""
        return self.utterance_length + 3

    @property
    def conversation_length(self) -> int:
        """Tokens T of a whole conversation, the one that begins it included."""
        return 1 + self.num_turns * self.turn_length


class DialogueState(NamedTuple):
    """A conversation so far, and what the teacher does not see.

    Attributes:
      tokens: what has been said, then padding. [T].
      turn: turns taken.
      student_type: the hidden type.
      level: parts learnt; hidden.
      gained: whether the last turn taught a part; hidden.
      manner: the last word of the last utterance; 0 before the first.
    """

    tokens: Int[Array, " T"]
    turn: Int[Array, ""]
    student_type: Int[Array, ""]
    level: Int[Array, ""]
    gained: Bool[Array, ""]
    manner: Int[Array, ""]


def make(
    *,
    num_types: int = 2,
    num_turns: int = 3,
    utterance_length: int = 2,
    num_parts: int = 2,
    learn_range: tuple[float, float] = (0.05, 0.95),
    reveal: float = 0.95,
    understood_range: tuple[float, float] = (0.3, 0.4),
    score: float = 3.0,
    turn_score: float = 2.0,
    cyclic: float = 0.5,
) -> DialogueGame:
    """Returns a game whose types are equally likely and whose laws are linear in what they count.

    Args:
      num_types: Z, at least 2.
      num_turns: H, at least 1.
      utterance_length: K, at least 1.
      num_parts: L, at least 1; fewer than H leave a turn to ask.
      learn_range: chance to learn from an utterance without and with all words in the student's
        style, each in [0, 1].
      reveal: chance that an answer names the type where all words ask, in [0, 1].
      understood_range: chance that an idle answer is "understood" before and after the whole
        lesson, each in [0, 1].
      score: what the judge thinks of each part learnt, in log odds.
      turn_score: the same for the short-sighted judge.
      cyclic: c >= 0, in log odds: each last word beats the next one, and the last the first.

    Returns:
      The game.

    Raises:
      ValueError: a size is too small, or a chance is outside [0, 1].
    """
    smallest = {"num_types": 2, "num_turns": 1, "utterance_length": 1, "num_parts": 1}
    sizes = (num_types, num_turns, utterance_length, num_parts)
    for (name, least), size in zip(smallest.items(), sizes, strict=True):
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}.")
    chances = {
        "learn_range": learn_range,
        "reveal": (reveal,),
        "understood_range": understood_range,
    }
    for name, values in chances.items():
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{name} must lie in [0, 1], got {values}.")
    words = jnp.arange(num_types + 1)
    ahead = (words[None, :] - words[:, None]) % (num_types + 1)
    return DialogueGame(
        type_probs=jnp.full(num_types, 1 / num_types),
        learn_probs=jnp.linspace(*learn_range, utterance_length + 1),
        reveal_probs=jnp.linspace(0.0, reveal, utterance_length + 1),
        understood_probs=jnp.linspace(*understood_range, num_parts + 1),
        attention=jnp.ones(num_turns),
        scores=jnp.broadcast_to(score * jnp.arange(num_parts + 1.0), (num_types, num_parts + 1)),
        turn_score=jnp.asarray(float(turn_score)),
        cyclic=jnp.asarray(float(cyclic)),
        manners=jnp.where(ahead == 1, 1.0, jnp.where(ahead == num_types, -1.0, 0.0)),
    )


def learn_chance(
    game: DialogueGame,
    utterance: Int[Array, " K"],
    student_type: Int[Array, ""],
    level: Int[Array, ""],
    turn: Int[Array, ""],
) -> Float[Array, ""]:
    """Returns the probability that a turn teaches a part of the lesson.

    Args:
      game: the laws.
      utterance: the teacher's words. [K].
      student_type: the hidden type.
      level: parts learnt before.
      turn: turns taken before, below H.

    Returns:
      The probability; 0 where all parts are learnt.
    """
    chex.assert_shape(utterance, (game.utterance_length,))
    chance = game.attention[turn] * game.learn_probs[jnp.sum(utterance == 1 + student_type)]
    return jnp.where(level < game.num_parts, chance, 0.0)


def answer_probs(
    game: DialogueGame,
    utterance: Int[Array, " K"],
    student_type: Int[Array, ""],
    level: Int[Array, ""],
) -> Float[Array, " S"]:
    """Returns the law of the student's word.

    Args:
      game: the laws.
      utterance: the teacher's words. [K].
      student_type: the hidden type.
      level: parts learnt, those of this turn included.

    Returns:
      Probabilities of the Z + 1 words: the types' names, then "understood". [S].
    """
    chex.assert_shape(utterance, (game.utterance_length,))
    reveal = game.reveal_probs[jnp.sum(utterance == 0)]
    understood = game.understood_probs[level]
    words = jnp.arange(game.num_words)
    idle = jnp.where(words < game.num_types, (1 - understood) / game.num_types, understood)
    return reveal * (words == student_type) + (1 - reveal) * idle


def reset(key: PRNGKeyArray, params: DialogueGame) -> tuple[DialogueState, TimeStep]:
    """Draws a student; nothing has been said but the token that begins the conversation.

    Args:
      key: randomness of the hidden type; consumed.
      params: the game.

    Returns:
      The state and a time step whose observation is the tokens [T].
    """
    tokens = jnp.full(params.conversation_length, params.pad_token, jnp.int32)
    state = DialogueState(
        tokens=tokens.at[0].set(params.end_token),
        turn=jnp.zeros((), jnp.int32),
        student_type=jax.random.categorical(key, jnp.log(params.type_probs)).astype(jnp.int32),
        level=jnp.zeros((), jnp.int32),
        gained=jnp.zeros((), bool),
        manner=jnp.zeros((), jnp.int32),
    )
    return state, _time_step(state, params)


def step(
    key: PRNGKeyArray, state: DialogueState, action: Int[Array, " K"], params: DialogueGame
) -> tuple[DialogueState, TimeStep]:
    """Takes a turn: the teacher's words, then what the student makes of them and its answer.

    Args:
      key: randomness of learning and answer; consumed.
      state: the conversation so far; one that is over stays as it is.
      action: the teacher's words, ids in 0..Z. [K].
      params: the game.

    Returns:
      The new state and a time step: the tokens [T], reward 0 (the judge compares, it does not pay),
      `terminated` after H turns, never truncated.
    """
    learn_key, answer_key = jax.random.split(key)
    chance = learn_chance(params, action, state.student_type, state.level, state.turn)
    gained = jax.random.uniform(learn_key) < chance
    level = state.level + gained
    law = answer_probs(params, action, state.student_type, level)
    answer = jax.random.categorical(answer_key, jnp.log(law))
    said = (*action, params.end_token, params.num_words + answer, params.end_token)
    tokens = jax.lax.dynamic_update_slice(
        state.tokens,
        jnp.stack([jnp.asarray(token, state.tokens.dtype) for token in said]),
        (1 + state.turn * params.turn_length,),
    )
    new = DialogueState(
        tokens=tokens,
        turn=state.turn + 1,
        student_type=state.student_type,
        level=level,
        gained=gained,
        manner=action[-1].astype(state.manner.dtype),
    )
    over = state.turn >= params.num_turns
    new = jax.tree.map(lambda old, fresh: jnp.where(over, old, fresh), state, new)
    return new, _time_step(new, params)


def _time_step(state: DialogueState, params: DialogueGame) -> TimeStep:
    return TimeStep(
        observation=state.tokens,
        reward=jnp.zeros(()),
        terminated=state.turn >= params.num_turns,
        truncated=jnp.zeros((), bool),
    )


def environment(params: DialogueGame) -> Environment:
    """Returns the game with what is seen and said, for wrappers.

    Args:
      params: the game.

    Returns:
      The environment: observations are tokens [T], actions utterances [K].
    """
    return Environment(
        reset,
        step,
        params,
        ArraySpec((params.conversation_length,), jnp.int32, 0, params.vocab_size - 1),
        ArraySpec((params.utterance_length,), jnp.int32, 0, params.num_types),
    )


def outcome(state: DialogueState, params: DialogueGame) -> Int[Array, ""]:
    """Returns the index of what came of a conversation: (type (L + 1) + level) (Z + 1) + manner.

    Args:
      state: a conversation, over or not.
      params: the game.

    Returns:
      An integer in 0..O-1.
    """
    row = state.student_type * (params.num_parts + 1) + state.level
    return row * params.num_words + state.manner


def outcome_scores(params: DialogueGame) -> Float[Array, " O"]:
    """Returns r of every outcome: what a Bradley-Terry judge would pay, in log odds.

    Args:
      params: the game.

    Returns:
      Scores. [O].
    """
    return jnp.repeat(params.scores.reshape(-1), params.num_words)


def outcome_preference(params: DialogueGame) -> Float[Array, "O O"]:
    """Returns the judge's table: the probability that an outcome is preferred to another.

    Args:
      params: the game.

    Returns:
      `P[o, o']` with `P + P.T = 1`. [O, O].
    """
    scores = outcome_scores(params)
    manner = jnp.arange(params.num_outcomes) % params.num_words
    advantage = params.cyclic * params.manners[manner[:, None], manner[None, :]]
    return jax.nn.sigmoid(scores[:, None] - scores[None, :] + advantage)


def preference(
    state: DialogueState, other: DialogueState, params: DialogueGame
) -> Float[Array, ""]:
    """Returns the probability that the judge prefers one whole conversation to another.

    Args:
      state: a conversation that is over.
      other: another, with a student of its own.
      params: the game.

    Returns:
      P(state beats other), in (0, 1).
    """
    scores = (
        params.scores[state.student_type, state.level]
        - params.scores[other.student_type, other.level]
    )
    return jax.nn.sigmoid(scores + params.cyclic * params.manners[state.manner, other.manner])


def turn_preference(
    state: DialogueState, other: DialogueState, params: DialogueGame
) -> Float[Array, ""]:
    """Returns the probability that the short-sighted judge prefers one way to take a turn.

    It looks at that turn alone: whether a part was learnt in it, and its manner.

    Args:
      state: a conversation after the turn.
      other: the same conversation, with the same student, after another utterance.
      params: the game.

    Returns:
      P(state beats other), in (0, 1).
    """
    gain = state.gained.astype(params.turn_score.dtype) - other.gained
    advantage = params.cyclic * params.manners[state.manner, other.manner]
    return jax.nn.sigmoid(params.turn_score * gain + advantage)
