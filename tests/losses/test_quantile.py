"""The quantile Huber loss: the specification's numbers, closed-form gradients, weighted targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

QUANTILES, TARGETS = np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.5, 3.0, -1.0])


def by_hand(quantiles, targets, kappa, weights):
    """Value and gradient by two loops; between the pieces the right one's slope is the left's."""
    count = len(quantiles)
    total, slopes = 0.0, np.zeros(count)
    for i, theta in enumerate(quantiles):
        level = (i + 0.5) / count
        for y, weight in zip(targets, weights, strict=True):
            error = y - theta
            tilt = abs(level - (error < 0))
            if kappa == 0:
                size, slope = abs(error), np.sign(error)
            elif abs(error) <= kappa:
                size, slope = error**2 / 2, error
            else:
                size, slope = kappa * (abs(error) - kappa / 2), kappa * np.sign(error)
            total += weight * tilt * size
            slopes[i] -= weight * tilt * slope
    return total, slopes


def run(quantiles, targets, **hyper):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array, jnp.float64) for array in (quantiles, targets)]
        if hyper.get("weights") is not None:
            hyper["weights"] = jnp.asarray(hyper["weights"], jnp.float64)
        value, slope = jax.jit(
            jax.value_and_grad(lambda x: losses.quantile_huber_loss(x, arrays[1], **hyper).sum())
        )(arrays[0])
        return np.asarray(value), np.asarray(slope)


@pytest.mark.parametrize(
    ("kappa", "expected"),
    # Specification A4; at .01 the loss over kappa is 1.4525, on its way to 1.458333.
    [(0, 1.4583333333), (1.0, 0.9166666667), (0.01, 0.014525)],
)
def test_value_of_the_specification(kappa, expected):
    value, _ = run(QUANTILES, TARGETS, kappa=kappa)
    np.testing.assert_allclose(value, expected, atol=5e-11)


def test_gradient_of_the_specification():
    _, slope = run(QUANTILES, TARGETS, kappa=1.0)
    np.testing.assert_allclose(slope, [0.1041666667, 0, -0.1041666667], atol=5e-11)


@pytest.mark.parametrize("kappa", [0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("signed", [False, True])
def test_value_and_gradient_by_loops(kappa, signed):
    rng = np.random.default_rng(0)
    quantiles, targets = rng.standard_normal(5), rng.standard_normal(7)
    weights = rng.standard_normal(7) if signed else np.full(7, 1 / 7)
    value, slope = run(quantiles, targets, kappa=kappa, weights=weights if signed else None)
    expected = by_hand(quantiles, targets, kappa, weights)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(slope, expected[1], atol=1e-12)


def test_gradient_of_the_plain_loss_is_the_cdf_minus_the_level():
    rng = np.random.default_rng(1)
    quantiles, targets = rng.standard_normal(6), rng.standard_normal(40)
    cdf = (targets[None] <= quantiles[:, None]).mean(-1)
    _, slope = run(quantiles, targets, kappa=0)
    np.testing.assert_allclose(slope, cdf - (np.arange(6) + 0.5) / 6, atol=1e-12)
    # It vanishes nowhere else than at the quantiles: 40 atoms, levels in the middle of 6 bins.
    assert (np.abs(slope) > 0).all()


def test_infinite_kappa_is_the_tilted_square():
    value, slope = run(QUANTILES, TARGETS, kappa=float("inf"))
    expected = by_hand(QUANTILES, TARGETS, 1e9, np.full(4, 0.25))
    np.testing.assert_allclose(value, expected[0])
    np.testing.assert_allclose(slope, expected[1], atol=1e-12)


def test_slope_of_an_atom_on_its_target_is_a_subgradient():
    # At the kink of the plain loss anything between the slopes beside it, -1/4 and 3/4.
    for kappa, low, high in ((0, -0.25, 0.75), (1.0, 0, 0)):
        _, slope = run(np.array([1.0, 2.0]), np.array([1.0]), kappa=kappa)
        assert low <= slope[0] <= high


def test_signed_targets_are_linear_in_the_weights():
    rng = np.random.default_rng(2)
    quantiles, targets = rng.standard_normal(4), rng.standard_normal(5)
    first, second = rng.standard_normal((2, 5))
    mixed = run(quantiles, targets, weights=0.3 * first - 2 * second)
    one, two = (run(quantiles, targets, weights=weights) for weights in (first, second))
    for index in (0, 1):
        np.testing.assert_allclose(mixed[index], 0.3 * one[index] - 2 * two[index], atol=1e-12)


def test_targets_of_weight_zero_may_hold_anything():
    weights = np.array([0.5, 0.0, 0.7, -0.2])
    clean = run(QUANTILES, TARGETS, weights=weights)
    for poison in (np.nan, np.inf, -np.inf):
        dirty = np.where(weights == 0, poison, TARGETS)
        found = run(QUANTILES, dirty, weights=weights)
        np.testing.assert_array_equal(found[0], clean[0])
        np.testing.assert_array_equal(found[1], clean[1])


def test_kappa_may_be_traced_and_one_an_example():
    quantiles = jnp.tile(jnp.asarray(QUANTILES, jnp.float32), (3, 1))
    targets = jnp.tile(jnp.asarray(TARGETS, jnp.float32), (3, 1))
    kappas = jnp.array([0.0, 1.0, 0.01])
    run = jax.jit(lambda kappa: losses.quantile_huber_loss(quantiles, targets, kappa=kappa))
    np.testing.assert_allclose(run(kappas), [1.4583333333, 0.9166666667, 0.014525], rtol=1e-5)
    slope = jax.grad(lambda kappa: run(kappa).sum())(kappas)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("kappa", [0.0, 0.7])
def test_equals_rlax(kappa):
    rlax = pytest.importorskip("rlax")
    rng = np.random.default_rng(3)
    quantiles, targets = (jnp.asarray(rng.standard_normal((4, n)), jnp.float32) for n in (5, 6))
    levels = (jnp.arange(5) + 0.5) / 5
    theirs = jax.jit(jax.vmap(lambda q, y: rlax.quantile_regression_loss(q, levels, y, kappa)))
    found = losses.quantile_huber_loss(quantiles, targets, kappa=kappa)
    np.testing.assert_allclose(found, theirs(quantiles, targets), rtol=1e-5)


@pytest.mark.parametrize(
    ("quantiles", "targets", "hyper", "named"),
    [
        ((2, 3), (3, 4), {}, "leading shape"),
        ((2, 3), (2, 0), {}, "at least one atom"),
        ((2, 0), (2, 3), {}, "at least one atom"),
        ((2, 3), (2, 4), {"kappa": -1.0}, "kappa"),
        ((2, 3), (2, 4), {"weights": jnp.ones((2, 3))}, "weights"),
    ],
)
def test_refused(quantiles, targets, hyper, named):
    jaxtyping = pytest.importorskip("jaxtyping")
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)) as raised:
        losses.quantile_huber_loss(jnp.zeros(quantiles), jnp.zeros(targets), **hyper)
    if raised.type is ValueError:
        assert named in str(raised.value)
