"""Generalised advantages: numbers, the two limits, episodes that end inside a trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

REWARDS, VALUES = jnp.array([1.0, 0.0, -1.0, 2.0]), jnp.array([0.5, 0.4, 0.3, 0.2, 0.1])


def advantages(rewards, values, discounts, trace_decay):
    return jax.jit(losses.generalised_advantages)(
        rewards, values, discounts, trace_decay=trace_decay
    )


@pytest.mark.parametrize(
    ("trace_decay", "expected"),
    [
        # TD errors: 1 + .9 * .4 - .5 and so on.
        (0.0, [0.86, -0.13, -1.12, 1.89]),
        (0.95, [1.111401849, 0.294037250, 0.495950000, 1.89]),
        # Returns minus values: 2 + .9 * .1 = 2.09, -1 + .9 * 2.09 = .881, .7929, 1.71361.
        (1.0, [1.21361, 0.3929, 0.581, 1.89]),
    ],
)
def test_values(trace_decay, expected):
    found = advantages(REWARDS, VALUES, jnp.full(4, 0.9), trace_decay)
    np.testing.assert_allclose(found, expected, rtol=3e-6)


def test_turns_of_a_conversation():
    # Rewards -alpha KL with a preference of .8 at the end: errors .049, .048, .1995, and
    # .048 + .95 * .1995 = .237525, .049 + .95 * .237525 = .27464875.
    values = jnp.array([0.5, 0.55, 0.6, 0.0])
    found = advantages(
        jnp.array([-0.001, -0.002, 0.7995]), values, jnp.array([1.0, 1.0, 0.0]), 0.95
    )
    np.testing.assert_allclose(found, [0.27464875, 0.237525, 0.1995], rtol=1e-5)
    np.testing.assert_allclose(found + values[:3], [0.77464875, 0.787525, 0.7995], rtol=1e-5)


def test_what_follows_an_end_does_not_count():
    discounts = jnp.array([0.9, 0.0, 0.9, 0.9])
    found = advantages(REWARDS, VALUES, discounts, 0.95)
    np.testing.assert_allclose(found, [0.518, -0.4, 0.49595, 1.89], rtol=3e-6)
    poisoned = advantages(REWARDS.at[2].set(jnp.nan), VALUES.at[2:].set(jnp.nan), discounts, 0.95)
    np.testing.assert_array_equal(poisoned[:2], found[:2])


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_sum_over_steps_by_definition(trace_decay):
    # A_t = sum over k of (product of the decays between) delta_k, in NumPy, two rows at once.
    rng = np.random.default_rng(0)
    rewards, discounts = rng.standard_normal((2, 6)), rng.uniform(size=(2, 6))
    values = rng.standard_normal((2, 7))
    errors = rewards + discounts * values[:, 1:] - values[:, :-1]
    expected = np.zeros((2, 6))
    for t in range(6):
        for k in range(t, 6):
            expected[:, t] += (discounts[:, t:k] * trace_decay).prod(axis=1) * errors[:, k]
    with jax.enable_x64(True):
        arrays = map(jnp.asarray, (rewards, values, discounts))
        found = losses.generalised_advantages(*arrays, trace_decay=trace_decay)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_trace_decay_of_each_step():
    found = losses.generalised_advantages(
        REWARDS, VALUES, jnp.full(4, 0.9), trace_decay=jnp.array([1.0, 0.0, 1.0, 1.0])
    )
    # The second step sees its own error alone, the first one adds .9 of it.
    np.testing.assert_allclose(found, [0.86 - 0.9 * 0.13, -0.13, 0.581, 1.89], rtol=3e-6)


def test_everything_is_stopped():
    gradient = jax.grad(
        lambda *a: losses.generalised_advantages(*a[:3], trace_decay=a[3]).sum(),
        argnums=(0, 1, 2, 3),
    )(REWARDS, VALUES, jnp.full(4, 0.9), 0.5)
    for slope in gradient:
        np.testing.assert_array_equal(slope, np.zeros_like(slope))


def test_no_steps():
    found = losses.generalised_advantages(
        jnp.zeros((3, 0)), jnp.ones((3, 1)), jnp.zeros((3, 0)), trace_decay=0.5
    )
    assert found.shape == (3, 0)


@pytest.mark.parametrize(
    ("values", "trace_decay", "named"), [(4, 0.5, "values"), (5, 1.5, "trace_decay")]
)
def test_refused(values, trace_decay, named):
    with pytest.raises(ValueError, match=named):
        losses.generalised_advantages(
            REWARDS, jnp.zeros(values), jnp.ones(4), trace_decay=trace_decay
        )
