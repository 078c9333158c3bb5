"""Laws of actions against SciPy, closed forms, quadrature and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax.test_util import check_grads

from bellmax.agents import action_laws
from bellmax.agents.action_laws import Gaussian

MEAN, LOG_STD = np.array([[0.3, -1.0], [2.0, 0.1]]), np.array([[-0.5, 0.4], [0.0, -1.2]])
POINTS = np.array([[0.1, -0.2], [1.7, 0.4]])


def law_of(mean=MEAN, log_std=LOG_STD):
    return Gaussian(jnp.asarray(mean), jnp.asarray(log_std))


def test_a_gaussian_is_scipys():
    law = action_laws.gaussian(2)
    with jax.enable_x64(True):
        normal = {"loc": MEAN, "scale": np.exp(LOG_STD)}
        found = law.log_prob(law_of(), jnp.asarray(POINTS))
        np.testing.assert_allclose(
            found, scipy.stats.norm.logpdf(POINTS, **normal).sum(-1), rtol=1e-12
        )
        np.testing.assert_allclose(
            law.entropy(law_of()), scipy.stats.norm.entropy(**normal).sum(-1), rtol=1e-12
        )
        np.testing.assert_array_equal(law.mode(law_of()), MEAN)
        np.testing.assert_allclose(law.features(jnp.asarray([-3.0, 0.2, 7.0])), [-1, 0.2, 1])


def test_the_divergence_of_gaussians_is_the_integral():
    with jax.enable_x64(True):
        for squash in (False, True):
            law = action_laws.gaussian(2, squash=squash)
            other = law_of(MEAN + 0.3, LOG_STD - 0.2)
            found = law.kl(law_of(), other)
            for row in range(2):
                total = 0.0
                for place in range(2):
                    first = (MEAN[row, place], np.exp(LOG_STD[row, place]))
                    second = (other.mean[row, place], np.exp(other.log_std[row, place]))

                    def density(x, first=first, second=second):
                        logs = (scipy.stats.norm.logpdf(x, *law) for law in (first, second))
                        return scipy.stats.norm.pdf(x, *first) * np.subtract(*logs)

                    ends = first[0] - 8 * first[1], first[0] + 8 * first[1]
                    total += scipy.integrate.quad(density, *ends)[0]
                np.testing.assert_allclose(found[row], total, rtol=1e-8)


def test_a_squashed_gaussian_is_a_density_of_its_actions():
    """It integrates to 1 over (-1, 1), and its entropy is the integral of -p log p."""
    law = action_laws.gaussian(1, squash=True)
    with jax.enable_x64(True):
        for mean, std, tolerance in ((0.3, 0.5, 1e-9), (-1.0, 1.0, 1e-5), (0.5, 4.0, 1e-3)):
            outputs = Gaussian(jnp.asarray([mean]), jnp.log(jnp.asarray([std])))
            edges = np.linspace(mean - 12 * std, mean + 12 * std, 40_001)
            log_density = np.asarray(
                jax.vmap(lambda point, outputs=outputs: law.log_prob(outputs, point))(
                    jnp.asarray(edges)[:, None]
                )
            )
            slope = 1 / np.cosh(edges) ** 2  # da = slope du.
            mass = np.exp(log_density) * slope
            np.testing.assert_allclose(scipy.integrate.trapezoid(mass, edges), 1, rtol=1e-9)
            entropy = scipy.integrate.trapezoid(-mass * log_density, edges)
            np.testing.assert_allclose(law.entropy(outputs), entropy, atol=tolerance)
        # By the change of variables, at one action.
        outputs, action = Gaussian(jnp.asarray([0.3]), jnp.asarray([0.0])), 0.9
        expected = scipy.stats.norm.logpdf(np.arctanh(action), 0.3, 1) - np.log(1 - action**2)
        found = law.log_prob(outputs, jnp.arctanh(jnp.asarray([action])))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_squashed_density_keeps_its_digits_where_the_action_has_lost_them():
    law = action_laws.gaussian(1, squash=True)
    outputs = Gaussian(jnp.asarray([20.0]), jnp.asarray([0.0]))
    point = jnp.asarray([20.0])
    assert float(law.features(point)[0]) == 1.0
    # log N(0) - log(1 - tanh^2 20) with 1 - tanh^2 u = 4 exp(-2u) up to exp(-80).
    expected = -0.5 * np.log(2 * np.pi) - (np.log(4) - 40)
    np.testing.assert_allclose(law.log_prob(outputs, point), expected, rtol=1e-6)
    slope = jax.grad(law.log_prob, argnums=1)(outputs, point)
    # d/du of -log(1 - tanh^2 u) is 2 tanh u.
    np.testing.assert_allclose(slope, [2.0], rtol=1e-5)


def test_a_categorical_law_by_hand():
    law = action_laws.categorical(3)
    probs = np.array([[0.5, 0.3, 0.2], [0.1, 0.0, 0.9]])
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(probs) + np.array([[1.0], [-2.0]]))
    chosen = law.log_prob(logits, jnp.asarray([2, 0]))
    np.testing.assert_allclose(chosen, np.log([0.2, 0.1]), rtol=1e-6)
    np.testing.assert_allclose(
        law.entropy(logits), [scipy.stats.entropy(row) for row in probs], rtol=1e-6
    )
    other = jnp.zeros((2, 3))
    np.testing.assert_allclose(
        law.kl(logits, other),
        [scipy.stats.entropy(row, np.full(3, 1 / 3)) for row in probs],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(law.mode(logits), [0, 2])
    np.testing.assert_array_equal(law.features(law.mode(logits)), np.eye(3)[[0, 2]])
    actions, weights = law.support(logits, jax.random.key(0))
    np.testing.assert_array_equal(actions, [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(weights, probs, rtol=1e-6)
    every = action_laws.log_probs_of_many(law, logits, actions)
    np.testing.assert_allclose(jnp.exp(every), probs, rtol=1e-6)


@pytest.mark.parametrize("squash", [False, True])
def test_samples_have_the_law_of_their_density(squash):
    law = action_laws.gaussian(2, squash=squash)
    outputs = Gaussian(jnp.asarray([0.2, -0.5]), jnp.log(jnp.asarray([0.7, 0.4])))
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (20_000, 2)), outputs)
    choices = law.sample(many, jax.random.key(0))
    for place, (mean, std) in enumerate(((0.2, 0.7), (-0.5, 0.4))):
        test = scipy.stats.kstest(np.asarray(choices[:, place]), "norm", (mean, std))
        assert test.pvalue > 1e-3
    # Minus the mean log-density of samples is the entropy; 4 standard errors.
    found = -np.asarray(law.log_prob(many, choices))
    error = 4 * found.std() / np.sqrt(len(found))
    np.testing.assert_allclose(found.mean(), law.entropy(outputs), atol=error)
    features = np.asarray(law.features(choices))
    assert np.abs(features).max() <= 1


def test_samples_of_a_categorical_law_have_its_probabilities():
    law = action_laws.categorical(3)
    probs = jnp.asarray([0.5, 0.3, 0.2])
    choices = law.sample(jnp.broadcast_to(jnp.log(probs), (20_000, 3)), jax.random.key(0))
    np.testing.assert_allclose(np.bincount(choices) / 20_000, probs, atol=0.015)


@pytest.mark.parametrize("squash", [False, True])
def test_one_reparameterised_sample_stands_for_the_expectation(squash):
    """The mean of its gradients is the gradient of E f, here of E u^2 = mean^2 + std^2."""
    law = action_laws.gaussian(1, squash=squash)
    outputs = Gaussian(jnp.asarray([0.5]), jnp.log(jnp.asarray([0.8])))

    def estimate(outputs, key):
        choices, weights = law.support(outputs, key)
        assert choices.shape == (1, 1)
        return jnp.sum(weights * jnp.square(choices)[..., 0])

    keys = jax.random.split(jax.random.key(1), 20_000)
    found = jax.vmap(jax.grad(estimate), in_axes=(None, 0))(outputs, keys)
    np.testing.assert_allclose(found.mean.mean(), 1.0, atol=0.05)
    np.testing.assert_allclose(found.log_std.mean(), 2 * 0.64, atol=0.08)


@pytest.mark.parametrize("squash", [False, True])
def test_gradients_by_finite_differences(squash):
    law = action_laws.gaussian(2, squash=squash)
    with jax.enable_x64(True):
        check_grads(lambda m, s, x: law.log_prob(Gaussian(m, s), x), (MEAN, LOG_STD, POINTS), 1)
        check_grads(lambda m, s: law.entropy(Gaussian(m, s)), (MEAN, LOG_STD), 1)
        other = Gaussian(jnp.asarray(MEAN) + 1, jnp.asarray(LOG_STD) / 2)
        check_grads(lambda m, s: law.kl(Gaussian(m, s), other), (MEAN, LOG_STD), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: action_laws.categorical(0), "num_actions must be at least 1, got 0"),
        (lambda: action_laws.gaussian(0), "size must be at least 1, got 0"),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
