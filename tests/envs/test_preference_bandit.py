"""The contextual preference bandit against its formula, its duels against its matrix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular
from bellmax.envs import preference_bandit, wrappers
from bellmax.envs.environment import ArraySpec
from bellmax.envs.preference_bandit import PreferenceBandit

BANDIT = preference_bandit.make(jax.random.key(0), num_actions=4, num_features=3, num_planes=2)
# One feature, no rewards, and styles at 0, 120 and 240 degrees.
ANGLES = 2 * np.pi * np.arange(3) / 3
POINTS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)
CIRCLE = PreferenceBandit(
    reward_weights=jnp.zeros((3, 1)),
    style_weights=jnp.asarray(np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1))[
        :, None, :, None
    ],
    reward_scale=jnp.ones(()),
    cyclic_scale=jnp.ones(()),
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_matrix_by_the_formula():
    x = np.random.default_rng(0).normal(size=3)
    w, c = np.asarray(BANDIT.reward_weights), np.asarray(BANDIT.style_weights)
    expected = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            total = w[i] @ x - w[j] @ x
            for m in range(2):
                (i1, i2), (j1, j2) = c[i, m] @ x, c[j, m] @ x
                total += (i1 * j2 - i2 * j1) / 2
            expected[i, j] = sigmoid(total)
    found = preference_bandit.preference_matrix(jnp.asarray(x, jnp.float32), BANDIT)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found + found.T, 1.0, atol=1e-6)


def test_batches_of_contexts_and_vmap_agree():
    contexts = jax.random.normal(jax.random.key(1), (2, 5, 3))
    matrices = preference_bandit.preference_matrix(contexts, BANDIT)
    one = jax.jit(preference_bandit.preference_matrix)
    by_row = jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(0, None))(contexts, BANDIT)
    np.testing.assert_allclose(matrices, by_row, atol=1e-6)


def test_without_cycles_it_is_bradley_terry():
    plain = BANDIT._replace(cyclic_scale=jnp.zeros(()), reward_scale=jnp.array(0.5))
    context = jnp.array([0.3, -1.0, 0.7])
    matrix = np.asarray(preference_bandit.preference_matrix(context, plain), np.float64)
    odds = np.log(matrix / (1 - matrix))
    # Log odds add up along any path.
    np.testing.assert_allclose(odds[0, 1] + odds[1, 3], odds[0, 3], atol=1e-5)
    reward = preference_bandit.rewards(context, plain)
    np.testing.assert_allclose(odds, reward[:, None] - reward[None, :], atol=1e-5)
    np.testing.assert_allclose(reward, 0.5 * context @ plain.reward_weights.T, rtol=1e-6)


def test_styles_around_a_circle_beat_each_other_in_a_cycle():
    # sin(120 degrees) = 0.8660254: a lead of a third of a turn, times the squared feature.
    matrix = preference_bandit.preference_matrix(jnp.array([2.0]), CIRCLE)
    cycle = [matrix[0, 1], matrix[1, 2], matrix[2, 0]]
    np.testing.assert_allclose(cycle, sigmoid(4 * 0.8660254), rtol=1e-5)
    # By symmetry the equilibrium of this context is uniform, whatever the temperature.
    law = tabular.regularised_nash(matrix, jnp.full(3, 1 / 3), tau=0.1)
    np.testing.assert_allclose(law, 1 / 3, atol=1e-5)


def test_duels_follow_the_matrix():
    state, _ = preference_bandit.reset(jax.random.key(5), BANDIT)
    matrix = preference_bandit.preference_matrix(state.context, BANDIT)
    duels = jnp.array([[0, 1], [3, 2], [2, 2]])
    keys = jax.random.split(jax.random.key(2), 10_000)
    fight = jax.vmap(preference_bandit.step, in_axes=(0, None, None, None))
    _, outcomes = jax.jit(jax.vmap(fight, in_axes=(None, None, 0, None)))(
        keys, state, duels, BANDIT
    )
    expected = matrix[duels[:, 0], duels[:, 1]]
    # Five standard errors of a proportion are below 0.025.
    np.testing.assert_allclose(outcomes.reward.mean(axis=1), expected, atol=0.025)
    assert set(np.unique(outcomes.reward)) == {0.0, 1.0}


def test_a_duel_ends_the_round():
    state, first = preference_bandit.reset(jax.random.key(0), BANDIT)
    np.testing.assert_array_equal(first.observation, state.context)
    assert not bool(first.terminated)
    after_state, after = preference_bandit.step(jax.random.key(1), state, jnp.array([0, 1]), BANDIT)
    assert (bool(after.terminated), bool(after.truncated)) == (True, False)
    keys = jax.random.split(jax.random.key(2), 20)
    _, later = jax.vmap(preference_bandit.step, in_axes=(0, None, None, None))(
        keys, after_state, jnp.array([0, 1]), BANDIT
    )
    np.testing.assert_array_equal(later.reward, 0.0)


def test_reset_and_step_have_one_structure():
    one = jax.eval_shape(preference_bandit.reset, jax.random.key(0), BANDIT)
    two = jax.eval_shape(
        preference_bandit.step, jax.random.key(0), one[0], jnp.zeros(2, jnp.int32), BANDIT
    )
    assert one == two


def test_rounds_follow_each_other_under_auto_reset():
    env = wrappers.auto_reset(preference_bandit.environment(BANDIT))
    assert isinstance(env.action_spec, ArraySpec)
    assert (env.observation_spec.shape, env.action_spec.shape) == ((3,), (2,))
    state, first = jax.jit(env.reset)(jax.random.key(0), env.params)
    step = jax.jit(env.step)
    ends, contexts = [], [first.observation]
    for seed in range(3):
        state, after = step(jax.random.key(1 + seed), state, jnp.array([0, 1]), env.params)
        ends.append(bool(after.terminated))
        contexts.append(after.observation)
    # A duel, the next round's context, its duel.
    assert ends == [True, False, True]
    same = [bool((one == two).all()) for one, two in itertools.pairwise(contexts)]
    assert same == [True, False, True]


def test_rewards_have_unit_variance_over_contexts():
    bandit = preference_bandit.make(jax.random.key(3), num_actions=200, num_features=5)
    # Of 200 actions, each a sum of five squares over five: mean 1, standard error 0.045.
    np.testing.assert_allclose((bandit.reward_weights**2).sum(axis=1).mean(), 1.0, atol=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_actions": 1}, "num_actions must be at least 2, got 1"),
        ({"num_features": 0}, "num_features"),
        ({"num_planes": 0}, "num_planes"),
        ({"reward_scale": -1.0}, "reward_scale must be at least 0"),
        ({"cyclic_scale": -0.5}, "cyclic_scale"),
    ],
)
def test_refuses_bandits_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        preference_bandit.make(jax.random.key(0), **arguments)


def test_refuses_contexts_of_another_size():
    with pytest.raises(ValueError, match="context must end in 3 features"):
        preference_bandit.preference_matrix(jnp.ones(4), BANDIT)
