r"""The dialogue game of `envs.dialogue` as sums: every conversation, its probability, its outcome.

A prefix is what has been said when a turn begins. Prefixes after h turns are numbered by what was
said, the first turn first: with U utterances and S answers, one that goes on with utterance u and
answer s has number (prefix U + u) S + s. A policy is a table `[H, X, U]` of laws over utterances;
row (h, x) counts where x is below (U S)^h, and X is the number of prefixes at the last turn, or the
number of outcomes where that is larger. Such tables are what `preference_mdp` makes the multi-turn
preference MDP of Shani et al., 2024 (https://arxiv.org/abs/2405.14655) of: its states are prefixes,
its final states are outcomes, and the hidden type enters the final state alone.
"""

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bellmax.envs import dialogue
from bellmax.envs.dialogue import DialogueGame
from bellmax.envs.preference_mdp import PreferenceMDP


def num_utterances(game: DialogueGame) -> int:
    """Returns U, the number of utterances.

    Args:
      game: the game.

    Returns:
      (Z + 1)^K.
    """
    return game.num_words**game.utterance_length


def num_prefixes(game: DialogueGame, turn: int) -> int:
    """Returns how many conversations of so many turns there are.

    Args:
      game: the game.
      turn: turns taken, 0..H.

    Returns:
      (U S)^turn.
    """
    return (num_utterances(game) * game.num_words) ** turn


def num_states(game: DialogueGame) -> int:
    """Returns X, the rows of a policy table at each turn.

    Args:
      game: the game.

    Returns:
      The number of prefixes at the last turn, or of outcomes where that is larger.
    """
    return max(num_prefixes(game, game.num_turns - 1), game.num_outcomes)


def enumerate_utterances(game: DialogueGame) -> Int[np.ndarray, "U K"]:
    """Lists every utterance once, the last word running fastest.

    Args:
      game: the game.

    Returns:
      Teacher words. [U, K].
    """
    shape = (game.num_words,) * game.utterance_length
    return np.indices(shape).reshape(game.utterance_length, -1).T.astype(np.int32)


def enumerate_prefixes(game: DialogueGame, turn: int) -> Int[np.ndarray, "N T"]:
    """Lists every conversation of so many turns once, in the order of their numbers.

    Args:
      game: the game.
      turn: turns taken, 0..H.

    Returns:
      Tokens, the one that begins a conversation included. [(U S)^turn, 1 + turn (K + 3)].

    Raises:
      ValueError: `turn` is outside 0..H.
    """
    if not 0 <= turn <= game.num_turns:
        raise ValueError(f"turn must be in 0..{game.num_turns}, got {turn}.")
    utterances, answers = enumerate_utterances(game), np.arange(game.num_words)
    said = np.repeat(utterances, answers.size, axis=0)
    ends = np.full((said.shape[0], 1), game.end_token)
    heard = game.num_words + np.tile(answers, utterances.shape[0])[:, None]
    turns = np.concatenate([said, ends, heard, ends], axis=1)
    prefixes = np.full((1, 1), game.end_token)
    for _ in range(turn):
        longer = np.repeat(prefixes, turns.shape[0], axis=0)
        prefixes = np.concatenate([longer, np.tile(turns, (prefixes.shape[0], 1))], axis=1)
    return prefixes.astype(np.int32)


def enumerate_conversations(game: DialogueGame) -> Int[np.ndarray, "N T"]:
    """Lists every whole conversation once, in the order of their numbers.

    Args:
      game: the game.

    Returns:
      Tokens. [(U S)^H, T].
    """
    return enumerate_prefixes(game, game.num_turns)


def _counts(game: DialogueGame) -> tuple[np.ndarray, np.ndarray]:
    """Words in each style [U, Z] and words that ask [U] of every utterance."""
    utterances = enumerate_utterances(game)
    styles = 1 + np.arange(game.num_types)
    return (utterances[:, None, :] == styles[:, None]).sum(-1), (utterances == 0).sum(-1)


def learn_chances(game: DialogueGame, turn: int) -> Float[Array, "Z L+1 U"]:
    """Returns the probability that a turn teaches a part, for all students and utterances.

    Args:
      game: the game.
      turn: turns taken before, 0..H-1.

    Returns:
      Probabilities, 0 where all L parts are learnt. [Z, L + 1, U].
    """
    matching, _ = _counts(game)
    chances = game.attention[turn] * game.learn_probs[matching.T]
    unfinished = jnp.arange(game.num_parts + 1) < game.num_parts
    return jnp.where(unfinished[None, :, None], chances[:, None, :], 0.0)


def answer_laws(game: DialogueGame) -> Float[Array, "Z L+1 U S"]:
    """Returns the law of the answer for all students and utterances.

    Args:
      game: the game.

    Returns:
      Probabilities over the student's words, given the parts learnt after the turn. [Z, L + 1, U,
      S].
    """
    _, asking = _counts(game)
    reveal = game.reveal_probs[asking][:, None]
    understood = game.understood_probs[:, None]
    others = jnp.broadcast_to(
        (1 - understood) / game.num_types, (game.num_parts + 1, game.num_types)
    )
    idle = jnp.concatenate([others, understood], axis=1)[None, :, None, :]
    named = jnp.eye(game.num_types, game.num_words)[:, None, None, :]
    return reveal * named + (1 - reveal) * idle


