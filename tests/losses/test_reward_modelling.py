"""Reward and preference models: numbers, invariance, and what a reward cannot represent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

CHOSEN, REJECTED = jnp.array([1.2, 0.3, -0.5]), jnp.array([0.2, 0.8, -1.5])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-7)


def test_values():
    found = losses.bradley_terry_loss(CHOSEN, REJECTED)
    assert_close(found, [0.31326169, 0.97407698, 0.31326169])
    margin = losses.bradley_terry_loss(CHOSEN, REJECTED, margin=0.5)
    assert_close(margin.mean(), 0.75380522)
    soft = losses.bradley_terry_loss(CHOSEN, REJECTED, label_smoothing=jnp.array([0.1, 0.6, 0.0]))
    assert_close(soft, [0.41326169, 0.67407698, 0.31326169])


def test_centering():
    # (r_w + r_l)^2 = 1.96, 1.21, 4: mean 2.39.
    found = losses.bradley_terry_loss(CHOSEN, REJECTED, centering=0.01)
    assert_close(found - losses.bradley_terry_loss(CHOSEN, REJECTED), [0.0196, 0.0121, 0.04])
    assert_close(found.mean(), 0.53353345 + 0.0239)
    huge = jnp.full(3, 1e30)
    assert_close(losses.bradley_terry_loss(huge, huge), np.full(3, np.log(2)))
    with pytest.raises(ValueError, match="centering"):
        losses.bradley_terry_loss(CHOSEN, REJECTED, centering=-0.01)


def test_margins_of_each_pair():
    found = losses.bradley_terry_loss(CHOSEN, REJECTED, margin=jnp.array([1.0, -0.5, 1.0]))
    assert_close(found, np.full(3, np.log(2)))


def test_a_common_shift_changes_nothing():
    shift = jnp.array([5.0, -3.0, 0.1])
    found = losses.bradley_terry_loss(CHOSEN + shift, REJECTED + shift)
    np.testing.assert_allclose(found, losses.bradley_terry_loss(CHOSEN, REJECTED), rtol=1e-5)


def test_cyclic_preferences_have_equal_rewards():
    # 1 beats 2 beats 3 beats 1, each with chance 5/9: equal rewards are stationary, at log 2.
    beats = jnp.array([[1 / 2, 5 / 9, 4 / 9], [4 / 9, 1 / 2, 5 / 9], [5 / 9, 4 / 9, 1 / 2]])

    def loss(rewards):
        chosen = jnp.broadcast_to(rewards[:, None], (3, 3))
        return jnp.sum(beats * losses.bradley_terry_loss(chosen, chosen.T)) / jnp.sum(beats)

    value, slope = jax.value_and_grad(loss)(jnp.full(3, 0.4))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_preference_model_by_hand():
    # Half of .8 + .4, -.2 - .6 and 1.5 + 2.
    forward, backward = jnp.array([0.8, -0.2, 1.5]), jnp.array([-0.4, 0.6, -2.0])
    logits = losses.antisymmetric_logits(forward, backward)
    assert_close(logits, [0.6, -0.4, 1.75])
    assert_close(jax.nn.sigmoid(logits), [0.64565631, 0.40131234, 0.85195280])
    labels = jnp.array([0.9, 0.4, 1.0])
    found = losses.pairwise_preference_loss(logits, labels)
    assert_close(found, [0.49748795, 0.67301525, 0.16022415])
    assert_close(found.mean(), 0.44357578)
    swapped = losses.pairwise_preference_loss(
        losses.antisymmetric_logits(backward, forward), 1 - labels
    )
    assert_close(swapped, found)


def test_preference_model_of_a_reward_is_bradley_terry():
    found = losses.pairwise_preference_loss(CHOSEN - REJECTED, jnp.ones(3))
    assert_close(found, losses.bradley_terry_loss(CHOSEN, REJECTED))


def test_cyclic_preferences_fit_a_preference_model():
    # The logits of the game itself are stationary, at the entropy of 5/9 on every pair.
    beats = jnp.array([[1 / 2, 5 / 9, 4 / 9], [4 / 9, 1 / 2, 5 / 9], [5 / 9, 4 / 9, 1 / 2]])
    pairs = 1 - jnp.eye(3)

    def loss(logits):
        return jnp.sum(pairs * losses.pairwise_preference_loss(logits, beats)) / 6

    value, slope = jax.value_and_grad(loss)(jnp.log(beats / beats.T))
    np.testing.assert_allclose(value, 0.68696160, rtol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_labels_get_no_gradient():
    slope = jax.grad(lambda p: losses.pairwise_preference_loss(CHOSEN, p).sum())(jnp.full(3, 0.3))
    np.testing.assert_array_equal(slope, np.zeros(3))
