"""Expectations, conditional values at risk and CDFs of both kinds of laws, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

SUPPORT = np.array([-1.0, 0.0, 2.0, 5.0])
PROBS = np.array([0.1, 0.4, 0.3, 0.2])
QUANTILES = np.array([3.0, -1.0, 2.0, 0.5, 7.0])


def dual(atoms, weights, level):
    """CVaR as Rockafellar and Uryasev have it: max over t of t - E (t - X)^+ / level.

    Concave and piecewise linear in t, so that the best t is an atom.
    """
    short = np.maximum(atoms[:, None] - atoms[None, :], 0)
    return np.max(atoms - short @ weights / level)


def test_means():
    # -.1 + 0 + .6 + 1 and (3 - 1 + 2 + .5 + 7) / 5.
    found = losses.categorical_mean(jnp.asarray(PROBS, jnp.float32), jnp.asarray(SUPPORT))
    np.testing.assert_allclose(found, 1.5, rtol=1e-6)
    quantiles = jnp.asarray(QUANTILES, jnp.float32)
    np.testing.assert_allclose(losses.quantile_mean(quantiles), 2.3, rtol=1e-6)
    slope = jax.grad(losses.quantile_mean)(quantiles)
    np.testing.assert_allclose(slope, np.full(5, 0.2), rtol=1e-6)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.05, -1.0),
        (0.1, -1.0),
        # Half the mass: all of -1 and 0. Six tenths: and a third of the atom at 2.
        (0.5, -0.1 / 0.5),
        (0.6, (-0.1 + 0.1 * 2) / 0.6),
        (0.9, (-0.1 + 0.6 + 0.1 * 5) / 0.9),
        (1.0, 1.5),
    ],
)
def test_categorical_cvar(level, expected):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(PROBS), jnp.asarray(SUPPORT)]
        found = losses.categorical_cvar(*arrays, level=level)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(dual(SUPPORT, PROBS, level), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("level", "expected"),
    # Sorted: -1, .5, 2, 3, 7. Three tenths: all of -1 and half of .5.
    [(0.1, -1.0), (0.2, -1.0), (0.3, -0.75 / 1.5), (0.6, 0.5), (1.0, 2.3)],
)
def test_quantile_cvar(level, expected):
    with jax.enable_x64(True):
        found = losses.quantile_cvar(jnp.asarray(QUANTILES), level=level)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_cvar_equals_its_dual_form_and_rises_with_the_level():
    rng = np.random.default_rng(0)
    probs, quantiles = rng.dirichlet(np.ones(4), 8), rng.standard_normal((8, 6))
    levels = np.linspace(0.03, 1, 12)
    with jax.enable_x64(True):
        laws, support, atoms = (jnp.asarray(array) for array in (probs, SUPPORT, quantiles))

        @jax.jit
        @jax.vmap
        def both(level):
            return jnp.stack(
                [
                    losses.categorical_cvar(laws, support, level=level),
                    losses.quantile_cvar(atoms, level=level),
                ]
            )

        found = np.asarray(both(jnp.asarray(levels)))
    for i, level in enumerate(levels):
        for row in range(8):
            assert found[i, 0, row] == pytest.approx(dual(SUPPORT, probs[row], level))
            assert found[i, 1, row] == pytest.approx(dual(quantiles[row], np.full(6, 1 / 6), level))
    assert (np.diff(found, axis=0) >= -1e-12).all()


def test_cvar_passes_gradients_to_the_lowest_quantiles_alone():
    slope = jax.grad(lambda q: losses.quantile_cvar(q, level=0.4))(jnp.asarray(QUANTILES))
    np.testing.assert_allclose(slope, [0, 0.5, 0, 0.5, 0], atol=1e-6)


def test_level_may_be_traced_and_one_an_example():
    probs = jnp.tile(jnp.asarray(PROBS, jnp.float32), (3, 1))
    support = jnp.asarray(SUPPORT, jnp.float32)
    run = jax.jit(lambda level: losses.categorical_cvar(probs, support, level=level))
    np.testing.assert_allclose(run(jnp.array([0.1, 0.5, 1.0])), [-1, -0.2, 1.5], atol=1e-6)
    np.testing.assert_allclose(run(0.5), [-0.2] * 3, atol=1e-6)
    quantiles = jnp.tile(jnp.asarray(QUANTILES, jnp.float32), (2, 1))
    found = losses.quantile_cvar(quantiles, level=jnp.array([0.2, 1.0]))
    np.testing.assert_allclose(found, [-1, 2.3], rtol=1e-6)


@pytest.mark.parametrize("level", [0, -0.5, 1.5, float("nan")])
def test_level_out_of_range_is_refused(level):
    with pytest.raises(ValueError, match="level"):
        losses.quantile_cvar(jnp.zeros(3), level=level)
    with pytest.raises(ValueError, match="level"):
        losses.categorical_cvar(jnp.ones(3) / 3, jnp.arange(3.0), level=level)


def test_cdfs_jump_at_the_atoms():
    points = jnp.array([-2.0, -1.0, -0.5, 0.0, 4.9, 5.0, 9.0])
    found = losses.categorical_cdf(
        jnp.asarray(PROBS, jnp.float32), jnp.asarray(SUPPORT, jnp.float32), points
    )
    np.testing.assert_allclose(found, [0, 0.1, 0.1, 0.5, 0.8, 1, 1], atol=1e-6)
    found = losses.quantile_cdf(
        jnp.asarray(QUANTILES, jnp.float32), jnp.array([-1.1, -1.0, 1.0, 3.0, 7.0, jnp.inf])
    )
    np.testing.assert_allclose(found, [0, 0.2, 0.4, 0.8, 1, 1], atol=1e-6)


def test_cdf_of_a_signed_law_on_the_support_is_the_cumulative_sum():
    weights = jnp.array([[0.7, -0.4, 0.5, 0.2], [-0.1, 0.6, 0.9, -0.4]])
    support = jnp.asarray(SUPPORT, jnp.float32)
    found = losses.categorical_cdf(weights, support, jnp.tile(support, (2, 1)))
    np.testing.assert_allclose(found, np.cumsum(weights, axis=-1), atol=1e-6)


def test_mean_is_the_integral_of_the_cdf():
    # E X = z_K - integral of F from z_1 to z_K.
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(4), 3)
    inside = np.cumsum(probs, axis=-1)[:, :-1]
    with jax.enable_x64(True):
        found = losses.categorical_mean(jnp.asarray(probs), jnp.asarray(SUPPORT))
    np.testing.assert_allclose(found, SUPPORT[-1] - inside @ np.diff(SUPPORT), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: losses.categorical_mean(jnp.ones(3), jnp.arange(4.0)), "probs"),
        (lambda: losses.quantile_mean(jnp.ones(())), "quantiles"),
        (lambda: losses.quantile_mean(jnp.ones((2, 0))), "quantiles"),
        (lambda: losses.quantile_cdf(jnp.ones((2, 3)), jnp.ones(4)), "points"),
    ],
)
def test_refused_shapes(call, named):
    jaxtyping = pytest.importorskip("jaxtyping")
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)) as raised:
        call()
    if raised.type is ValueError:
        assert named in str(raised.value)
