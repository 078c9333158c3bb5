"""What the GPO family regularises: a squared log-ratio on the data, which is a KL only on policy.

With `squared` and labels smoothed by 1/2, a pair's loss is (beta rho)^2 + 1: half of its excess at
beta = 1 is the offline regulariser, rho^2 / 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses


def regulariser(chosen_log_ratios, rejected_log_ratios):
    smoothed = losses.gpo_loss(
        chosen_log_ratios,
        rejected_log_ratios,
        convex_fn=losses.squared,
        beta=1.0,
        label_smoothing=0.5,
    )
    return (smoothed - 1) / 2


def expected_regulariser(logits, reference, data):
    """Mean over two independent draws from `data`, enumerated."""
    ratios = jax.nn.log_softmax(logits) - jnp.log(reference)
    size = logits.size
    chosen = jnp.broadcast_to(ratios[:, None], (size, size))
    return jnp.sum(regulariser(chosen, chosen.T) * data[:, None] * data[None, :])


POLICY = jnp.array([0.5, 0.3, 0.15, 0.05])
UNIFORM = jnp.full(4, 0.25)
KL_GRADIENT = np.array([0.22448643, -0.01855583, -0.11324999, -0.09268061])


def kl(logits, reference):
    log_probs = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_probs) * (log_probs - jnp.log(reference)))


def test_kl_and_its_gradient():
    value, slope = jax.value_and_grad(kl)(jnp.log(POLICY), UNIFORM)
    np.testing.assert_allclose(value, 0.24417432, rtol=1e-6)
    np.testing.assert_allclose(slope, KL_GRADIENT, atol=1e-7)


def test_on_policy_pairs_give_twice_the_kl_gradient():
    slope = jax.grad(expected_regulariser)(jnp.log(POLICY), UNIFORM, POLICY)
    np.testing.assert_allclose(slope, 2 * KL_GRADIENT, atol=2e-7)


def test_other_pairs_do_not():
    slope = jax.grad(expected_regulariser)(
        jnp.log(POLICY), UNIFORM, jnp.array([0.1, 0.2, 0.3, 0.4])
    )
    np.testing.assert_allclose(slope, [0.2768782, 0.34942615, 0.10825092, -0.73455527], atol=1e-6)
    cosine = slope @ KL_GRADIENT / (np.linalg.norm(slope) * np.linalg.norm(KL_GRADIENT))
    np.testing.assert_allclose(cosine, 0.4792541, rtol=1e-5)


def test_blind_where_there_is_no_data():
    # Gradient flow on responses 1 and 2 alone equalises them and never sees the third one.
    reference, data = jnp.full(3, 1 / 3), jnp.array([0.5, 0.5, 0.0])

    def step(_, x):
        return x - 0.5 * jax.grad(expected_regulariser)(x, reference, data)

    logits = jax.lax.fori_loop(0, 200, step, jnp.log(jnp.array([0.1, 0.3, 0.6])))
    np.testing.assert_allclose(
        jax.nn.softmax(logits), [0.18301270, 0.18301270, 0.63397460], rtol=1e-5
    )
    np.testing.assert_allclose(expected_regulariser(logits, reference, data), 0, atol=1e-10)
    np.testing.assert_allclose(kl(logits, reference), 0.18809641, rtol=1e-5)


@pytest.mark.parametrize("centre", [0.0, 3.0, -5.0])
def test_gaussian_policy_far_away_and_hardly_regularised(centre):
    # N(m, 1) against N(0, 1): h(y) = m y - m^2 / 2; data N(c, s^2): the mean is m^2 s^2, the KL
    # m^2 / 2 = 4.5. Gauss-Hermite quadrature of order 5 is exact for squares.
    mean, spread = 3.0, 0.01
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    with jax.enable_x64(True):
        ratios = jnp.asarray(mean * (centre + spread * nodes) - mean**2 / 2)
        chosen = jnp.broadcast_to(ratios[:, None], (5, 5))
        total = jnp.sum(regulariser(chosen, chosen.T) * np.outer(weights, weights))
    np.testing.assert_allclose(total, 0.0009, rtol=1e-6)
