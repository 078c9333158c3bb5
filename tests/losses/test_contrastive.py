"""Contrastive preference learning: the specification's numbers, invariances and consistency."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

POSITIVE, NEGATIVE = jnp.array([[-3.0], [-5.0], [-2.0]]), jnp.array([[-6.0], [-4.0], [-9.0]])
ONES = jnp.ones((3, 1))


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-7)


def test_values():
    expected = {
        1.0: [0.55435524, 0.74439666, 0.40318605],
        0.5: [0.69314718, 0.85435524, 0.57593942],
    }
    for bias, values in expected.items():
        found = losses.cpl_loss(POSITIVE, NEGATIVE, ONES, ONES, alpha=0.1, bias=bias)
        assert_close(found, values)


def test_gradients_with_respect_to_scores():
    # At alpha = 1 a single step's log-probability is the score itself.
    def total(w, r):
        return losses.cpl_loss(w, r, ONES, ONES, alpha=1.0, bias=0.5).sum()

    to_chosen, to_rejected = jax.grad(total, argnums=(0, 1))(0.1 * POSITIVE, 0.1 * NEGATIVE)
    assert_close(to_chosen[:, 0], [-0.5, -0.57444252, -0.43782350])
    assert_close(to_rejected, -to_chosen / 2)


@pytest.mark.parametrize(
    ("bias", "expected"), [(1.0, [0, 0, 0]), (0.5, [-0.25, -0.28722126, -0.21891175])]
)
def test_likelihood_matters_only_below_bias_one(bias, expected):
    def shifted(shift):
        w, r = 0.1 * POSITIVE + shift[:, None], 0.1 * NEGATIVE + shift[:, None]
        return losses.cpl_loss(w, r, ONES, ONES, alpha=1.0, bias=bias).sum()

    assert_close(jax.grad(shifted)(jnp.zeros(3)), expected)


def test_discount():
    chosen = jnp.array([[-1.0, -1.5, -0.5], [-2.0, -1.0, -2.0]])
    rejected = jnp.array([[-2.0, -2.0, -2.0], [-1.0, -1.0, -2.0]])
    ones = jnp.ones((2, 3))

    def scores(x):
        return losses.segment_scores(x, ones, alpha=0.1, discount=0.9)

    assert_close(scores(chosen), [-0.2755, -0.452])
    assert_close(scores(rejected), [-0.542, -0.352])
    found = losses.cpl_loss(chosen, rejected, ones, ones, alpha=0.1, bias=0.5, discount=0.9)
    assert_close(found, [0.69539971, 0.84063911])


def test_discount_zero_counts_the_first_step_alone():
    steps = jnp.array([-1.0, -2.0, -4.0])

    def run(gamma):
        return losses.segment_scores(steps, jnp.ones(3), alpha=1.0, discount=gamma)

    np.testing.assert_allclose(run(0.0), -1.0)
    # The derivative at 0 is the second step's term.
    np.testing.assert_allclose(jax.grad(run)(0.0), -2.0)


def test_the_power_of_the_discount_is_the_position():
    steps, mask = jnp.array([jnp.nan, -2.0]), jnp.array([0, 1])
    found = losses.segment_scores(steps, mask, alpha=1.0, discount=0.5)
    np.testing.assert_allclose(found, -1.0)


def test_segments_may_differ_in_length():
    long = jnp.concatenate([NEGATIVE, jnp.full((3, 2), jnp.nan)], axis=1)
    mask = jnp.array([[1, 0, 0]] * 3)
    found = losses.cpl_loss(POSITIVE, long, ONES, mask)
    np.testing.assert_allclose(found, losses.cpl_loss(POSITIVE, NEGATIVE, ONES, ONES))


def test_dense_ranking():
    segments = jnp.array([-0.3, -0.5, -0.2, -0.9])[:, None]
    ones, ranks = jnp.ones((4, 1)), jnp.array([2.0, 1.0, 3.0, 0.0])
    found = losses.cpl_dense_loss(segments, ones, ranks, alpha=1.0, bias=0.5)
    assert_close(found, 0.67012251)
    # A monotone change of the ranking changes nothing, and neither does the order of segments.
    order = jnp.array([3, 1, 0, 2])
    again = losses.cpl_dense_loss(segments[order], ones, jnp.exp(ranks[order]), alpha=1.0, bias=0.5)
    np.testing.assert_allclose(again, found, rtol=1e-6)


def test_dense_ranking_of_two_is_the_pair_and_ties_make_none():
    pair = jnp.array([[-3.0], [-6.0]])
    dense = losses.cpl_dense_loss(pair, jnp.ones((2, 1)), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(
        dense, losses.cpl_loss(pair[0], pair[1], jnp.ones(1), jnp.ones(1)), rtol=1e-6
    )

    def tied(x):
        return losses.cpl_dense_loss(x, jnp.ones((2, 1)), jnp.zeros(2))

    assert tied(pair) == 0
    np.testing.assert_array_equal(jax.grad(tied)(pair), 0)


def test_log_ratios_give_cpl_kl():
    chosen, rejected = jnp.array([[0.5], [-0.5], [0.8]]), jnp.array([[-0.2], [0.6], [-1.0]])
    found = losses.cpl_loss(chosen, rejected, ONES, ONES, alpha=0.1, bias=1.0)
    assert_close(found.mean(), 0.67187007)
    found = losses.cpl_loss(chosen, rejected, ONES, ONES, alpha=0.2, bias=0.75)
    assert_close(found, [0.63025819, 0.79265291, 0.55011189])


@pytest.mark.parametrize(
    ("bias", "least", "policy"),
    [
        (
            1.0,
            0.32272330,
            [[0.26161364, 0.73838636], [0.62226221, 0.37773779], [0.88727865, 0.11272135]],
        ),
        (
            0.75,
            0.37303854,
            [[0.34049746, 0.65950254], [0.59164339, 0.40835661], [0.82908902, 0.17091098]],
        ),
        (
            0.5,
            0.42563771,
            [[0.40038856, 0.59961144], [0.56666142, 0.43333858], [0.73943290, 0.26056710]],
        ),
    ],
)
def test_consistency_in_a_table(bias, least, policy):
    # Three states, two actions, all segments of two steps, labels from the optimal advantages: the
    # optimal policy (the first row) is where the gradient vanishes, for bias 1 only.
    following, discount, alpha = np.array([[1, 2], [0, 2], [1, 0]]), 0.9, 0.5
    optimal = np.array(
        [[0.26161364, 0.73838636], [0.62226221, 0.37773779], [0.88727865, 0.11272135]]
    )
    segments = [
        ((s, a), (int(following[s, a]), b))
        for s, a, b in itertools.product(range(3), range(2), range(2))
    ]
    states = jnp.array([[step[0] for step in segment] for segment in segments])
    actions = jnp.array([[step[1] for step in segment] for segment in segments])
    advantage = alpha * np.log(optimal)[states, actions] @ np.array([1, discount])
    beats = 1 / (1 + np.exp(-(advantage[:, None] - advantage[None, :])))
    pairs = np.array(list(itertools.product(range(12), range(12))))

    def loss(logits):
        steps = jax.nn.log_softmax(logits)[states, actions]
        values = losses.cpl_loss(
            steps[pairs[:, 0]],
            steps[pairs[:, 1]],
            jnp.ones((144, 2)),
            jnp.ones((144, 2)),
            alpha=alpha,
            bias=bias,
            discount=discount,
        )
        # Mean over all ordered pairs of P(i beats j) times the loss of i over j.
        return jnp.mean(beats[pairs[:, 0], pairs[:, 1]] * values)

    value, slope = jax.value_and_grad(loss)(jnp.log(jnp.array(policy)))
    np.testing.assert_allclose(value, least, rtol=1e-5)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
