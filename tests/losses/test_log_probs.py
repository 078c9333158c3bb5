"""Token and sequence log-probabilities against NumPy; KL estimators against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses


def test_token_log_probs_by_hand():
    # exp(log 1), exp(log 2), exp(log 5): probabilities 1/8, 2/8, 5/8; no position is shifted.
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [5.0, 2.0, 1.0], [1.0, 1.0, 2.0]]))
    found = losses.token_log_probs(logits, jnp.array([2, 0, 1]))
    np.testing.assert_allclose(found, np.log([5 / 8, 5 / 8, 1 / 4]), rtol=1e-6)


def test_token_log_probs_ignore_a_shift_of_logits_however_large():
    logits = jnp.array([[0.0, 1.0, -2.0]])
    for shift in (1e4, -1e4):
        found = losses.token_log_probs(logits + shift, jnp.array([1]))
        expected = losses.token_log_probs(logits, jnp.array([1]))
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_token_log_probs_gradient_is_the_residual():
    logits, tokens = jnp.array([[0.3, -1.0, 2.0], [0.0, 0.5, 1.0]]), jnp.array([0, 2])
    slope = jax.grad(lambda x: losses.token_log_probs(x, tokens).sum())(logits)
    exponentials = np.exp(logits)
    expected = np.eye(3)[tokens] - exponentials / exponentials.sum(-1, keepdims=True)
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    # Forward mode and second derivatives work too: minus the covariance of the softmax.
    curvature = jax.jacfwd(jax.jacrev(lambda x: losses.token_log_probs(x, tokens[:1])[0]))
    hessian = jax.jit(curvature)(logits[:1])
    p = exponentials[0] / exponentials[0].sum()
    np.testing.assert_allclose(hessian[0, :, 0, :], np.outer(p, p) - np.diag(p), atol=1e-6)


def test_forbidden_tokens_have_probability_zero():
    logits = jnp.array([[0.0, -jnp.inf, 0.0]])
    found = losses.token_log_probs(jnp.tile(logits, (2, 1)), jnp.array([0, 1]))
    np.testing.assert_allclose(found, [np.log(0.5), -np.inf])
    slope = jax.grad(lambda x: losses.token_log_probs(x, jnp.array([0]))[0])(logits)
    np.testing.assert_allclose(slope, [[0.5, 0.0, -0.5]], atol=1e-7)


@pytest.mark.parametrize("token", [-1, 3, 1000])
def test_a_token_outside_the_vocabulary_is_nan_and_reads_no_other_row(token):
    logits, tokens = jnp.zeros((2, 3)), jnp.array([token, 1])
    found = losses.token_log_probs(logits, tokens)
    np.testing.assert_allclose(found, [np.nan, -np.log(3)], rtol=1e-6)

    # Left out by a mask, it harms nothing.
    def run(x):
        return losses.sequence_log_probs(losses.token_log_probs(x, tokens), jnp.array([0, 1]))

    value, slope = jax.value_and_grad(run)(logits)
    np.testing.assert_allclose(value, -np.log(3), rtol=1e-6)
    np.testing.assert_allclose(slope, [[0, 0, 0], [-1 / 3, 2 / 3, -1 / 3]], atol=1e-7)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_logits_may_hold_anything(poison):
    tokens, mask = jnp.array([0, 1, 2]), jnp.array([1, 0, 1])
    clean = jnp.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0], [1.0, -1.0, 0.5]])
    run = jax.value_and_grad(
        lambda x: losses.sequence_log_probs(losses.token_log_probs(x, tokens), mask)
    )
    expected, found = run(clean), run(clean.at[1].set(poison))
    np.testing.assert_allclose(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_token_log_probs_errors():
    with pytest.raises(Exception, match="tokens"):
        losses.token_log_probs(jnp.zeros((2, 4, 3)), jnp.zeros((2, 1, 4), jnp.int32))
    with pytest.raises(Exception, match="tokens"):
        losses.token_log_probs(jnp.zeros((2, 4, 3)), jnp.zeros((2, 4)))  # pyright: ignore
    with pytest.raises(Exception, match="logits"):
        losses.token_log_probs(jnp.zeros((4, 3), jnp.int32), jnp.zeros(4, jnp.int32))


def test_sequence_log_probs_by_hand():
    values = jnp.array([[-1.0, -2.0, -4.0], [-1.0, -2.0, -4.0], [-1.0, -2.0, -4.0]])
    mask = jnp.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(losses.sequence_log_probs(values, mask), [-6, -1, 0])
    normalised = losses.sequence_log_probs(values, mask, normalise=True)
    np.testing.assert_allclose(normalised, [-3, -1, 0])


def test_fractional_masks_weigh():
    found = losses.sequence_log_probs(jnp.array([-1.0, -3.0]), jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(found, -2.5)
    found = losses.sequence_log_probs(
        jnp.array([-1.0, -3.0]), jnp.array([1.0, 0.5]), normalise=True
    )
    np.testing.assert_allclose(found, -2.5 / 1.5, rtol=1e-6)


POLICY, REFERENCE = jnp.array([0.5, 0.3, 0.15, 0.05]), jnp.array([0.1, 0.2, 0.3, 0.4])


def expected_estimate(logits, estimator, policy=POLICY):
    """Mean over samples of `policy`, enumerated; only the estimates are differentiated."""
    estimates = losses.kl_estimate(
        jax.nn.log_softmax(logits), jnp.log(REFERENCE), estimator=estimator
    )
    return policy @ estimates


def true_kl(logits):
    log_probs = jax.nn.log_softmax(logits)
    return jnp.exp(log_probs) @ (log_probs - jnp.log(REFERENCE))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    logits = jnp.log(POLICY)
    np.testing.assert_allclose(expected_estimate(logits, estimator), true_kl(logits), rtol=1e-5)


def test_k2_is_half_the_second_moment_of_the_log_ratio():
    expected = POLICY @ np.square(np.log(POLICY / REFERENCE)) / 2
    np.testing.assert_allclose(expected_estimate(jnp.log(POLICY), "k2"), expected, rtol=1e-5)


def test_k2_has_the_gradient_of_the_kl_with_samples_fixed():
    def slope(f):
        return np.asarray(jax.grad(f)(jnp.log(POLICY)))

    of_kl = slope(true_kl)
    np.testing.assert_allclose(slope(lambda x: expected_estimate(x, "k2")), of_kl, atol=1e-6)
    # The others, as the docstring warns: zero for k1, and the reverse divergence's for k3.
    np.testing.assert_allclose(slope(lambda x: expected_estimate(x, "k1")), 0, atol=1e-6)
    reverse = slope(lambda x: -REFERENCE @ jax.nn.log_softmax(x))
    np.testing.assert_allclose(slope(lambda x: expected_estimate(x, "k3")), reverse, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_never_negative_and_finite_far_away(estimator):
    ratios = jnp.array([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])

    def run(x):
        return losses.kl_estimate(x, jnp.zeros_like(x), estimator=estimator)

    assert bool(jnp.all(run(ratios) >= 0))
    assert bool(jnp.isfinite(run(ratios)).all())
    assert bool(jnp.isfinite(jax.grad(lambda x: run(x).sum())(ratios)).all())
    assert run(ratios)[3] == 0


def test_k3_keeps_its_digits_near_zero():
    # e^r - 1 - r is r^2 / 2 + r^3 / 6 for small r: 5e-7 at r = 1e-3, where float32 has to cancel.
    found = losses.kl_estimate(jnp.float32(-1e-3), jnp.float32(0), estimator="k3")
    np.testing.assert_allclose(found, 5.0017e-7, rtol=1e-3)


def test_unknown_estimator():
    with pytest.raises(ValueError, match="k4"):
        losses.kl_estimate(jnp.zeros(2), jnp.zeros(2), estimator="k4")
