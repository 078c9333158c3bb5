"""The VAE by evidence in closed form, the GAN by its saddle point; samples of the Bellman law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses


def test_bellman_samples_follow_the_discount():
    # Over an even grid of uniforms the share of the bootstrap is the discount.
    uniforms = jnp.arange(100, dtype=jnp.float32) / 100
    next_states, samples = jnp.zeros((100, 2)), jnp.ones((100, 2))
    for discount, expected in ((0.0, 0), (0.25, 25), (1.0, 100)):
        found = losses.bellman_sample(next_states, samples, uniforms, discount=discount)
        np.testing.assert_array_equal(found.sum(0), [expected, expected])
    each = losses.bellman_sample(next_states, samples, uniforms, discount=uniforms[::-1])
    np.testing.assert_array_equal(each[:, 0], np.arange(100) < 50)


def test_evidence_lower_bound_is_tight_at_the_posterior():
    # z ~ N(0, 1), x = a z + b + s e has evidence N(b, a^2 + s^2), and the posterior of z is
    # N(a (x - b) / (a^2 + s^2), s^2 / (a^2 + s^2)). There the mean of the loss over z with beta 1
    # is minus the log-evidence; Gauss-Hermite is exact for the quadratic in z.
    slope, offset, scale, data = 1.3, -0.4, 0.7, 0.9
    total = slope**2 + scale**2
    mean, variance = slope * (data - offset) / total, scale**2 / total
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()
    latents = mean + np.sqrt(variance) * nodes
    with jax.enable_x64(True):

        def column(value):
            return jnp.full((4, 1), value)

        found = losses.beta_vae_loss(
            column(data),
            jnp.asarray(slope * latents + offset)[:, None],
            column(2 * np.log(scale)),
            column(mean),
            column(np.log(variance)),
            beta=1.0,
        )
    evidence = -((data - offset) ** 2) / total / 2 - np.log(2 * np.pi * total) / 2
    np.testing.assert_allclose(weights @ np.asarray(found), -evidence, rtol=1e-12)


def test_beta_weighs_the_divergence_to_the_prior():
    # KL(N(m, s^2), N(0, 1)) summed, by the definition on a fine grid.
    moments = [(0.4, 0.3), (-1.0, 1.5)]
    grid = np.linspace(-15, 15, 200_001)
    divergence = 0.0
    for mean, scale in moments:
        log_law = -(((grid - mean) / scale) ** 2) / 2 - np.log(scale * np.sqrt(2 * np.pi))
        log_prior = -(grid**2) / 2 - np.log(np.sqrt(2 * np.pi))
        divergence += np.sum(np.exp(log_law) * (log_law - log_prior)) * (grid[1] - grid[0])
    mean, scale = np.transpose(moments)
    with jax.enable_x64(True):
        zero = jnp.zeros(3)
        code = (jnp.asarray(mean), jnp.asarray(2 * np.log(scale)))
        values = [
            float(losses.beta_vae_loss(zero, zero, zero, *code, beta=b)) for b in (0.0, 0.5, 2.0)
        ]
        default = losses.beta_vae_loss(zero, zero, zero, *code)
    np.testing.assert_allclose(values[0], 1.5 * np.log(2 * np.pi), rtol=1e-12)
    np.testing.assert_allclose(np.subtract(values[1:], values[0]), [divergence / 2, 2 * divergence])
    assert float(default) == values[1]


def test_divergence_keeps_its_digits_close_to_the_prior():
    # m = 0, log s^2 = d: (e^d - 1 - d) / 2 = d^2 / 4 (1 + d / 3 + ...). The decoder's variance of
    # 1 / (2 pi) makes the rest 0.
    zero, small = jnp.zeros(1), jnp.full(1, 1e-3)
    found = losses.beta_vae_loss(zero, zero, jnp.full(1, -np.log(2 * np.pi)), zero, small, beta=1.0)
    np.testing.assert_allclose(found, 1e-6 / 4 * (1 + 1e-3 / 3), rtol=1e-3)


def quadratic(weights):
    """The score x . w + x . x / 2, of points [..., D]."""
    return lambda point: jnp.sum(point * weights + jnp.square(point) / 2, axis=-1)


REAL, FAKE = np.array([[0.3, -1.0], [1.2, 0.4]]), np.array([[-0.5, 0.2], [0.1, 2.0]])
WEIGHTS = np.array([0.7, -0.2])


def scores(points):
    return points @ WEIGHTS + np.sum(points**2, -1) / 2


def test_adversarial_losses_by_their_formulas():
    with jax.enable_x64(True):
        score, real, fake = quadratic(jnp.asarray(WEIGHTS)), jnp.asarray(REAL), jnp.asarray(FAKE)
        generator = losses.relativistic_generator_loss(score, real, fake)
        discriminator = [
            np.asarray(losses.relativistic_discriminator_loss(score, real, fake, penalty_weight=w))
            for w in (0.0, 0.3)
        ]
        penalty = losses.gradient_penalty(score, real)
    margin = scores(REAL) - scores(FAKE)
    np.testing.assert_allclose(generator, np.log1p(np.exp(margin)), rtol=1e-12)
    np.testing.assert_allclose(discriminator[0], np.log1p(np.exp(-margin)), rtol=1e-12)
    # The slope of the score is w + x.
    real_penalty, fake_penalty = (np.sum((WEIGHTS + x) ** 2, -1) for x in (REAL, FAKE))
    np.testing.assert_allclose(penalty, real_penalty, rtol=1e-12)
    np.testing.assert_allclose(
        discriminator[1] - discriminator[0], 0.15 * (real_penalty + fake_penalty), rtol=1e-12
    )


def test_players_pull_the_margin_apart():
    with jax.enable_x64(True):
        weights, real, fake = (jnp.asarray(a) for a in (WEIGHTS, REAL, FAKE))
        descent = -jax.grad(
            lambda w: losses.relativistic_discriminator_loss(
                quadratic(w), real, fake, penalty_weight=0.0
            ).sum()
        )(weights)
        moved = -jax.grad(
            lambda x: losses.relativistic_generator_loss(quadratic(weights), real, x).sum()
        )(fake)
    # d margin / dw = real - fake, d score / dx = w + x: each times a probability.
    odds = 1 / (1 + np.exp(scores(REAL) - scores(FAKE)))
    np.testing.assert_allclose(descent, odds @ (REAL - FAKE), rtol=1e-12)
    np.testing.assert_allclose(moved, (1 - odds)[:, None] * (WEIGHTS + FAKE), rtol=1e-12)


def test_discriminator_descends_the_slope_of_its_penalty():
    # d |w + x|^2 / dw = 2 (w + x), on both samples, halved: w times the sum of slopes.
    with jax.enable_x64(True):
        weights, real, fake = (jnp.asarray(a) for a in (WEIGHTS, REAL, FAKE))

        def total(w, penalty_weight):
            return losses.relativistic_discriminator_loss(
                quadratic(w), real, fake, penalty_weight=penalty_weight
            ).sum()

        slopes = [np.asarray(jax.grad(total)(weights, weight)) for weight in (0.0, 0.3)]
    expected = 0.3 * np.sum(2 * WEIGHTS + REAL + FAKE, axis=0)
    np.testing.assert_allclose(slopes[1] - slopes[0], expected, rtol=1e-10)


@pytest.mark.parametrize("penalty_weight", [0.0, 0.1, 0.4])
def test_penalties_make_the_dirac_game_converge(penalty_weight):
    # Real data at 0, the generator at theta, D(x) = psi x. At the equilibrium (0, 0) the descent
    # of both players has the Jacobian -[[2 w, 1/2], [-1/2, 0]]: the loss of the discriminator has
    # slope sigma theta + 2 w psi in psi, the generator's -sigma psi in theta, sigma = 1/2 at 0.
    # Its eigenvalues solve l^2 + 2 w l + 1/4 = 0: circles without a penalty, and decay with one.
    real = jnp.zeros(1)

    def score(psi):
        return lambda x: psi * x[..., 0]

    @jax.jit
    def descent(players):
        theta, psi = players[:1], players[1]
        generator = jax.grad(
            lambda theta: losses.relativistic_generator_loss(score(psi), real, theta)
        )
        discriminator = jax.grad(
            lambda psi: losses.relativistic_discriminator_loss(
                score(psi), real, theta, penalty_weight=penalty_weight
            )
        )
        return -jnp.append(generator(theta), discriminator(psi))

    # By differences: each player's loss holds the other constant, and so would a derivative.
    with jax.enable_x64(True):
        step = 1e-4
        columns = [
            (descent(jnp.asarray(shift)) - descent(jnp.asarray(-shift))) / (2 * step)
            for shift in step * np.eye(2)
        ]
    jacobian = np.stack(columns, axis=1)
    found = np.sort_complex(np.linalg.eigvals(jacobian))
    expected = np.sort_complex(np.roots([1, 2 * penalty_weight, 0.25]))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found.real < -1e-6).all() == (penalty_weight > 0)


def test_losses_of_equal_scores_are_log_two():
    zero = jnp.zeros((2, 3))
    values = (
        losses.relativistic_generator_loss(quadratic(0.0), zero, zero),
        losses.relativistic_discriminator_loss(quadratic(0.0), zero, zero, penalty_weight=0.0),
    )
    for value in values:
        np.testing.assert_allclose(value, np.full(2, np.log(2)), rtol=1e-6)


def test_wrong_arguments_are_named():
    error = (ValueError, TypeError, pytest.importorskip("jaxtyping").TypeCheckError)
    zero, score = jnp.zeros((2, 3)), quadratic(0.0)

    def vector_score(point):
        return point

    def penalised(weight, score=score):
        return losses.relativistic_discriminator_loss(score, zero, zero, penalty_weight=weight)

    for call, named in (
        (lambda: losses.gradient_penalty(vector_score, zero), "score_fn"),
        (lambda: losses.relativistic_generator_loss(vector_score, zero, zero), "score_fn"),
        (lambda: losses.relativistic_generator_loss(score, zero, zero[:1]), "fake"),
        (lambda: penalised(-1.0), "penalty_weight"),
        (lambda: losses.beta_vae_loss(zero, zero, zero, zero, zero, beta=-1.0), "beta"),
        (lambda: losses.beta_vae_loss(zero, zero, zero, zero[:1], zero[:1]), "latent_mean"),
        (
            lambda: losses.bellman_sample(zero, zero, jnp.zeros(2), discount=-0.5),
            "discount",
        ),
        (lambda: losses.bellman_sample(zero, zero, jnp.zeros(3), discount=0.5), "uniforms"),
    ):
        with pytest.raises(error, match=named):
            call()
