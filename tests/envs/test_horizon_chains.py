"""Chains with known successor measures, against derived numbers, matrices and samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import horizon_chains

STEP, NOISE = 2 * math.pi / 20, 0.1
CHAINS = {
    "ring": horizon_chains.ring(8),
    "noisy_circle": horizon_chains.noisy_circle(step=STEP, noise=NOISE),
    "linear_gaussian": horizon_chains.linear_gaussian(dimension=2),
}


def ring_states(numbers, num_states=8):
    angle = 2 * np.pi * np.asarray(numbers) / num_states
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def sample(chain, seed, states, count, discount):
    draw = jax.jit(chain.sample_horizon, static_argnums=(2,))
    return draw(jax.random.key(seed), states, count, discount)


# ------------------------------------------------------------------------- how far ahead


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 0.99, 0.999])
def test_the_horizon_is_geometric(discount):
    count = 200_000
    draw = jax.jit(horizon_chains.geometric_steps, static_argnums=1)
    steps = np.asarray(draw(jax.random.key(0), (count,), jnp.asarray(discount)))
    assert steps.dtype == np.int32
    assert steps.min() >= 1
    # E K = 1 / (1 - gamma), Var K = gamma / (1 - gamma)^2, P(K > k) = gamma^k.
    error = math.sqrt(discount / count) / (1 - discount)
    assert abs(steps.mean() - 1 / (1 - discount)) <= 5 * error
    for ahead in (1, 2, 10, 100, 1000):
        tail = discount**ahead
        assert abs((steps > ahead).mean() - tail) <= 5 * math.sqrt(tail * (1 - tail) / count)


def test_the_end_points_of_the_uniform_draw_are_finite(monkeypatch):
    for end in (0.0, 1 - 2.0**-23):
        monkeypatch.setattr(
            jax.random, "uniform", lambda key, shape, *rest, e=end: jnp.full(shape, e)
        )
        for discount in (0.0, 0.5, 0.99):
            steps = int(horizon_chains.geometric_steps(jax.random.key(0), (), discount))
            # floor(23 log 2 / -log gamma) + 1 at the upper end: 24 at a half, 1587 at 0.99.
            assert steps == {0.0: 1, 0.5: 24, 0.99: 1587}[discount] if end else steps == 1


# ------------------------------------------------------------------------- the ring


def test_ring_weights_are_the_derived_ones_and_those_of_the_matrix():
    with jax.enable_x64(True):
        weights = np.asarray(horizon_chains.ring_weights(8, 0.9))
    # (1 - gamma) gamma^{k-1} / (1 - gamma^8).
    expected = [0.175582516, 0.158024264, 0.142221838, 0.127999654]
    expected += [0.115199689, 0.103679720, 0.093311748, 0.083980573]
    np.testing.assert_allclose(weights, expected, atol=1e-9)
    # M = (1 - gamma)(I - gamma P)^{-1} P, whose first row holds the state k ahead at k mod 8.
    matrix = np.roll(np.eye(8), 1, axis=1)
    measure = 0.1 * np.linalg.solve(np.eye(8) - 0.9 * matrix, matrix)
    np.testing.assert_allclose(np.roll(measure[0], -1), weights, atol=1e-14)


def test_ring_mean_and_value():
    with jax.enable_x64(True):
        mean = np.asarray(horizon_chains.ring(8).mean(jnp.array([1.0, 0.0]), 0.9))
    np.testing.assert_allclose(mean, [-0.035906631, 0.131626307], atol=1e-9)
    assert mean[0] / (1 - 0.9) == pytest.approx(-0.359066307, abs=1e-8)


def test_ring_steps_and_samples_are_its_states():
    chain = horizon_chains.ring(8)
    states = jnp.asarray(ring_states(np.arange(8)), jnp.float32)
    moved = chain.sample_next(jax.random.key(0), states)
    np.testing.assert_allclose(moved, ring_states(np.arange(8) + 1), atol=1e-6)
    # A state that is a little off is taken for the nearest one.
    np.testing.assert_allclose(chain.sample_next(jax.random.key(0), 1.1 * states + 0.05), moved)
    samples = sample(chain, 1, states, 20_000, 0.9)
    numbers = np.round(np.arctan2(samples[..., 1], samples[..., 0]) * 8 / (2 * np.pi)) % 8
    weights = np.asarray(horizon_chains.ring_weights(8, 0.9))
    for start in range(8):
        shares = [(numbers[start] == (start + k) % 8).mean() for k in range(1, 9)]
        np.testing.assert_allclose(shares, weights, atol=5 * math.sqrt(0.25 / 20_000))


# ------------------------------------------------------------------------- the noisy circle


@pytest.mark.parametrize(
    ("discount", "real", "imaginary", "value"),
    [
        (0.8, 0.258131071, 0.514470631, 1.290655355),
        (0.9, 0.056066196, 0.311914998, 0.560661962),
        (0.95, 0.003017930, 0.160939809, 0.060358599),
        (0.98, -0.004982969, 0.064010657, -0.249148434),
        (0.99, -0.003500980, 0.031814014, -0.350097967),
    ],
)
def test_noisy_circle_moments(discount, real, imaginary, value):
    with jax.enable_x64(True):
        moment = horizon_chains.noisy_circle_moment(
            jnp.zeros(()), 1, discount, step=STEP, noise=NOISE
        )
        mean = horizon_chains.noisy_circle(step=STEP, noise=NOISE).mean(
            jnp.array([1.0, 0.0]), discount
        )
    np.testing.assert_allclose(moment, [real, imaginary], atol=1e-9)
    np.testing.assert_allclose(mean, moment, atol=1e-12)
    assert float(mean[0]) / (1 - discount) == pytest.approx(value, abs=1e-8)


def test_noisy_circle_moments_are_the_geometric_sum():
    angle, discount, steps = 0.7, 0.9, np.arange(1, 600)
    for harmonic in (0, 1, 3, -2):
        inside = 1j * harmonic * (angle + steps * STEP)
        terms = np.exp(inside - 0.5 * harmonic**2 * NOISE**2 * steps)
        expected = ((1 - discount) * discount ** (steps - 1) * terms).sum()
        with jax.enable_x64(True):
            moment = horizon_chains.noisy_circle_moment(
                jnp.asarray(angle), harmonic, discount, step=STEP, noise=NOISE
            )
        np.testing.assert_allclose(moment, [expected.real, expected.imag], atol=1e-12)


def test_noisy_circle_density_is_the_sum_of_wrapped_normals_and_has_the_moments():
    grid = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    with jax.enable_x64(True):
        density = np.asarray(
            horizon_chains.noisy_circle_density(
                jnp.asarray(grid), jnp.asarray(0.7), 0.9, step=STEP, noise=NOISE
            )
        )
        moment = horizon_chains.noisy_circle_moment(
            jnp.asarray(0.7), 2, 0.9, step=STEP, noise=NOISE
        )
    expected = np.zeros_like(grid)
    for k in range(1, 300):
        variance = k * NOISE**2
        centre = np.mod(0.7 + k * STEP, 2 * np.pi)
        away = grid[:, None] - centre + 2 * np.pi * np.arange(-4, 5)
        bells = np.exp(-0.5 * away**2 / variance) / np.sqrt(2 * np.pi * variance)
        expected += 0.1 * 0.9 ** (k - 1) * bells.sum(1)
    np.testing.assert_allclose(density, expected, atol=2e-9)
    width = 2 * np.pi / 400
    assert density.sum() * width == pytest.approx(1.0, abs=1e-12)
    waves = [(density * np.cos(2 * grid)).sum() * width, (density * np.sin(2 * grid)).sum() * width]
    np.testing.assert_allclose(waves, moment, atol=1e-12)


def test_noisy_circle_samples_have_the_moments():
    chain, angle, count = CHAINS["noisy_circle"], jnp.asarray(0.7), 100_000
    start = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    samples = np.asarray(sample(chain, 0, start, count, 0.9))
    np.testing.assert_allclose(np.linalg.norm(samples, axis=-1), 1.0, atol=1e-5)
    angles = np.arctan2(samples[:, 1], samples[:, 0])
    for harmonic in (1, 2, 5):
        seen = [np.cos(harmonic * angles).mean(), np.sin(harmonic * angles).mean()]
        moment = horizon_chains.noisy_circle_moment(angle, harmonic, 0.9, step=STEP, noise=NOISE)
        np.testing.assert_allclose(seen, moment, atol=5 / math.sqrt(2 * count))


# ------------------------------------------------------------------------- the line


def test_linear_gaussian_moments():
    with jax.enable_x64(True):
        mean, square = horizon_chains.linear_gaussian_moments(jnp.asarray(2.0), 0.9)
        _, still = horizon_chains.linear_gaussian_moments(jnp.asarray(2.0), 0.9, noise=0.0)
        chain_mean = horizon_chains.linear_gaussian().mean(jnp.array([2.0]), 0.9)
    # (1 - gamma) a s / (1 - gamma a) = 0.16 / 0.28; c s^2 + (1 - c) 25 / 36, c = 0.064 / 0.424.
    assert float(mean) == pytest.approx(0.571428571, abs=1e-9) == float(chain_mean[0])
    assert float(square) == pytest.approx(1.193396226, abs=1e-9)
    assert float(square) - float(mean) ** 2 == pytest.approx(0.866865614, abs=1e-9)
    assert float(still) == pytest.approx(0.603773585, abs=1e-9)


def test_linear_gaussian_cdf_and_density():
    cdf_of = jax.jit(horizon_chains.linear_gaussian_cdf, static_argnames="num_terms")
    density_of = jax.jit(horizon_chains.linear_gaussian_log_density)
    with jax.enable_x64(True):
        # The density is the slope of the distribution function.
        points, state = jnp.array([0.0, 1.0]), jnp.asarray(2.0)
        places = jnp.stack([points, points - 1e-5, points + 1e-5])
        cdf, low, high = np.asarray(cdf_of(places, state, 0.9))
        density = np.exp(density_of(points[:, None], state[None], 0.9))
        short = np.asarray(cdf_of(places, state, 0.9, num_terms=6))[0]
    np.testing.assert_allclose(cdf, [0.275048062, 0.659201219], atol=1e-9)
    np.testing.assert_allclose(density, (high - low) / 2e-5, rtol=1e-8)
    # Few terms and the stationary law for the rest are within the stated bound.
    bound = 0.9**6 * (0.8**6 * 2 / math.sqrt(0.25 / 0.36) + 0.64**6)
    assert 0 < np.abs(short - cdf).max() <= bound


def test_coordinates_depend_on_each_other_under_the_measure():
    # E[X Y] = sum_k w_k a^{2k} s_x s_y = c s_x s_y, not the product of the means.
    start, count = jnp.array([2.0, -1.0]), 20_000
    chain = CHAINS["linear_gaussian"]
    samples = np.asarray(sample(chain, 0, start, count, 0.9))
    share = 0.1 * 0.64 / (1 - 0.9 * 0.64)
    product = samples[:, 0] * samples[:, 1]
    assert abs(product.mean() + 2 * share) <= 5 * product.std() / math.sqrt(count)
    # The joint log-density has the entropy that the samples show: E[1 / m] over a box is its area.
    box = np.abs(samples).max(1) <= 0.5
    log_density = horizon_chains.linear_gaussian_log_density(
        jnp.asarray(samples), start, 0.9, num_terms=40
    )
    inverse = np.where(box, np.exp(-np.asarray(log_density)), 0.0)
    assert abs(inverse.mean() - 1.0) <= 5 * inverse.std() / math.sqrt(count)


@pytest.mark.parametrize("coefficient", [0.8, 0.0, -0.6])
def test_linear_gaussian_samples_have_the_moments(coefficient):
    count, discount = 100_000, 0.9
    chain = horizon_chains.linear_gaussian(coefficient)
    start = jnp.array([2.0])
    samples = np.asarray(sample(chain, 0, start, count, discount))[:, 0]
    mean, square = horizon_chains.linear_gaussian_moments(
        start[0], discount, coefficient=coefficient
    )
    assert abs(samples.mean() - float(mean)) <= 5 * samples.std() / math.sqrt(count)
    assert abs((samples**2).mean() - float(square)) <= 5 * (samples**2).std() / math.sqrt(count)
    for point in (-0.5, 0.3, 1.2):
        below = horizon_chains.linear_gaussian_cdf(
            jnp.asarray(point), start[0], discount, coefficient=coefficient
        )
        assert abs((samples <= point).mean() - float(below)) <= 5 * math.sqrt(0.25 / count)


def test_without_noise_the_line_only_shrinks():
    chain = horizon_chains.linear_gaussian(noise=0.0)
    samples = np.asarray(chain.sample_horizon(jax.random.key(0), jnp.array([2.0]), 500, 0.9))
    steps = np.log(samples[:, 0] / 2) / np.log(0.8)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert samples.max() == pytest.approx(1.6)


# ------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", CHAINS)
def test_the_measure_is_a_fixed_point(name):
    # m(. | s) = (1 - gamma) P(. | s) + gamma E m(. | S'), here for means over many S'.
    chain, discount, count = CHAINS[name], 0.9, 100_000
    keys = jax.random.split(jax.random.key(0), 2)
    start = chain.sample_states(keys[0], 1)[0]
    moved = chain.sample_next(keys[1], jnp.broadcast_to(start, (count, chain.dimension)))
    terms = np.asarray((1 - discount) * moved + discount * chain.mean(moved, discount), np.float64)
    error = terms.std(0) / math.sqrt(count) + 1e-6
    assert (np.abs(terms.mean(0) - np.asarray(chain.mean(start, discount))) <= 5 * error).all()


@pytest.mark.parametrize("name", CHAINS)
def test_without_a_horizon_the_measure_is_the_next_state(name):
    chain, count = CHAINS[name], 50_000
    start = chain.sample_states(jax.random.key(0), 1)[0]
    ahead = np.asarray(sample(chain, 1, start, count, 0.0))
    moved = np.asarray(
        chain.sample_next(jax.random.key(2), jnp.broadcast_to(start, (count, chain.dimension)))
    )
    error = moved.std(0) * math.sqrt(2 / count) + 1e-6
    assert (np.abs(ahead.mean(0) - moved.mean(0)) <= 5 * error).all()
    assert (np.abs(ahead.std(0) - moved.std(0)) <= 5 * error).all()
    np.testing.assert_allclose(chain.mean(start, 0.0), moved.mean(0), atol=5 * error.max())


@pytest.mark.parametrize("name", CHAINS)
def test_shapes_jit_vmap_and_a_traced_discount(name):
    chain = CHAINS[name]
    states = jax.jit(chain.sample_states, static_argnums=1)(jax.random.key(0), 6)
    assert states.shape == (6, chain.dimension)
    assert np.isfinite(states).all()
    states = states.reshape(2, 3, chain.dimension)
    samples = sample(chain, 1, states, 5, jnp.asarray(0.9))
    assert samples.shape == (2, 3, 5, chain.dimension)
    eager = chain.sample_horizon(jax.random.key(1), states, 5, 0.9)
    np.testing.assert_allclose(samples, eager, atol=1e-5)
    keys = jax.random.split(jax.random.key(2), 2)
    rows = jax.vmap(lambda key, state: chain.sample_next(key, state))(keys, states)
    np.testing.assert_allclose(rows[1], chain.sample_next(keys[1], states[1]), atol=1e-6)
    means = jax.vmap(chain.mean, in_axes=(None, 0))(states, jnp.array([0.0, 0.9]))
    assert means.shape == (2, 2, 3, chain.dimension)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("discount must be in", lambda: horizon_chains.ring_weights(8, 1.0)),
        (
            "discount must be in",
            lambda: horizon_chains.geometric_steps(jax.random.key(0), (), -0.1),
        ),
        ("num_states must be", lambda: horizon_chains.ring(0)),
        ("num_states must be", lambda: horizon_chains.ring_weights(0, 0.9)),
        ("noise must be at least 0", lambda: horizon_chains.noisy_circle(noise=-0.1)),
        ("coefficient must be", lambda: horizon_chains.linear_gaussian(1.0)),
        ("dimension must be", lambda: horizon_chains.linear_gaussian(dimension=0)),
        ("spread must be", lambda: horizon_chains.linear_gaussian(spread=0.0)),
        ("count must be", lambda: CHAINS["ring"].sample_states(jax.random.key(0), 0)),
        (
            "num_samples must be",
            lambda: CHAINS["ring"].sample_horizon(jax.random.key(0), jnp.ones(2), 0, 0.9),
        ),
        (
            "noise must be positive",
            lambda: horizon_chains.noisy_circle_density(
                jnp.zeros(()), jnp.zeros(()), 0.9, noise=0.0
            ),
        ),
        (
            "noise must be positive",
            lambda: horizon_chains.linear_gaussian_cdf(jnp.ones(()), jnp.ones(()), 0.9, noise=0),
        ),
    ],
)
def test_what_is_out_of_range_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()
