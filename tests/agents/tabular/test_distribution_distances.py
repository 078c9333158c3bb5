"""Distances of laws against hand-made numbers, SciPy, and the integral on a fine grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bellmax.agents import tabular


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_by_hand():
    # A point at 0 against halves at -1 and 2: F - G is -1/2 on (-1, 0) and 1/2 on (0, 2).
    point = (jnp.zeros(1), jnp.ones(1))
    pair = (jnp.array([2.0, -1.0]), jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(tabular.wasserstein_distance(*point, *pair), 1.5, rtol=1e-14)
    np.testing.assert_allclose(tabular.cramer_distance(*point, *pair), np.sqrt(0.75), rtol=1e-14)
    # Signed weights: 1.5 and -0.5 at 0 and 1 against a point at 1: |F - G| is 1.5 on (0, 1).
    signed = (jnp.array([0.0, 1.0]), jnp.array([1.5, -0.5]))
    found = tabular.wasserstein_distance(*signed, jnp.ones(1), jnp.ones(1))
    np.testing.assert_allclose(found, 1.5, rtol=1e-14)


def test_against_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 40)), rng.normal(1, 2, size=(3, 25))
    masses, others = rng.dirichlet(np.ones(40), 3), rng.dirichlet(np.ones(25), 3)
    arrays = tuple(map(jnp.array, (first, masses, second, others)))
    found = tabular.wasserstein_distance(*arrays)
    energy = tabular.cramer_distance(*arrays)
    for i in range(3):
        laws = (first[i], second[i], masses[i], others[i])
        np.testing.assert_allclose(found[i], stats.wasserstein_distance(*laws), rtol=1e-12)
        # SciPy's energy distance is the root of twice the squared Cramer distance.
        expected = stats.energy_distance(*laws) / np.sqrt(2)
        np.testing.assert_allclose(energy[i], expected, rtol=1e-12)


def test_on_a_support_they_are_the_same():
    rng = np.random.default_rng(1)
    support = np.sort(rng.normal(size=7))
    first, second = rng.dirichlet(np.ones(7), (2, 3))
    grid = jnp.broadcast_to(jnp.array(support), (3, 7))
    arrays = (grid, jnp.array(first), grid, jnp.array(second))
    on_support = (jnp.array(first), jnp.array(second), jnp.array(support))
    np.testing.assert_allclose(
        tabular.categorical_wasserstein(*on_support), tabular.wasserstein_distance(*arrays)
    )
    np.testing.assert_allclose(
        tabular.categorical_cramer(*on_support), tabular.cramer_distance(*arrays)
    )


def test_leading_axes_are_broadcast():
    samples, weights = jnp.arange(4.0), jnp.full(4, 0.25)
    points = jnp.array([[0.0], [3.0], [10.0]])
    found = tabular.wasserstein_distance(samples, weights, points, jnp.ones((3, 1)))
    np.testing.assert_allclose(found, [1.5, 1.5, 8.5])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda a: tabular.wasserstein_distance(a, a[:2], a, a), "weights"),
        (lambda a: tabular.cramer_distance(a, a, a, a[:2]), "other_weights"),
        (lambda a: tabular.categorical_wasserstein(a, a[:2], a), "other"),
        (lambda a: tabular.categorical_cramer(a, a, a[:2]), "probs"),
    ],
)
def test_refuses_what_does_not_fit(call, word):
    with pytest.raises(ValueError, match=word):
        call(jnp.arange(3.0))
