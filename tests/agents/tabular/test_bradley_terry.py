"""Fitted rewards against the rewards that made the preferences, and against known fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def rater_types(imbalance):
    first, other = 1 / 3 - imbalance, 1 / 3 + imbalance / 2
    advantages = np.array([[0, -first, other], [first, 0, -other], [-other, other, 0]])
    return 0.5 + advantages / 2


def test_recovers_rewards_from_any_law():
    rewards = np.array([2.0, -1.0, 0.5, 6.0])
    preference = 1 / (1 + np.exp(rewards - rewards[:, None]))
    for law in (np.full(4, 0.25), np.array([0.9, 0.05, 0.04, 0.01]), np.array([0.5, 0.5, 0, 0])):
        found = tabular.bradley_terry_rewards(jnp.array(preference), jnp.array(law))
        expected = np.where(law > 0, rewards - law @ rewards, 0)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_population_of_raters():
    # Uniform pairs: r_1 - r_2 is positive iff the imbalance is.
    for imbalance, expected in ((0.1, 0.100251), (-0.01, -0.010000), (0.0, 0.0)):
        found = tabular.bradley_terry_rewards(jnp.array(rater_types(imbalance)), jnp.full(3, 1 / 3))
        np.testing.assert_allclose(found, [expected, -expected, 0], atol=1e-6)


def test_fit_is_stationary_on_a_cyclic_game():
    rng = np.random.default_rng(0)
    upper = np.triu(rng.uniform(-0.5, 0.5, (7, 7)), 1)
    preference, law = 0.5 + upper - upper.T, rng.dirichlet(np.ones(7))
    found = np.asarray(tabular.bradley_terry_rewards(jnp.array(preference), jnp.array(law)))
    # The gradient of the likelihood: w_i sum_j w_j (P_ij - sigma(r_i - r_j)).
    fitted = 1 / (1 + np.exp(found - found[:, None]))
    np.testing.assert_allclose(law * ((preference - fitted) @ law), 0, atol=1e-15)
    np.testing.assert_allclose(law @ found, 0, atol=1e-14)


def test_refuses_another_shape():
    with pytest.raises(ValueError, match="law"):
        tabular.bradley_terry_rewards(jnp.full((3, 3), 0.5), jnp.ones(2))
