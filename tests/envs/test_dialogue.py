"""The dialogue game by hand, its judges, and its sampler against its exact law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import dialogue, dialogue_exact
from bellmax.envs.environment import ArraySpec

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

# One program each, where every operation alone would be compiled.
reset, step = jax.jit(dialogue.reset), jax.jit(dialogue.step)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_tokens_have_ids_of_their_own():
    # Two types: teacher words 0 1 2, student words 3 4 5, end 6, padding 7.
    assert (GAME.num_words, GAME.end_token, GAME.pad_token, GAME.vocab_size) == (3, 6, 7, 8)
    # One token to begin with, then three turns of two words, end, answer, end.
    assert GAME.conversation_length == 1 + 3 * 5


def test_sampled_conversations_follow_the_law():
    size = 20_000
    utterances = jnp.asarray(dialogue_exact.enumerate_utterances(UNEVEN))

    def converse(key):
        keys = jax.random.split(key, 5)
        state, _ = dialogue.reset(keys[0], UNEVEN)
        for turn in range(2):
            said = jax.random.randint(keys[1 + turn], (), 0, utterances.shape[0])
            state, _ = dialogue.step(keys[3 + turn], state, utterances[said], UNEVEN)
        return state

    states = jax.jit(jax.vmap(converse))(jax.random.split(jax.random.key(0), size))
    uniform = dialogue_exact.uniform_policy(UNEVEN)
    law = np.asarray(jax.jit(dialogue_exact.outcome_law)(UNEVEN, uniform))
    drawn = jax.vmap(lambda state: dialogue.outcome(state, UNEVEN))(states)
    shares = np.bincount(drawn, minlength=UNEVEN.num_outcomes) / size
    np.testing.assert_array_less(np.abs(shares - law), 5 * np.sqrt(law * (1 - law) / size) + 1e-9)
    rows = dialogue_exact.enumerate_conversations(UNEVEN)
    place = {tuple(row): i for i, row in enumerate(rows.tolist())}
    found = np.bincount([place[tuple(row)] for row in states.tokens.tolist()], minlength=len(rows))
    law = np.asarray(jax.jit(dialogue_exact.conversation_law)(UNEVEN, uniform))
    bound = 5 * np.sqrt(law * (1 - law) / size) + 1 / size
    np.testing.assert_array_less(np.abs(found / size - law), bound)


def test_a_conversation_by_hand():
    # Certain laws: two words in the style teach, two that ask reveal the type.
    game = dialogue.make(learn_range=(0.0, 1.0), reveal=1.0, understood_range=(1.0, 1.0))
    state, first = reset(jax.random.key(1), game)
    kind = int(state.student_type)
    np.testing.assert_array_equal(first.observation, [6, *[7] * 15])
    state, after = step(jax.random.key(2), state, jnp.array([0, 0]), game)
    np.testing.assert_array_equal(after.observation[:6], [6, 0, 0, 6, 3 + kind, 6])
    assert (int(state.level), bool(state.gained)) == (0, False)
    state, after = step(jax.random.key(3), state, jnp.array([1 + kind, 1 + kind]), game)
    # It learns, and says "understood", student word 2.
    np.testing.assert_array_equal(after.observation[6:11], [1 + kind, 1 + kind, 6, 5, 6])
    assert (int(state.level), bool(state.gained)) == (1, True)
    assert not bool(after.terminated)
    state, after = step(jax.random.key(4), state, jnp.array([2 - kind, 2 - kind]), game)
    # The other style teaches nothing. Outcome: (type 3 + level) 3 + manner.
    assert (int(state.level), bool(after.terminated), bool(after.truncated)) == (1, True, False)
    assert int(dialogue.outcome(state, game)) == (kind * 3 + 1) * 3 + 2 - kind
    assert float(after.reward) == 0.0
    assert game.pad_token not in after.observation


def test_a_conversation_that_is_over_stays_as_it_is():
    state, _ = reset(jax.random.key(0), SMALL)
    for _ in range(2):
        state, _ = step(jax.random.key(1), state, jnp.array([1]), SMALL)
    again, after = step(jax.random.key(2), state, jnp.array([2]), SMALL)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert bool(after.terminated)


def test_lesson_has_no_more_than_its_parts():
    game = dialogue.make(learn_range=(1.0, 1.0))
    state, _ = reset(jax.random.key(0), game)
    levels = []
    for turn in range(3):
        state, _ = step(jax.random.key(turn), state, jnp.array([1, 1]), game)
        levels.append((int(state.level), bool(state.gained)))
    assert levels == [(1, True), (2, True), (2, False)]


def test_reset_and_step_have_one_structure():
    one = jax.eval_shape(dialogue.reset, jax.random.key(0), GAME)
    two = jax.eval_shape(dialogue.step, jax.random.key(0), one[0], jnp.zeros(2, jnp.int32), GAME)
    assert one == two


def test_observations_and_utterances_fit_their_specs():
    env = dialogue.environment(GAME)
    assert isinstance(env.action_spec, ArraySpec)
    assert isinstance(env.observation_spec, ArraySpec)
    _, first = jax.jit(env.reset)(jax.random.key(0), env.params)
    assert first.observation.shape == env.observation_spec.shape == (16,)
    assert first.observation.dtype == env.observation_spec.dtype
    assert int(first.observation.max()) == env.observation_spec.high
    utterances = dialogue_exact.enumerate_utterances(GAME)
    assert (utterances.shape[1:], utterances.max()) == (env.action_spec.shape, env.action_spec.high)


def test_parameters_can_be_swept():
    rates = jnp.array([0.0, 1.0])
    games = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), GAME)
    games = games._replace(learn_probs=jnp.stack([jnp.zeros(3), jnp.ones(3)]))
    state, _ = jax.jit(jax.vmap(dialogue.reset, in_axes=(None, 0)))(jax.random.key(0), games)
    state, _ = jax.jit(jax.vmap(dialogue.step, in_axes=(None, 0, None, 0)))(
        jax.random.key(1), state, jnp.array([1, 1]), games
    )
    np.testing.assert_array_equal(state.level, rates)


def test_judge_is_antisymmetric_and_agrees_with_its_table():
    table = np.asarray(dialogue.outcome_preference(UNEVEN))
    np.testing.assert_allclose(table + table.T, 1.0, atol=1e-6)
    shape = (UNEVEN.num_types, UNEVEN.num_parts + 1, UNEVEN.num_words)
    for one, two in [(5, 5), (0, 17), (30, 11)]:
        states = []
        for row in (one, two):
            kind, level, manner = map(jnp.asarray, np.unravel_index(row, shape))
            state, _ = reset(jax.random.key(0), UNEVEN)
            states.append(state._replace(student_type=kind, level=level, manner=manner))
            assert int(dialogue.outcome(states[-1], UNEVEN)) == row
        (a, b), scores = states, np.asarray(UNEVEN.scores)
        expected = sigmoid(
            scores[int(a.student_type), int(a.level)]
            - scores[int(b.student_type), int(b.level)]
            + 0.8 * float(UNEVEN.manners[a.manner, b.manner])
        )
        np.testing.assert_allclose(table[one, two], expected, rtol=1e-5)
        np.testing.assert_allclose(dialogue.preference(a, b, UNEVEN), expected, rtol=1e-5)


def test_judge_is_bradley_terry_without_manners_and_cyclic_with_them():
    plain = GAME._replace(cyclic=jnp.array(0.0))
    table = np.asarray(dialogue.outcome_preference(plain), np.float64)
    odds, scores = np.log(table / (1 - table)), np.asarray(dialogue.outcome_scores(plain))
    np.testing.assert_allclose(odds, scores[:, None] - scores[None, :], atol=1e-4)
    table = np.asarray(dialogue.outcome_preference(GAME))
    # Same student, same lesson, three manners: each beats the next with odds e^0.5.
    cycle = [table[0, 1], table[1, 2], table[2, 0]]
    np.testing.assert_allclose(cycle, sigmoid(0.5), rtol=1e-5)


def test_short_sighted_judge_agrees_with_its_states():
    state, _ = reset(jax.random.key(0), GAME)
    one = state._replace(gained=jnp.array(True), manner=jnp.array(1))
    two = state._replace(gained=jnp.array(False), manner=jnp.array(0))
    np.testing.assert_allclose(
        dialogue.turn_preference(one, two, GAME), sigmoid(2 - 0.5), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_types": 1}, "num_types must be at least 2, got 1"),
        ({"num_turns": 0}, "num_turns"),
        ({"utterance_length": 0}, "utterance_length"),
        ({"num_parts": 0}, "num_parts"),
        ({"reveal": 1.2}, "reveal must lie in"),
        ({"learn_range": (0.5, -0.1)}, "learn_range"),
    ],
)
def test_refuses_games_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        dialogue.make(**arguments)
