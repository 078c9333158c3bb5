"""The dialogue game against its definition in plain Python, and why asking pays in it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular
from bellmax.envs import dialogue, dialogue_exact

GAME = dialogue.make()
SMALL = dialogue.make(num_turns=2, utterance_length=1, num_parts=1)
# Nothing in it is symmetric, and it has three types, so that no index can be mistaken.
UNEVEN = SMALL._replace(
    type_probs=jnp.array([0.5, 0.2, 0.3]),
    learn_probs=jnp.array([0.15, 0.8]),
    reveal_probs=jnp.array([0.1, 0.7]),
    understood_probs=jnp.array([0.2, 0.6, 0.9]),
    attention=jnp.array([1.0, 0.7]),
    scores=jnp.array([[0.0, 1.0, 1.5], [0.2, 0.9, 2.0], [-0.3, 0.1, 0.4]]),
    turn_score=jnp.array(1.3),
    cyclic=jnp.array(0.8),
    manners=dialogue.make(num_types=3).manners,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# One program each, where every operation alone would be compiled.
outcome_law = jax.jit(dialogue_exact.outcome_law)
conversation_law = jax.jit(dialogue_exact.conversation_law)
win_rate = jax.jit(dialogue_exact.win_rate)
divergence = jax.jit(dialogue_exact.divergence)
preference_mdp = jax.jit(dialogue_exact.preference_mdp)
prefix_laws = jax.jit(dialogue_exact.prefix_laws)
turn_preferences = jax.jit(dialogue_exact.turn_preferences, static_argnums=1)


def random_policy(game, seed):
    shape = dialogue_exact.uniform_policy(game).shape
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1]))


def student_by_definition(game, said, kind, level, turn):
    """Yields probability, parts learnt and answer after one utterance: the docstring, in NumPy."""
    g = jax.tree.map(np.asarray, game)
    chance = g.attention[turn] * g.learn_probs[sum(word == 1 + kind for word in said)]
    chance = chance if level < game.num_parts else 0.0
    reveal = g.reveal_probs[sum(word == 0 for word in said)]
    for gained in (0, 1) if chance else (0,):
        understood = g.understood_probs[level + gained]
        for answer in range(game.num_types + 1):
            named = answer == game.num_types
            idle = understood if named else (1 - understood) / game.num_types
            law = reveal * (answer == kind) + (1 - reveal) * idle
            yield (chance if gained else 1 - chance) * law, level + gained, answer


def law_by_definition(game, policy):
    """Probability of every conversation with its student: {(turns, type, level): probability}."""
    utterances = list(itertools.product(range(game.num_words), repeat=game.utterance_length))
    law: dict[tuple, float] = {((), kind, 0): float(p) for kind, p in enumerate(game.type_probs)}
    number: dict[tuple, int] = {(): 0}
    for turn in range(game.num_turns):
        longer = {}
        for (said, kind, level), probability in law.items():
            for u, utterance in enumerate(utterances):
                weight = probability * float(policy[turn, number[said], u])
                for p, new_level, answer in student_by_definition(
                    game, utterance, kind, level, turn
                ):
                    new = (*said, (utterance, answer))
                    number[new] = (number[said] * len(utterances) + u) * game.num_words + answer
                    key = (new, kind, new_level)
                    longer[key] = longer.get(key, 0.0) + weight * p
        law = longer
    return law, number


def test_enumeration_lists_every_conversation_once():
    conversations = dialogue_exact.enumerate_conversations(SMALL)
    # Three utterances and three answers a turn, two turns.
    assert conversations.shape == (81, 9)
    assert len({tuple(row) for row in conversations}) == 81
    np.testing.assert_array_equal(conversations[0], [6, 0, 6, 3, 6, 0, 6, 3, 6])
    # 1 * 27 + 2 * 9 + 0 * 3 + 1: "1", answer 2, "0", answer 1.
    np.testing.assert_array_equal(conversations[46], [6, 1, 6, 5, 6, 0, 6, 4, 6])


def test_enumeration_numbers_prefixes_as_documented():
    utterances = dialogue_exact.enumerate_utterances(GAME)
    np.testing.assert_array_equal(utterances[7], [2, 1])
    prefixes = dialogue_exact.enumerate_prefixes(GAME, 2)
    assert prefixes.shape == (729, 11)
    number = ((5 * 3 + 2) * 9 + 7) * 3 + 1
    np.testing.assert_array_equal(
        prefixes[number], [6, *utterances[5], 6, 3 + 2, 6, *utterances[7], 6, 3 + 1, 6]
    )


@pytest.mark.parametrize("game", [SMALL, UNEVEN, dialogue.make(num_turns=2)], ids="suk")
def test_outcomes_and_conversations_follow_the_definition(game):
    policy = random_policy(game, 0)
    law, number = law_by_definition(game, policy)
    outcomes, conversations = np.zeros(game.num_outcomes), np.zeros(1 + max(number.values()))
    for (said, kind, level), probability in law.items():
        manner = said[-1][0][-1]
        outcomes[(kind * (game.num_parts + 1) + level) * game.num_words + manner] += probability
        conversations[number[said]] += probability
    whole = conversation_law(game, policy)
    np.testing.assert_allclose(outcome_law(game, policy), outcomes, atol=1e-6)
    np.testing.assert_allclose(whole, conversations, atol=1e-6)


def test_short_sighted_judge_sees_one_turn():
    # At the first turn nothing is known. Asking teaches with 0.05, "1 1" with 0.95 or 0.05 as the
    # type is 0 or 1; the manner 0 beats the manner 1 by 0.5 in log odds.
    table = turn_preferences(GAME, 0)
    total = 0.0
    for chance in (0.95, 0.05):
        for gain, p in ((1, chance), (0, 1 - chance)):
            for other, q in ((1, 0.05), (0, 0.95)):
                total += 0.5 * p * q * sigmoid(2 * (gain - other) - 0.5)
    np.testing.assert_allclose(table[0, 4, 0], total, rtol=1e-5)
    np.testing.assert_allclose(table + jnp.swapaxes(table, 1, 2), 1.0, atol=1e-6)


def short_sighted(game):
    """At each prefix the utterance that wins most turns against all others."""
    policy = np.zeros(dialogue_exact.uniform_policy(game).shape)
    policy[:, :, 0] = 1
    for turn in range(game.num_turns):
        table = np.asarray(turn_preferences(game, turn))
        best = table.mean(axis=2).argmax(axis=1)
        policy[turn, : len(best)] = np.eye(policy.shape[-1])[best]
    return jnp.asarray(policy)


def adaptive(game):
    """Asks first, then teaches in the style of the likeliest type."""
    policy = np.zeros(dialogue_exact.uniform_policy(game).shape)
    policy[:, :, 0] = 1
    utterances = dialogue_exact.enumerate_utterances(game)
    same = np.array([(utterances == word).all(axis=1).argmax() for word in range(game.num_words)])
    for turn, law in enumerate(prefix_laws(game)[1:-1], start=1):
        likeliest = np.asarray(law.sum(axis=2)).argmax(axis=1)
        policy[turn, : len(likeliest)] = np.eye(policy.shape[-1])[same[1 + likeliest]]
    return jnp.asarray(policy)


@pytest.mark.parametrize("cyclic", [0.0, 0.5])
def test_asking_loses_every_turn_and_wins_the_conversation(cyclic):
    game = dialogue.make(cyclic=cyclic)
    utterances = dialogue_exact.enumerate_utterances(game)
    teaches = (utterances == utterances[:, :1]).all(axis=1) & (utterances[:, 0] > 0)
    for turn in range(game.num_turns):
        table = np.asarray(turn_preferences(game, turn))
        # After every prefix, some style is preferred to asking with 0.6 at least.
        assert table[:, teaches, 0].max(axis=1).min() > 0.6
    good, greedy = adaptive(game), short_sighted(game)
    assert float(greedy[0, 0, 0]) == 0.0
    assert win_rate(game, good, greedy) > 0.59
    uniform = dialogue_exact.uniform_policy(game)
    assert win_rate(game, good, uniform) > 0.75


def test_win_rate_of_a_policy_against_itself_is_a_half():
    policy, other = random_policy(GAME, 1), random_policy(GAME, 2)
    np.testing.assert_allclose(win_rate(GAME, policy, policy), 0.5, atol=1e-6)
    both = win_rate(GAME, policy, other) + win_rate(GAME, other, policy)
    np.testing.assert_allclose(both, 1.0, atol=1e-6)


def test_divergence_is_that_of_the_conversations():
    policy, reference = random_policy(UNEVEN, 1), random_policy(UNEVEN, 2)
    with jax.enable_x64(True):
        laws = [conversation_law(UNEVEN, table) for table in (policy, reference)]
        p, q = (np.asarray(law) for law in laws)
        value = divergence(UNEVEN, policy, reference)
        # The answers are hidden in both laws alike: only what the teacher says differs.
        np.testing.assert_allclose(value, (p * np.log(p / q)).sum(), rtol=1e-5)


def test_divergence_of_a_certain_policy_is_finite():
    uniform = dialogue_exact.uniform_policy(SMALL)
    certain = jnp.zeros_like(uniform).at[..., 1].set(1.0)
    # Two turns of log 3 each.
    np.testing.assert_allclose(divergence(SMALL, certain, uniform), 2 * np.log(3), rtol=1e-6)


@pytest.mark.parametrize("game", [SMALL, UNEVEN], ids=["small", "uneven"])
def test_preference_mdp_has_the_law_of_the_game(game):
    policy = random_policy(game, 3)
    mdp = preference_mdp(game)
    np.testing.assert_allclose(mdp.transition.sum(axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(mdp.final_preference + mdp.final_preference.T, 1.0, atol=1e-6)
    state = np.eye(mdp.transition.shape[1])[0]
    for turn in range(game.num_turns):
        state = np.einsum("x,xu,xuy->y", state, policy[turn], mdp.transition[turn])
    expected = outcome_law(game, policy)
    np.testing.assert_allclose(state[: game.num_outcomes], expected, atol=1e-6)
    np.testing.assert_allclose(state[game.num_outcomes :], 0.0, atol=1e-6)


def test_prefixes_that_cannot_be_do_no_harm():
    game = dialogue.make(num_turns=2, utterance_length=1, num_parts=1, reveal=1.0)
    mdp = preference_mdp(game)
    assert np.isfinite(mdp.transition).all()
    np.testing.assert_allclose(mdp.transition.sum(axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(
        turn_preferences(game, 1)[2], 0.5
    )  # "0", "understood": the answer names the type with certainty.


def test_refuses_tables_of_another_shape():
    with pytest.raises(ValueError, match=r"policy must have shape \[H, X, U\]"):
        outcome_law(SMALL, jnp.ones((2, 3, 3)))
    with pytest.raises(ValueError, match="turn must be in"):
        dialogue_exact.enumerate_prefixes(SMALL, 3)
    with pytest.raises(ValueError, match="turn must be in"):
        turn_preferences(SMALL, 2)


@pytest.mark.slow
@pytest.mark.parametrize("game", [SMALL, UNEVEN], ids=["small", "uneven"])
def test_exact_mtpo_converges_on_the_game(game):
    with jax.enable_x64(True):
        mdp = jax.tree.map(
            lambda leaf: leaf.astype(float) if leaf.ndim else leaf, preference_mdp(game)
        )
        best = tabular.multi_turn_equilibrium(*mdp, alpha=0.1)
        distances = [
            divergence(game, best, tabular.mtpo(*mdp, alpha=0.1, num_steps=steps))
            for steps in (1, 10, 100)
        ]
        # The residual of 32-bit tables is far below the last of these.
        assert distances[0] > 10 * distances[1] > 100 * distances[2]
        assert distances[2] < 1e-6
        # Nobody who pays for leaving the reference has a better answer to the equilibrium.
        for seed in range(3):
            other = random_policy(game, seed)
            value = win_rate(game, best, other) - 0.1 * divergence(game, best, mdp.reference)
            assert value + 0.1 * divergence(game, other, mdp.reference) > 0.5
