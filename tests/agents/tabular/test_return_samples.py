"""Sampled returns and random cumulative functions against exact moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular

TWO = np.array([[0.6, 0.4], [0.2, 0.8]])
PAYS = np.array([1.0, 0.0])
GRID = np.linspace(0, 10, 11)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_moments_of_returns():
    found = np.asarray(
        tabular.sample_returns(
            jax.random.key(0),
            jnp.array(TWO),
            jnp.array(PAYS),
            0.9,
            num_samples=20_000,
            num_steps=120,
        )
    )
    # Exact mean and variance; five standard errors.
    np.testing.assert_allclose(found.mean(axis=1), [4.375, 2.8125], atol=5 * np.sqrt(2.1 / 2e4))
    np.testing.assert_allclose(found.var(axis=1), [2.098864256, 1.864835964], rtol=0.06)
    assert found.min() >= 0
    assert found.max() <= 10


def test_what_is_cut_off_is_replaced_by_its_mean():
    values = np.linalg.solve(np.eye(2) - 0.9 * TWO, PAYS)
    arguments = (jax.random.key(0), jnp.array(TWO), jnp.array(PAYS), 0.9)
    none = tabular.sample_returns(*arguments, num_samples=2, num_steps=0)
    np.testing.assert_allclose(none, values[:, None] * np.ones(2), rtol=1e-12)
    one = np.asarray(tabular.sample_returns(*arguments, num_samples=4000, num_steps=1))
    for state in range(2):
        np.testing.assert_allclose(
            np.unique(one[state].round(9)), np.sort(PAYS[state] + 0.9 * values).round(9)
        )
        share = np.mean(np.isclose(one[state], PAYS[state] + 0.9 * values[0]))
        np.testing.assert_allclose(share, TWO[state, 0], atol=0.04)


def test_states_are_drawn_by_their_laws():
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(9, 0.5))
    law[[0, 4, 8]] = 0
    law /= law.sum()
    # Whatever the state, the next one pays its number; discount 1/2 from then on at no reward.
    size = 10
    transition = np.zeros((size, size))
    transition[0, 1:] = law
    transition[np.arange(1, size), np.arange(1, size)] = 1
    returns = tabular.sample_returns(
        jax.random.key(1),
        jnp.array(transition),
        jnp.arange(10.0) / 2,
        0.5,
        num_samples=20_000,
        num_steps=30,
    )
    # v(i) = i: the return of state 0 is half the number of the state that it goes to.
    shares = np.bincount(np.round(2 * np.asarray(returns[0])).astype(int), minlength=size) / 20_000
    np.testing.assert_allclose(shares[1:], law, atol=5 * 0.5 / np.sqrt(20_000))
    assert np.all(shares[1:][law == 0] == 0)


def test_second_moments_of_random_cumulative_functions():
    covariance = tabular.categorical_cdf_covariance(
        jnp.array(TWO), jnp.array(PAYS), 0.9, jnp.array(GRID)
    )
    spread = np.trace(covariance, axis1=1, axis2=2)
    np.testing.assert_allclose(spread, [0.450116092, 0.411246779], atol=1e-8)
    np.testing.assert_allclose(covariance, np.swapaxes(covariance, 1, 2), atol=1e-15)
    assert np.linalg.eigvalsh(covariance).min() > -1e-14


def test_random_cumulative_functions_have_these_moments():
    fixed = np.cumsum(
        tabular.categorical_fixed_point(jnp.array(TWO), jnp.array(PAYS), 0.9, jnp.array(GRID)),
        axis=1,
    )
    found = np.asarray(
        tabular.sample_categorical_cdfs(
            jax.random.key(0),
            jnp.array(TWO),
            jnp.array(PAYS),
            0.9,
            jnp.array(GRID),
            num_samples=8000,
            num_steps=100,
        )
    )
    assert found.shape == (8000, 2, 11)
    assert np.diff(found, axis=-1).min() > -1e-12
    assert found.min() > -1e-12
    np.testing.assert_allclose(found[..., -1], 1, rtol=1e-12)
    # Five standard errors: each value has a standard deviation of at most 1/2.
    np.testing.assert_allclose(found.mean(axis=0), fixed, atol=5 * 0.5 / np.sqrt(8000))
    spread = np.square(found - fixed).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(spread, [0.450116, 0.411247], rtol=0.06)


def test_the_covariance_solves_its_equation():
    transition, reward = np.array([[0.3, 0.7], [0.9, 0.1]]), np.array([0.31, 0.84])
    arrays = (jnp.array(transition), jnp.array(reward), 0.8)
    support = jnp.linspace(0, 5, 11)
    covariance = np.asarray(tabular.categorical_cdf_covariance(*arrays, support))
    fixed = np.cumsum(tabular.categorical_fixed_point(*arrays, support), axis=1)[:, :-1]
    matrices, _ = tabular.categorical_cdf_matrix(arrays[1], 0.8, support)
    for x in range(2):
        inner = np.zeros((10, 10))
        for y in range(2):
            deviation = fixed[y] - transition[x] @ fixed
            inner += transition[x, y] * (covariance[y] + np.outer(deviation, deviation))
        np.testing.assert_allclose(covariance[x], matrices[x] @ inner @ matrices[x].T, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_samples": 0, "num_steps": 3}, "num_samples"),
        ({"num_samples": 3, "num_steps": -1}, "num_steps"),
    ],
)
def test_refuses_what_is_wrong(options, word):
    arguments = (jax.random.key(0), jnp.array(TWO), jnp.array(PAYS), 0.9)
    with pytest.raises(ValueError, match=word):
        tabular.sample_returns(*arguments, **options)
    with pytest.raises(ValueError, match=word):
        tabular.sample_categorical_cdfs(*arguments, jnp.array(GRID), **options)
