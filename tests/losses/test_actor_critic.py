"""Losses of deterministic policies and critics against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses


def test_the_target_takes_the_least_value_unless_the_episode_ended():
    values = jnp.asarray([[1.5, -0.5], [1.5, -0.5], [2.0, 3.0]])
    rewards, discounts = jnp.asarray([0.25, 0.25, -1.0]), jnp.asarray([0.9, 0.0, 0.5])
    # .25 - .9 * .5; .25 alone; -1 + .5 * 2.
    found = losses.clipped_double_q_target(values, rewards, discounts)
    np.testing.assert_allclose(found, [-0.2, 0.25, 0.0], atol=1e-7)


@pytest.mark.parametrize("count", [1, 3])
def test_the_target_of_any_number_of_critics_is_their_least(count):
    values = np.random.default_rng(0).normal(size=(5, count)).astype(np.float32)
    found = losses.clipped_double_q_target(jnp.asarray(values), jnp.zeros(5), jnp.ones(5))
    np.testing.assert_array_equal(found, values.min(axis=1))


def test_every_critic_pays_its_squared_error():
    values, target = jnp.asarray([[1.0, 2.0]]), jnp.asarray([-0.2])
    # 1.2^2 + 2.2^2 = 1.44 + 4.84, and twice the errors.
    loss, slope = jax.value_and_grad(lambda v: losses.td3_critic_loss(v, target).sum())(values)
    np.testing.assert_allclose(loss, 6.28, rtol=1e-6)
    np.testing.assert_allclose(slope, [[2.4, 4.4]], rtol=1e-6)


def test_smoothing_by_hand():
    actions = jnp.asarray([[0.9], [0.0], [0.0], [-0.9], [0.3]])
    noise = jnp.asarray([[3.0], [1.0], [-10.0], [-1.0], [0.0]])
    # .2 * 3 is cut to .5 and .9 + .5 to 1; .2; cut to -.5; -1.1 is cut to -1; no noise.
    expected = [[1.0], [0.2], [-0.5], [-1.0], [0.3]]
    found = losses.target_policy_smoothing(actions, noise, scale=0.2, clip=0.5)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 0.5)])
def test_smoothing_stays_within_its_bounds(low, high):
    rng = np.random.default_rng(0)
    actions = rng.uniform(low, high, (500, 2)).astype(np.float32)
    noise = 100 * rng.normal(size=(500, 2)).astype(np.float32)
    found = losses.target_policy_smoothing(
        jnp.asarray(actions), jnp.asarray(noise), scale=1.0, clip=0.2, low=low, high=high
    )
    assert float(found.min()) >= low
    assert float(found.max()) <= high
    assert float(jnp.abs(found - actions).max()) <= 0.2 + 1e-6
    # The bound of the noise is reached where that of the actions lets it.
    assert float(jnp.abs(found - actions).max()) > 0.2 - 1e-6


@pytest.mark.parametrize("name", ["scale", "clip"])
def test_negative_noise_is_refused(name):
    numbers = {"scale": 0.2, "clip": 0.5, name: -0.1}
    with pytest.raises(ValueError, match=f"{name} must be in .* got -0.1"):
        losses.target_policy_smoothing(jnp.zeros((2, 1)), jnp.zeros((2, 1)), **numbers)


def test_the_gradient_through_actions_is_the_deterministic_policy_gradient():
    # Q(s, a) = 3 - (a - 2 s)^2 with a = k s: dQ/dk = -2 (k - 2) s^2, so the loss has 2 (k - 2) s^2.
    states = jnp.asarray([0.5, -1.0, 0.25])

    def loss(gain):
        return losses.deterministic_policy_loss(3 - jnp.square(gain * states - 2 * states)).sum()

    slope = jax.grad(loss)(0.5)
    np.testing.assert_allclose(slope, 2 * (0.5 - 2) * (0.25 + 1 + 0.0625), rtol=1e-6)