def _turn_law(game: DialogueGame, turn: int) -> Float[Array, "Z L+1 U L+1"]:
    """Law of the parts learnt after a turn, given those before."""
    chances = learn_chances(game, turn)[..., None]
    stay = jnp.eye(game.num_parts + 1)[None, :, None, :]
    rise = jnp.eye(game.num_parts + 1, k=1)[None, :, None, :]
    return (1 - chances) * stay + chances * rise


def prefix_laws(game: DialogueGame) -> tuple[Float[Array, "N Z L+1"], ...]:
    """Returns what the student contributes to the probability of every prefix.

    Args:
      game: the game.

    Returns:
      One array a number of turns 0..H: the probability of type, answers and parts learnt when the
      teacher says what the prefix says. [(U S)^h, Z, L + 1]. Times the policy's probability of
      those utterances it is the law of the conversation; normalised, what the prefix tells about
      the student.
    """
    answers = answer_laws(game)
    start = game.type_probs[:, None] * (jnp.arange(game.num_parts + 1) == 0)
    laws = [start[None]]
    for turn in range(game.num_turns):
        longer = jnp.einsum(
            "nzl,zlum,zmus->nuszm", laws[-1], _turn_law(game, turn), answers, precision="highest"
        )
        laws.append(longer.reshape(-1, *start.shape))
    return tuple(laws)


def _check_policy(game: DialogueGame, name: str, policy: Float[Array, "H X U"]) -> None:
    expected = (game.num_turns, num_states(game), num_utterances(game))
    if policy.shape != expected:
        raise ValueError(f"{name} must have shape [H, X, U] = {expected}, got {policy.shape}.")


def prefix_reach(
    game: DialogueGame, policy: Float[Array, "H X U"]
) -> tuple[Float[Array, " N"], ...]:
    """Returns what the teacher contributes to the probability of every prefix.

    Args:
      game: the game.
      policy: laws over utterances. [H, X, U].

    Returns:
      One array a number of turns 0..H: the product of the probabilities of what the prefix's
      teacher said. [(U S)^h].

    Raises:
      ValueError: the table has another shape.
    """
    _check_policy(game, "policy", policy)
    reach = [jnp.ones(1, policy.dtype)]
    for turn in range(game.num_turns):
        said = reach[-1][:, None] * policy[turn, : reach[-1].shape[0]]
        reach.append(jnp.repeat(said.reshape(-1), game.num_words))
    return tuple(reach)


def conversation_law(game: DialogueGame, policy: Float[Array, "H X U"]) -> Float[Array, " N"]:
    """Returns the probability of every whole conversation under a policy.

    Args:
      game: the game.
      policy: laws over utterances. [H, X, U].

    Returns:
      Probabilities in the order of `enumerate_conversations`. [(U S)^H].

    Raises:
      ValueError: the table has another shape.
    """
    return prefix_reach(game, policy)[-1] * prefix_laws(game)[-1].sum(axis=(1, 2))


def outcome_law(game: DialogueGame, policy: Float[Array, "H X U"]) -> Float[Array, " O"]:
    """Returns the law of a conversation's outcome under a policy.

    Args:
      game: the game.
      policy: laws over utterances. [H, X, U].

    Returns:
      Probabilities in the order of `dialogue.outcome`. [O].

    Raises:
      ValueError: the table has another shape.
    """
    last = game.num_turns - 1
    students = prefix_laws(game)[last]
    taught = prefix_reach(game, policy)[last][:, None] * policy[last, : students.shape[0]]
    law = jnp.einsum(
        "nu,nzl,zlum->zmu", taught, students, _turn_law(game, last), precision="highest"
    )
    # The last word of an utterance runs fastest, so that it is the manner.
    by_manner = law.reshape(*law.shape[:2], -1, game.num_words).sum(axis=2)
    return by_manner.reshape(-1)


def win_rate(
    game: DialogueGame, policy: Float[Array, "H X U"], other: Float[Array, "H X U"]
) -> Float[Array, ""]:
    """Returns the probability that a policy's conversation is preferred to another policy's.

    Args:
      game: the game.
      policy: laws over utterances. [H, X, U].
      other: the other policy's. [H, X, U].

    Returns:
      The exact win-rate, in (0, 1).

    Raises:
      ValueError: a table has another shape.
    """
    table = dialogue.outcome_preference(game)
    laws = outcome_law(game, policy), outcome_law(game, other)
    return jnp.einsum("o,op,p->", laws[0], table, laws[1], precision="highest")


