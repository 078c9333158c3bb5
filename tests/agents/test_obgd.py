"""Overshooting-bounded steps: by hand, within their bound, and plain TD where it does not bind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import optimizers


def test_three_transitions_by_hand():
    # A linear value of three features at discount .99, trace decay .8, kappa 2; the episode ends
    # with the third. The spec's numbers, whose first line is checked here: delta = 1, |z| = 1.5,
    # M = 2 * 1.5 = 3, so that a third of z is added.
    features = np.array([[1, 0, 0.5], [0, 1, -1], [0.2, 0.2, 0]])
    rewards, ends = [1.0, -0.5, 3.0], [False, False, True]
    expected = [
        [0.333333333, 0, 0.166666667],
        [0.289149694, -0.055787423, 0.200362270],
        [0.469175042, 0.160087007, 0.096262049],
    ]
    with jax.enable_x64(True):
        weights = trace = jnp.zeros(3)
        for place in range(3):
            after = 0.0 if ends[place] else weights @ features[place + 1]
            error = rewards[place] + 0.99 * after - weights @ features[place]
            weights, trace = optimizers.obgd_step(
                weights,
                trace,
                jnp.asarray(features[place]),
                error,
                discount=0.99,
                trace_decay=0.8,
                reset=ends[place],
            )
            np.testing.assert_allclose(weights, expected[place], atol=1e-9)
        np.testing.assert_array_equal(trace, np.zeros(3))


@pytest.mark.parametrize(
    ("trace", "error", "expected"),
    [([0.1, 0.05], 0.3, [1.03, 1.015]), ([1.0, -2.0], 3.0, [7 / 6, 2 / 3])],
)
def test_single_steps_by_hand(trace, error, expected):
    step = optimizers.obgd_step(
        jnp.ones(2), jnp.zeros(2), jnp.array(trace), error, discount=0.9, trace_decay=0.9
    )
    np.testing.assert_allclose(step[0], expected, rtol=1e-6)


def test_no_linear_prediction_overshoots():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.uniform(-1, 1, (500, 12)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(500, 12)), jnp.float32)
    targets = jnp.asarray(10 * rng.normal(size=500), jnp.float32)

    def errors_of_one(w, x, y):
        before = y - w @ x
        moved, _ = optimizers.obgd_step(w, jnp.zeros(12), x, before, discount=0.0, trace_decay=0.0)
        return before, y - moved @ x, jnp.abs(moved - w).sum()

    before, after, length = jax.jit(jax.vmap(errors_of_one))(weights, features, targets)
    share = 1 - after / before
    assert share.min() > 0
    assert share.max() <= 0.5 + 1e-4
    assert length.max() <= 0.5 + 1e-5


def test_small_steps_are_plain_temporal_differences():
    gradient, error = jnp.array([0.3, -0.2]), jnp.array(0.5)
    moved, trace = optimizers.obgd_step(
        jnp.zeros(2),
        jnp.array([0.4, 0.1]),
        gradient,
        error,
        discount=0.9,
        trace_decay=0.5,
        learning_rate=0.01,
    )
    expected = 0.45 * jnp.array([0.4, 0.1]) + gradient
    np.testing.assert_allclose(trace, expected, rtol=1e-6)
    np.testing.assert_allclose(moved, 0.01 * 0.5 * expected, rtol=1e-6)
    # Of both signs alike.
    turned, _ = optimizers.obgd_step(
        jnp.zeros(2),
        -jnp.array([0.4, 0.1]),
        -gradient,
        -error,
        discount=0.9,
        trace_decay=0.5,
        learning_rate=0.01,
    )
    np.testing.assert_allclose(turned, moved, rtol=1e-6)


def test_trees_traced_resets_and_low_precision():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.zeros(3)}
    trace = jax.tree.map(jnp.zeros_like, params)
    gradient = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def step(reset):
        return optimizers.obgd_step(
            params, trace, gradient, jnp.array(2.0), discount=0.9, trace_decay=0.8, reset=reset
        )

    moved, kept = step(jnp.array(False))
    assert moved["w"].dtype == jnp.bfloat16
    # Nine entries of 1: M = 2 * 2 * 9 = 36, the step 2 / 36 each.
    np.testing.assert_allclose(moved["b"], np.full(3, 2 / 36), rtol=1e-6)
    np.testing.assert_array_equal(kept["b"], np.ones(3))
    np.testing.assert_array_equal(step(jnp.array(True))[1]["w"], np.zeros((2, 3)))
