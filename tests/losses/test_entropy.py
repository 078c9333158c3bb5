"""Entropy and divergence of categorical policies: definitions, gradients, impossible actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

LAW, OTHER = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])


def value_and_slope(function, *laws):
    """A function of laws, and its gradient by the logits of the first one."""
    with jax.enable_x64(True):
        logits = [jnp.log(jnp.asarray(law)) + 3.0 for law in laws]
        return jax.jit(jax.value_and_grad(function))(*logits)


def test_entropy_by_its_definition():
    value, slope = value_and_slope(losses.categorical_entropy, LAW)
    expected = -LAW @ np.log(LAW)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, -LAW * (np.log(LAW) + expected), atol=1e-12)
    uniform = losses.categorical_entropy(jnp.full((2, 5), 7.0))
    np.testing.assert_allclose(uniform, [np.log(5)] * 2, rtol=1e-6)
    assert losses.categorical_entropy(jnp.array([1e4, -1e4])) == 0


def test_divergence_by_its_definition():
    value, slope = value_and_slope(losses.categorical_kl, LAW, OTHER)
    ratios = np.log(LAW / OTHER)
    np.testing.assert_allclose(value, LAW @ ratios, rtol=1e-12)
    np.testing.assert_allclose(slope, LAW * (ratios - LAW @ ratios), atol=1e-12)
    value, slope = value_and_slope(losses.categorical_kl, LAW, LAW)
    np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    # By the second law's logits it is the difference of the two laws.
    with jax.enable_x64(True):
        logits = jnp.log(jnp.asarray(LAW)), jnp.log(jnp.asarray(OTHER))
        slope = jax.grad(losses.categorical_kl, argnums=1)(*logits)
    np.testing.assert_allclose(slope, OTHER - LAW, atol=1e-12)


def test_divergence_from_uniform_is_missing_entropy():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((7, 4)), jnp.float32)
    found = losses.categorical_kl(logits, jnp.zeros((7, 4)))
    np.testing.assert_allclose(
        found, np.log(4) - losses.categorical_entropy(logits), rtol=1e-5, atol=1e-6
    )


def test_impossible_actions():
    logits, other = jnp.array([0.3, -jnp.inf, 1.0]), jnp.array([0.0, -jnp.inf, 0.4])
    for function, wide, narrow in (
        (losses.categorical_entropy, (logits,), (logits[::2],)),
        (losses.categorical_kl, (logits, other), (logits[::2], other[::2])),
    ):
        positions = tuple(range(len(wide)))
        found = jax.jit(jax.value_and_grad(function, argnums=positions))(*wide)
        expected = jax.jit(jax.value_and_grad(function, argnums=positions))(*narrow)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
        for slope, same in zip(found[1], expected[1], strict=True):
            np.testing.assert_allclose(slope, jnp.insert(same, 1, 0.0), atol=1e-6)
    assert losses.categorical_kl(jnp.zeros(3), other) == jnp.inf
    # What only the second law may do costs nothing by itself: KL((1, 0), (1/2, 1/2)) = log 2.
    found = losses.categorical_kl(jnp.array([0.0, -jnp.inf]), jnp.zeros(2))
    np.testing.assert_allclose(found, np.log(2), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Rlax softmax")
def test_entropy_is_that_of_rlax():
    rlax = pytest.importorskip("rlax")
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((7, 4)), jnp.float32)
    theirs = -rlax.entropy_loss(logits, jnp.ones(7))
    np.testing.assert_allclose(losses.categorical_entropy(logits).mean(), theirs, rtol=1e-6)


@pytest.mark.parametrize("function", [losses.categorical_entropy, losses.categorical_kl])
def test_scalars_are_refused(function):
    arrays = (jnp.zeros(()),) * (2 if function is losses.categorical_kl else 1)
    with pytest.raises(Exception, match="logits"):
        function(*arrays)
