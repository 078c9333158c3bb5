"""Quantile dynamic programming against its definition and against known biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular

TWO = np.array([[0.6, 0.4], [0.2, 0.8]])
PAYS = np.array([1.0, 0.0])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def by_definition(quantiles, transition, reward, discount):
    """The definition, one state and one level at a time."""
    size, count = quantiles.shape
    found = np.zeros_like(quantiles)
    for x in range(size):
        atoms = [(reward[x] + discount * quantiles[y, j], transition[x, y] / count)
                 for y in range(size) for j in range(count)]  # fmt: skip
        atoms.sort()
        for i in range(count):
            level, reached = (2 * i + 1) / (2 * count) - 1e-12, 0.0
            for atom, weight in atoms:
                reached += weight
                if reached >= level:
                    found[x, i] = atom
                    break
    return found


def test_a_constant_return_is_exact():
    found = tabular.quantile_fixed_point(jnp.ones((1, 1)), jnp.array([0.25]), 0.5, 3)
    np.testing.assert_allclose(found, 0.5, atol=1e-14)


@pytest.mark.parametrize("seed", [0, 1])
def test_step_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    transition, reward = rng.dirichlet(np.full(4, 0.5), 4), rng.normal(size=4)
    quantiles = rng.normal(size=(4, 5))
    found = tabular.quantile_dp_step(
        jnp.array(quantiles), jnp.array(transition), jnp.array(reward), 0.8
    )
    expected = by_definition(quantiles, transition, reward, 0.8)
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_ties_go_to_the_lower_atom():
    # One half from each state: of two atoms each, the levels 1/4 and 3/4 are met exactly.
    found = tabular.quantile_dp_step(
        jnp.array([[0.0, 1.0], [2.0, 3.0]]), jnp.full((2, 2), 0.5), jnp.zeros(2), 1.0
    )
    np.testing.assert_array_equal(found, [[0, 2], [0, 2]])


@pytest.fixture(scope="module")
def truth():
    with jax.enable_x64(True):
        support = jnp.linspace(0, 10, 4001)
        laws = tabular.categorical_fixed_point(jnp.array(TWO), jnp.array(PAYS), 0.9, support)
        return jnp.broadcast_to(support, laws.shape), laws


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_atoms", "error"), [(11, 0.61174), (31, 0.19644), (101, 0.04519), (301, 0.01352)]
)
def test_known_biases(truth, num_atoms, error):
    quantiles = tabular.quantile_fixed_point(jnp.array(TWO), jnp.array(PAYS), 0.9, num_atoms)
    weights = jnp.full(quantiles.shape, 1 / num_atoms)
    found = tabular.wasserstein_distance(quantiles, weights, *truth).max()
    np.testing.assert_allclose(found, error, atol=1e-5)


def test_fixed_point_is_fixed_and_vmaps():
    rng = np.random.default_rng(3)
    tables = jnp.array(rng.dirichlet(np.ones(3), (2, 3)))
    reward = jnp.array(rng.random(3))
    many = jax.vmap(lambda t: tabular.quantile_fixed_point(t, reward, 0.9, 7))(tables)
    for table, found in zip(tables, many, strict=True):
        moved = tabular.quantile_dp_step(found, table, reward, 0.9)
        np.testing.assert_allclose(moved, found, atol=1e-12)


def test_sweeps_contract_the_largest_distance():
    rng = np.random.default_rng(5)
    table, reward = jnp.array(rng.dirichlet(np.ones(4), 4)), jnp.array(rng.random(4))
    laws = [jnp.sort(jnp.array(rng.normal(size=(4, 6)))) for _ in range(2)]
    before = jnp.abs(laws[0] - laws[1]).max()
    after = [tabular.quantile_dp_step(law, table, reward, 0.7) for law in laws]
    assert jnp.abs(after[0] - after[1]).max() <= 0.7 * before


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (
            lambda: tabular.quantile_dp_step(jnp.ones((3, 2)), jnp.eye(2), jnp.ones(2), 0.9),
            "quantiles",
        ),
        (
            lambda: tabular.quantile_dp_step(jnp.ones((2, 2)), jnp.eye(2), jnp.ones(3), 0.9),
            "reward",
        ),
        (lambda: tabular.quantile_fixed_point(jnp.eye(2), jnp.ones(2), 0.9, 0), "num_quantiles"),
    ],
)
def test_refuses_what_is_wrong(call, word):
    with pytest.raises(ValueError, match=word):
        call()