def divergence(
    game: DialogueGame, policy: Float[Array, "H X U"], reference: Float[Array, "H X U"]
) -> Float[Array, ""]:
    """Returns the KL divergence of a policy's conversations from the reference's.

    Args:
      game: the game.
      policy: laws over utterances. [H, X, U].
      reference: the reference's, positive where the policy is. [H, X, U].

    Returns:
      KL in nats, >= 0: the expected sum over turns of the KL between the laws over utterances.

    Raises:
      ValueError: a table has another shape.
    """
    _check_policy(game, "reference", reference)
    reach, students, total = prefix_reach(game, policy), prefix_laws(game), jnp.zeros(())
    for turn in range(game.num_turns):
        law, mu = (table[turn, : reach[turn].shape[0]] for table in (policy, reference))
        terms = jnp.where(law > 0, law * (jnp.log(jnp.where(law > 0, law, 1.0)) - jnp.log(mu)), 0.0)
        total += jnp.sum(reach[turn] * students[turn].sum(axis=(1, 2)) * terms.sum(axis=1))
    return total


def turn_preferences(game: DialogueGame, turn: int) -> Float[Array, "N U U"]:
    """Returns the short-sighted judge's table at every prefix.

    Args:
      game: the game.
      turn: turns taken before, 0..H-1.

    Returns:
      `P[n, u, v]`, the probability that saying u is preferred to saying v to the same student after
      prefix n, judged by that turn alone and averaged over what the prefix leaves unknown; 1/2
      after a prefix that cannot be. [(U S)^turn, U, U].

    Raises:
      ValueError: `turn` is outside 0..H-1.
    """
    if not 0 <= turn < game.num_turns:
        raise ValueError(f"turn must be in 0..{game.num_turns - 1}, got {turn}.")
    students = prefix_laws(game)[turn]
    total = students.sum(axis=(1, 2), keepdims=True)
    belief = students / jnp.where(total > 0, total, 1.0)
    chance = learn_chances(game, turn)
    gain = jnp.stack([1 - chance, chance], axis=-1)
    manner = np.arange(num_utterances(game)) % game.num_words
    advantage = game.cyclic * game.manners[manner[:, None], manner[None, :]]
    difference = game.turn_score * (jnp.arange(2.0)[:, None] - jnp.arange(2.0)[None, :])
    judged = 1 / (1 + jnp.exp(-(difference + advantage[..., None, None])))
    by_student = jnp.einsum("zlug,zlvh,uvgh->zluv", gain, gain, judged, precision="highest")
    table = jnp.einsum("nzl,zluv->nuv", belief, by_student, precision="highest")
    return jnp.where(total > 0, table, 0.5)


def uniform_policy(game: DialogueGame) -> Float[Array, "H X U"]:
    """Returns the table of the policy that says anything with equal probability.

    Args:
      game: the game.

    Returns:
      Laws over utterances. [H, X, U].
    """
    count = num_utterances(game)
    return jnp.full((game.num_turns, num_states(game), count), 1 / count)


def preference_mdp(
    game: DialogueGame, reference: Float[Array, "H X U"] | None = None
) -> PreferenceMDP:
    """Returns the game as a multi-turn preference MDP, for exact solvers.

    Args:
      game: the game.
      reference: the reference policy, or None for the uniform one. [H, X, U].

    Returns:
      The MDP: it begins in state 0, and at the last turn the next state is an outcome. States that
      no conversation reaches, and prefixes of probability 0, stay where they are; a final state
      that is no outcome is preferred to any other with 1/2.

    Raises:
      ValueError: the table has another shape.
    """
    reference = uniform_policy(game) if reference is None else reference
    _check_policy(game, "reference", reference)
    states, count, laws = num_states(game), num_utterances(game), prefix_laws(game)
    manner = np.arange(count) % game.num_words
    rows = []
    for turn in range(game.num_turns):
        before = laws[turn].sum(axis=(1, 2))
        if turn < game.num_turns - 1:
            shape = (before.size, count, game.num_words)
            after = laws[turn + 1].sum(axis=(1, 2)).reshape(shape)
            targets = np.arange(after.size).reshape(shape)
        else:
            taught = jnp.einsum(
                "nzl,zlum->nuzm", laws[turn], _turn_law(game, turn), precision="highest"
            )
            after = taught.reshape(before.size, count, -1)
            kinds = np.arange(after.shape[-1])
            targets = np.broadcast_to(kinds * game.num_words + manner[:, None], after.shape)
        possible = before[:, None, None] > 0
        after = jnp.where(possible, after / jnp.where(possible, before[:, None, None], 1.0), 0.0)
        place = np.arange(before.size)[:, None, None], np.arange(count)[:, None], targets
        table = jnp.zeros((states, count, states), after.dtype).at[place].set(after)
        lost = 1 - table.sum(axis=-1, keepdims=True)
        idle = jnp.where(lost > 0.5, jnp.eye(states)[:, None, :], 0.0)
        rows.append(table + idle)
    outcomes = game.num_outcomes
    final = jnp.full((states, states), 0.5)
    final = final.at[:outcomes, :outcomes].set(dialogue.outcome_preference(game))
    transition = jnp.stack(rows)
    chex.assert_shape(transition, (game.num_turns, states, count, states))
    return PreferenceMDP(transition, final, reference, jnp.zeros((), jnp.int32))
