"""The Bradley-Terry loss: numbers, invariance, and what it cannot represent."""

import jax
import jax.numpy as jnp
import numpy as np

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
