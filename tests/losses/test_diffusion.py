"""Diffusion: schedule, DDIM against flows in closed form, bootstraps, the probability flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

LEVELS = 1000
# From the definition: betas from 1e-4 to 2e-2, and their running product.
KEPT = np.cumprod(1 - np.linspace(1e-4, 2e-2, LEVELS))


def table(dtype=jnp.float32):
    return jnp.asarray(KEPT, dtype)


def kept(level):
    """alpha-bar of a level, 1 at level -1."""
    return np.where(np.asarray(level) < 0, 1.0, KEPT[np.maximum(level, 0)])


def point_mass_noise(place):
    """The optimal network of a point mass: the noise that was added to it."""

    def noise_fn(point, level):
        share = table(point.dtype)[level][..., None]
        return (point - jnp.sqrt(share) * place) / jnp.sqrt(1 - share)

    return noise_fn


def ddim(noise_fn, start, start_level, end_level, num_steps, data_range=None):
    with jax.enable_x64(True):
        levels = [jnp.asarray(level, jnp.int32) for level in (start_level, end_level)]
        function = jax.jit(
            lambda x, a, b: losses.ddim_sample(
                noise_fn, x, a, b, table(x.dtype), num_steps=num_steps, data_range=data_range
            )
        )
        return np.asarray(function(jnp.asarray(start, jnp.float64), *levels))


def test_schedule_of_the_specification():
    with jax.enable_x64(True):
        found = np.asarray(losses.noise_schedule())
    # Specification C9.
    np.testing.assert_allclose(found[0], 0.9999, rtol=1e-12)
    np.testing.assert_allclose(found[499], 0.078587243, atol=5.1e-10)
    np.testing.assert_allclose(found[999], 4.03582977e-5, atol=5.1e-14)
    np.testing.assert_allclose(found, KEPT, rtol=1e-12)


def test_schedule_in_single_precision_and_of_one_level():
    found = losses.noise_schedule()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, KEPT, rtol=1e-5)
    np.testing.assert_allclose(losses.noise_schedule(0.1, 0.9, num_levels=1), [0.9], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"beta_min": 0.0}, "beta_min"),
        ({"beta_max": 1000.0}, "beta_max"),
        ({"num_levels": 0}, "num_levels"),
        ({"beta_max": jnp.ones(3)}, "beta_min and beta_max"),
    ],
)
def test_wrong_schedules_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        losses.noise_schedule(**arguments)


@pytest.mark.parametrize("num_steps", [1, 7, 20, 999])
def test_point_mass_of_the_specification_in_any_number_of_steps(num_steps):
    # Specification C9: c = 1.7, noise -.6, from level 999 to 0:
    # sqrt(.9999) 1.7 - sqrt(.0001) .6 = 1.693914998.
    start = np.sqrt(KEPT[999]) * 1.7 - np.sqrt(1 - KEPT[999]) * 0.6
    found = ddim(point_mass_noise(1.7), [start], 999, 0, num_steps)
    np.testing.assert_allclose(found, [1.693914998], atol=5.1e-10)


def test_levels_may_differ_by_example_and_be_traced():
    noise, place = np.array([[0.3], [-1.0], [0.5], [2.0]]), 1.7
    start_level, end_level = np.array([999, 700, 30, 40]), np.array([-1, 200, 25, 40])
    shares = kept(start_level)[:, None]
    start = np.sqrt(shares) * place + np.sqrt(1 - shares) * noise
    found = ddim(point_mass_noise(place), start, start_level, end_level, 20)
    shares = kept(end_level)[:, None]
    expected = np.sqrt(shares) * place + np.sqrt(1 - shares) * noise
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    # Nothing to do: to the bit.
    assert found[3] == start[3]


def test_network_is_never_asked_for_the_end_level():
    end = jnp.array([-1, 3, 500])

    def noise_fn(point, level):
        bad = (level == end) | (level < 0) | (level >= LEVELS)
        return jnp.where(bad[:, None], jnp.nan, point)

    start = jnp.ones((3, 2))
    # The one of level -1 has nothing to do.
    for first in ([999, 999, 999], [0, 4, 501], [5, 30, 600], [-1, 4, 501]):
        found = losses.ddim_sample(noise_fn, start, jnp.array(first), end, table())
        assert np.isfinite(found).all()


@pytest.mark.parametrize("num_steps", [1, 20])
def test_what_is_denoised_is_clipped(num_steps):
    # A network that knows a point mass at 1.7, clipped to 1.5: data are 1.5 at every level, and
    # the noise is what is left of the start, so that all levels lie on the line of one noise.
    start_level, end_level, start = np.array([999, 700, 999]), np.array([-1, -1, 300]), 0.4
    shares = kept(start_level)
    noise = (start - np.sqrt(shares) * 1.5) / np.sqrt(1 - shares)
    shares = kept(end_level)
    expected = np.sqrt(shares) * 1.5 + np.sqrt(1 - shares) * noise
    starts = np.full((3, 1), start)
    found = ddim(point_mass_noise(1.7), starts, start_level, end_level, num_steps, (-1.5, 1.5))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-11)
    flipped = ddim(point_mass_noise(-1.7), -starts, start_level, end_level, num_steps, (-1.5, 1.5))
    np.testing.assert_allclose(flipped, -found, rtol=1e-11)
    free, within = (
        ddim(point_mass_noise(1.7), starts, start_level, end_level, num_steps, limits)
        for limits in (None, (-1.0, 1.8))
    )
    np.testing.assert_array_equal(within, free)


def test_an_error_at_the_first_level_stays_within_the_range():
    def noise_fn(point, level):
        return point_mass_noise(1.7)(point, level) - jnp.where(level == 999, 0.5, 0.0)[..., None]

    arguments = (noise_fn, [[0.4]], [999], [-1], 1)
    # 1.7 and 157 times the error.
    far = 1.7 + 0.5 * np.sqrt((1 - KEPT[999]) / KEPT[999])
    np.testing.assert_allclose(ddim(*arguments), [[far]], rtol=1e-9)
    np.testing.assert_allclose(ddim(*arguments, (-1.0, 2.5)), [[2.5]], rtol=1e-11)


def test_each_feature_has_a_range_of_its_own():
    start = jnp.zeros((1, 3))
    top, data = jnp.array([999]), jnp.array([-1])
    bounds = (jnp.array([-1.0, 2.0, -1.0]), jnp.array([1.0, 3.0, 5.0]))

    def sample(data_range):
        noise_fn = point_mass_noise(jnp.array([4.0, 0.0, 4.0]))
        return losses.ddim_sample(noise_fn, start, top, data, table(), data_range=data_range)

    np.testing.assert_allclose(sample(bounds), [[1.0, 2.0, 4.0]], rtol=1e-4)
    for gradient in jax.grad(lambda ends: sample(ends).sum())(bounds):
        np.testing.assert_array_equal(gradient, np.zeros(3))


def test_data_that_are_not_denoised_are_not_clipped():
    def sample(start):
        level = jnp.array([-1, 5])
        return losses.ddim_sample(
            point_mass_noise(0.3), start, level, level, table(), data_range=(-1.0, 1.0)
        )

    start = jnp.array([[4.0], [5.0]])
    np.testing.assert_array_equal(sample(start), start)
    gradient = jax.grad(lambda start: sample(start).sum())(start)
    np.testing.assert_array_equal(gradient, np.ones((2, 1)))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16])
def test_small_integers_hold_levels(dtype):
    start, shares = jnp.ones((1, 1)), table()[:100]

    def sample(dtype):
        return losses.ddim_sample(
            point_mass_noise(0.3), start, jnp.array([99], dtype), jnp.array([1], dtype), shares
        )

    np.testing.assert_array_equal(sample(dtype), sample(jnp.int32))


MEAN, SCALE = 1.5, 0.5


def gaussian_noise(point, level):
    """The optimal network for N(MEAN, SCALE^2): the mean of the noise given the point."""
    share = table(point.dtype)[level][..., None]
    return jnp.sqrt(1 - share) * (point - jnp.sqrt(share) * MEAN) / (share * SCALE**2 + 1 - share)


def test_ddim_approaches_the_probability_flow():
    # For a Gaussian the flow keeps the standardised point: x_b = sqrt(abar_b) mu + s_b z.
    start, end = 999, 100
    spread = np.sqrt(kept([start, end]) * SCALE**2 + 1 - kept([start, end]))
    noise = np.array([[0.8], [-1.3]])
    exact = np.sqrt(kept(end)) * MEAN + spread[1] / spread[0] * (
        noise - np.sqrt(kept(start)) * MEAN
    )
    # 29, 31 and so on divide the 899 levels: all steps are of one length.
    errors = [
        np.abs(ddim(gaussian_noise, noise, [start] * 2, [end] * 2, n) - exact).max()
        for n in (29, 899)
    ]
    # First order: 31 times as many steps, about 31 times less error.
    assert errors[1] < 2e-3
    np.testing.assert_allclose(errors[0] / errors[1], 31, rtol=0.35)


def test_loss_sums_over_features():
    prediction, noise = np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([[0.0, 4.0], [1.0, -1.0]])
    arrays = (jnp.asarray(prediction, jnp.float32), jnp.asarray(noise, jnp.float32))
    np.testing.assert_allclose(losses.noise_prediction_loss(*arrays), [5.0, 1.0])


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_two_term_loss_is_the_mean_over_the_choice_of_a_sample(discount):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(a, jnp.float32) for a in rng.standard_normal((4, 5, 3))]
    found = losses.td_diffusion_loss(*arrays, discount=discount)
    errors = np.square(np.asarray(arrays[0::2]) - np.asarray(arrays[1::2])).sum(-1)
    np.testing.assert_allclose(found, (1 - discount) * errors[0] + discount * errors[1], rtol=1e-5)


def test_bootstraps_of_a_point_mass():
    # All is known: DDIM is exact, the sample is the point c, and the noise of the target at the
    # level is the one that the pure noise at level 999 stands for.
    place, noise, fresh = 1.7, np.array([[0.3], [-1.0]]), np.array([[0.9], [0.2]])
    level = np.array([150, 800])
    with jax.enable_x64(True):
        first, second, levels = (jnp.asarray(a) for a in (noise, fresh, level))
        network, shares = point_mass_noise(place), table(jnp.float64)
        plain = losses.td_dd_bootstrap(network, first, second, levels, shares)
        squared = losses.td2_dd_bootstrap(network, first, levels, shares)
    share = kept(level)[:, None]
    np.testing.assert_allclose(
        plain[0], np.sqrt(share) * place + np.sqrt(1 - share) * fresh, rtol=1e-11
    )
    np.testing.assert_array_equal(plain[1], fresh)
    own = (noise - np.sqrt(KEPT[999]) * place) / np.sqrt(1 - KEPT[999])
    np.testing.assert_allclose(
        squared[0], np.sqrt(share) * place + np.sqrt(1 - share) * own, rtol=1e-11
    )
    np.testing.assert_allclose(squared[1], own, rtol=1e-9)


def test_bootstraps_clip_what_they_denoise():
    noise, fresh = np.array([[0.3], [-1.0]]), np.array([[0.9], [0.2]])
    level = np.array([150, 800])
    with jax.enable_x64(True):
        first, second, levels = (jnp.asarray(a) for a in (noise, fresh, level))
        network, shares = point_mass_noise(1.7), table(jnp.float64)
        plain = losses.td_dd_bootstrap(
            network, first, second, levels, shares, data_range=(0.0, 1.5)
        )
        squared = losses.td2_dd_bootstrap(network, first, levels, shares, data_range=(0.0, 1.5))
    share = kept(level)[:, None]
    np.testing.assert_allclose(
        plain[0], np.sqrt(share) * 1.5 + np.sqrt(1 - share) * fresh, rtol=1e-11
    )
    own = (noise - np.sqrt(KEPT[999]) * 1.5) / np.sqrt(1 - KEPT[999])
    point = np.sqrt(share) * 1.5 + np.sqrt(1 - share) * own
    np.testing.assert_allclose(squared[0], point, rtol=1e-11)
    # What is learnt is what DDIM would go on with: the noise of the line to 1.5.
    np.testing.assert_allclose(squared[1], own, rtol=1e-9)


def test_bootstraps_start_at_the_last_level():
    # Where no noise is predicted, DDIM rescales by sqrt(abar_b / abar_a).
    noise, fresh, level = np.array([[0.3], [-1.0]]), np.array([[0.9], [0.2]]), np.array([150, 999])
    with jax.enable_x64(True):
        first, second, levels = (jnp.asarray(a) for a in (noise, fresh, level))
        shares = table(jnp.float64)
        plain = losses.td_dd_bootstrap(lambda x, i: 0 * x, first, second, levels, shares)
        squared = losses.td2_dd_bootstrap(lambda x, i: 0 * x, first, levels, shares)
    share = kept(level)[:, None]
    scaled = np.sqrt(share / KEPT[999]) * noise
    np.testing.assert_allclose(plain[0], scaled + np.sqrt(1 - share) * fresh, rtol=1e-11)
    np.testing.assert_allclose(squared[0], scaled, rtol=1e-11)


# A deterministic cycle of three states, as in the tests of flows.
PLACES, DISCOUNT = np.array([-1.0, 0.0, 2.0]), 0.8


def mixture_noise(weights):
    """The optimal network of a law of atoms: the mean of the noise under the posterior."""
    weights = np.array(weights)

    def noise_fn(point, level):
        share = table(point.dtype)[level][..., None]
        noises = (point - jnp.sqrt(share) * PLACES) / jnp.sqrt(1 - share)
        posterior = jax.nn.softmax(jnp.log(weights) - jnp.square(noises) / 2, axis=-1)
        return jnp.sum(posterior * noises, axis=-1, keepdims=True)

    return noise_fn


@pytest.mark.parametrize("level", [250, 600])
@pytest.mark.parametrize("name", ["td_dd", "td2_dd"])
def test_denoiser_of_the_horizon_model_is_a_fixed_point(name, level):
    special = pytest.importorskip("scipy.special")
    moves = np.roll(np.eye(3), 1, axis=1)
    law = (1 - DISCOUNT) * np.linalg.solve(np.eye(3) - DISCOUNT * moves, moves)
    own, target = mixture_noise(law[0]), mixture_noise(law[1])
    # Quadrature: equal shares of the noise, Gauss-Hermite for the fresh noise.
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    count = 400
    noise = np.repeat(special.ndtri((np.arange(count) + 0.5) / count), 20)[:, None]
    fresh = np.tile(nodes, count)[:, None]
    shares = np.tile(weights / weights.sum(), count) / count

    @jax.jit
    def residuals(noise, fresh, shares):
        levels = jnp.full(len(shares), level)
        points = losses.diffusion_point(
            jnp.full_like(noise, PLACES[1]), noise, table(noise.dtype)[levels]
        )
        draws = (noise, fresh) if name == "td_dd" else (noise,)
        function = getattr(losses, f"{name}_bootstrap")
        boot = function(target, *draws, levels, table(noise.dtype), num_steps=100)
        total = 0.0
        for weight, (point, wanted) in ((1 - DISCOUNT, (points, noise)), (DISCOUNT, boot)):
            error = (own(point, levels) - wanted)[:, 0] * shares
            features = jnp.stack([point[:, 0] ** k for k in range(3)])
            total += weight * jnp.sum(features * error, axis=-1)
        return total

    with jax.enable_x64(True):
        found = residuals(*(jnp.asarray(a) for a in (noise, fresh, shares)))
    # The error of 100 steps of first order; the direct term alone is off by .1 or more.
    np.testing.assert_allclose(found, 0, atol=1e-2)


@pytest.mark.parametrize("name", ["td_dd", "td2_dd"])
def test_no_gradient_reaches_the_target_network(name):
    rng = np.random.default_rng(0)
    noise, fresh = (jnp.asarray(a, jnp.float32) for a in rng.standard_normal((2, 4, 3)))
    draws = (noise, fresh) if name == "td_dd" else (noise,)

    def total(scale):
        function = getattr(losses, f"{name}_bootstrap")
        point, wanted = function(
            lambda x, i: scale * jnp.sin(x), *draws, jnp.arange(4), table()[:8], num_steps=3
        )
        return jnp.sum(point) + jnp.sum(wanted)

    assert jax.grad(total)(1.3) == 0


BETA_MIN, BETA_MAX = 0.1, 20.0


def kept_at(time):
    return jnp.exp(-(BETA_MIN * time + (BETA_MAX - BETA_MIN) * time**2 / 2))


def test_continuous_and_discrete_schedules_agree():
    # Level i is time (i + 1) / N: the sum of betas and the integral differ by O(1 / N).
    time = (np.arange(LEVELS) + 1) / LEVELS
    np.testing.assert_allclose(np.log(KEPT), np.log(np.asarray(kept_at(time))), rtol=0.1)


def test_probability_flow_is_the_derivative_of_the_flow():
    # A standardised point of a Gaussian stays: x_t = sqrt(abar_t) mu + s_t z.
    noise = np.array([[0.8], [-1.3], [0.1]])

    def place(time):
        share = kept_at(time)[:, None]
        return jnp.sqrt(share) * MEAN + jnp.sqrt(share * SCALE**2 + 1 - share) * noise

    with jax.enable_x64(True):
        time = jnp.array([0.02, 0.4, 1.0])
        point, slope = jax.jvp(place, (time,), (jnp.ones(3),))
        share = kept_at(time)[:, None]
        predicted = (
            jnp.sqrt(1 - share) * (point - jnp.sqrt(share) * MEAN) / (share * SCALE**2 + 1 - share)
        )
        velocity = losses.probability_flow_velocity(point, predicted, time)
    np.testing.assert_allclose(velocity, slope, rtol=1e-10)


def test_likelihood_of_a_gaussian_by_the_probability_flow():
    data = np.array([[1.2, 2.0], [0.4, 1.5]])

    def field(point, time):
        share = kept_at(1 - time)[:, None]
        predicted = (
            jnp.sqrt(1 - share) * (point - jnp.sqrt(share) * MEAN) / (share * SCALE**2 + 1 - share)
        )
        return -losses.probability_flow_velocity(point, predicted, 1 - time)

    with jax.enable_x64(True):
        found = losses.flow_log_likelihood(field, jnp.asarray(data), num_steps=400)
    # At time 1 the law of noised data is N(m, s^2), nearly the N(0, 1) that the likelihood starts
    # from: the density of the model is that of the data times the quotient of the two.
    scaled = (data - MEAN) / SCALE
    share = float(kept_at(1.0))
    mean, spread = np.sqrt(share) * MEAN, np.sqrt(share * SCALE**2 + 1 - share)
    exact = (scaled**2 - (mean + spread * scaled) ** 2) / 2 + np.log(spread)
    exact += -(scaled**2) / 2 - np.log(SCALE) - np.log(2 * np.pi) / 2
    np.testing.assert_allclose(found, exact.sum(-1), atol=1e-4)


def test_wrong_arguments_are_named():
    error = (ValueError, TypeError, pytest.importorskip("jaxtyping").TypeCheckError)
    zero, level, shares = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), table()
    network = point_mass_noise(0.0)
    for call, named in (
        (lambda: losses.ddim_sample(network, zero, level[:1], level, shares), "start_level"),
        (lambda: losses.ddim_sample(network, zero, level, jnp.zeros(2), shares), "end_level"),
        (lambda: losses.ddim_sample(network, zero, level, level, shares[None]), "alpha_bars"),
        (lambda: losses.ddim_sample(network, zero, level, level, shares[:0]), "alpha_bars"),
        (
            lambda: losses.ddim_sample(network, zero, level, level, shares, num_steps=0),
            "num_steps",
        ),
        (
            lambda: losses.ddim_sample(network, zero, level, level, shares, data_range=(1.0, 1.0)),
            "data_range",
        ),
        (
            lambda: losses.ddim_sample(
                network, zero, level, level, shares, data_range=(-1.0, jnp.ones(2))
            ),
            "data_range",
        ),
        (
            lambda: losses.ddim_sample(lambda x, i: x[0], zero, level, level, shares),
            "noise_fn",
        ),
        (lambda: losses.diffusion_point(zero, zero, jnp.zeros((2, 1))), "alpha_bar"),
        (lambda: losses.td2_dd_bootstrap(network, zero, jnp.zeros(2), shares), "level"),
        (
            lambda: losses.probability_flow_velocity(zero, zero, jnp.ones(2), beta_min=0.0),
            "beta_min",
        ),
        (lambda: losses.td_diffusion_loss(zero, zero, zero, zero, discount=2.0), "discount"),
    ):
        with pytest.raises(error, match=named):
            call()
