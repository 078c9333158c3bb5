"""Multi-turn preference optimisation: the losses of a turn, and rewards of a conversation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses


def test_policy_loss_by_hand():
    # .2 * 1.5 + .01 * .05 and -.1 * 2 + .01 * .2.
    arrays = jnp.array([-1.5, -2.0]), jnp.array([0.2, -0.1]), jnp.array([0.05, 0.2])
    found = losses.mtpo_policy_loss(*arrays, alpha=0.01)
    np.testing.assert_allclose(found, [0.3005, -0.198], rtol=1e-6)
    np.testing.assert_allclose(found.mean(), 0.05125, rtol=1e-5)
    slopes = jax.grad(lambda *a: losses.mtpo_policy_loss(*a, alpha=0.01).sum(), argnums=(0, 1, 2))(
        *arrays
    )
    np.testing.assert_allclose(slopes[0], [-0.2, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(slopes[1], [0, 0])
    np.testing.assert_allclose(slopes[2], [0.01, 0.01], rtol=1e-6)


def test_value_loss_by_hand():
    # .1 ** 2 and .15 ** 2.
    arrays = jnp.array([0.5, 0.55]), jnp.array([0.6, 0.4])
    found = losses.mtpo_value_loss(*arrays)
    np.testing.assert_allclose(found, [0.01, 0.0225], rtol=1e-5)
    np.testing.assert_allclose(found.mean(), 0.01625, rtol=1e-5)
    slopes = jax.grad(lambda *a: losses.mtpo_value_loss(*a).sum(), argnums=(0, 1))(*arrays)
    np.testing.assert_allclose(slopes[0], [-0.2, 0.3], rtol=1e-5)
    np.testing.assert_array_equal(slopes[1], [0, 0])


def test_turn_rewards_by_hand():
    kl = jnp.array([[0.1, 0.2, 0.05], [0.1, 0.2, jnp.nan], [jnp.nan, 0.2, 0.1], [jnp.inf] * 3])
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
    wins = jnp.array([0.8, 0.3, 0.6, 0.9])
    found = losses.mtpo_turn_rewards(kl, wins, mask, alpha=0.01)
    expected = [[-0.001, -0.002, 0.7995], [-0.001, 0.298, 0], [0, -0.002, 0.599], [0, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    slopes = jax.grad(
        lambda k, p: losses.mtpo_turn_rewards(k, p, mask, alpha=0.01).sum(), argnums=(0, 1)
    )(kl, wins)
    for slope in slopes:
        np.testing.assert_array_equal(slope, np.zeros_like(slope))


def test_weight_of_each_conversation():
    kl, mask = jnp.ones((2, 2)), jnp.ones((2, 2))
    found = losses.mtpo_turn_rewards(kl, jnp.zeros(2), mask, alpha=jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(found, [[-0.1, -0.1], [-0.2, -0.2]], rtol=1e-6)


def test_expected_gradient_in_one_turn():
    # With exact advantages P(y > pi) of one turn and the exact divergence, the expected gradient is
    # that of minus P(pi > stop(pi)) + alpha KL(pi, mu).
    game = jnp.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
    reference = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    policy = jax.nn.softmax(logits)

    def divergence(log_probs):
        return jnp.sum(jnp.exp(log_probs) * (log_probs - reference))

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)
        kl = jnp.full(3, divergence(log_probs))
        return policy @ losses.mtpo_policy_loss(log_probs, game @ policy, kl, alpha=0.1)

    def objective(logits):
        log_probs = jax.nn.log_softmax(logits)
        return 0.1 * divergence(log_probs) - jnp.exp(log_probs) @ game @ policy

    np.testing.assert_allclose(jax.grad(loss)(logits), jax.grad(objective)(logits), atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "alpha", "named"),
    [
        (((2, 3), (2, 3), (2, 3)), 0.1, "preferences"),
        (((2, 3), (2,), (2, 2)), 0.1, "mask"),
        (((2, 3), (2,), (2, 3)), -0.1, "alpha"),
        (((2, 3), (2,), (2, 3)), jnp.ones(3), "alpha"),
    ],
)
def test_refused(shapes, alpha, named):
    with pytest.raises(Exception, match=named):
        losses.mtpo_turn_rewards(*map(jnp.ones, shapes), alpha=alpha)
