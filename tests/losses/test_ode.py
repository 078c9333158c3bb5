"""Midpoint integration and likelihoods: closed forms, order of convergence, singular ends."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

MEAN, SCALE = 1.5, 0.5


def gaussian_field(point, time):
    """The field whose flow carries N(0, 1) to N(MEAN, SCALE^2) along straight paths."""
    t = time[..., None]
    variance = (t * SCALE) ** 2 + (1 - t) ** 2
    return MEAN + (t * SCALE**2 - (1 - t)) / variance * (point - t * MEAN)


def gaussian_flow(point, time):
    """Where it carries a point, in closed form."""
    return time * MEAN + np.sqrt((time * SCALE) ** 2 + (1 - time) ** 2) * point


def integrate(field, start, end, num_steps):
    with jax.enable_x64(True):
        function = jax.jit(lambda x, t: losses.integrate_midpoint(field, x, t, num_steps=num_steps))
        return np.asarray(function(jnp.asarray(start, jnp.float64), jnp.asarray(end, jnp.float64)))


def log_likelihood(field, data, num_steps, probes=None):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(a, jnp.float64) for a in (data, probes) if a is not None]

        def function(x, *z):
            return losses.flow_log_likelihood(
                field, x, num_steps=num_steps, probes=z[0] if z else None
            )

        return np.asarray(jax.jit(function)(*arrays))


@pytest.mark.parametrize(
    ("num_steps", "end", "expected"),
    # Specification C3; exact are 1.85 at the end and 1.141311896 half way.
    [
        (10, 1.0, 1.849919317),
        (20, 1.0, 1.849989820),
        (100, 1.0, 1.849999918),
        (10, 0.5, 1.141307640),
    ],
)
def test_solver_of_the_specification(num_steps, end, expected):
    found = integrate(gaussian_field, [0.7], end, num_steps)
    np.testing.assert_allclose(found, [expected], atol=5.1e-10)
    np.testing.assert_allclose(found, [gaussian_flow(0.7, end)], atol=1e-4)


@pytest.mark.parametrize("end", [0.5, 1.0])
def test_halving_the_step_quarters_the_error(end):
    # x' = x^2 cos t has the solution x_0 / (1 - x_0 sin t). (On the Gaussian field above the rule
    # happens to be of third order.)
    start = np.array([[0.7], [-1.2], [0.2]])
    exact = start / (1 - start * np.sin(end))
    errors = [
        np.abs(
            integrate(lambda x, t: x**2 * jnp.cos(t)[:, None], start, np.full(3, end), n) - exact
        ).max()
        for n in (40, 80, 160)
    ]
    # A method of first order has 2 here, one of third order 8.
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, atol=0.2)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_straight_flow_to_a_point_is_exact_though_singular_at_its_end(num_steps):
    # v = (c - x) / (1 - t) keeps x_t on the line from x_0 to c: one midpoint step from x_0 meets
    # the slope (c - x_0) at both of its evaluations, at any step.
    goal = 2.0
    start, end = np.array([[0.3], [-1.0], [0.5]]), np.array([1.0, 0.25, 0.0])
    found = integrate(lambda x, t: (goal - x) / (1 - t[..., None]), start, end, num_steps)
    np.testing.assert_allclose(found, start + end[:, None] * (goal - start), atol=1e-12)


@pytest.mark.parametrize("ends", [[1.0, 1.0, 1.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.0]])
def test_field_is_never_asked_for_its_end(ends):
    end = jnp.array(ends)
    start = jnp.ones((3, 2))

    def field(point, time):
        return jnp.where((time == end)[:, None], jnp.nan, point)

    function = jax.value_and_grad(
        lambda x: jnp.sum(losses.integrate_midpoint(field, x, end, num_steps=4))
    )
    value, slope = function(start)
    # x' = x grows by 1 + h + h^2 / 2 a step.
    steps = np.array(ends) / 4
    growth = (1 + steps + steps**2 / 2) ** 4
    np.testing.assert_allclose(value, 2 * growth.sum(), rtol=1e-6)
    np.testing.assert_allclose(slope, np.repeat(growth[:, None], 2, 1), rtol=1e-6)


def test_a_point_that_does_not_move_has_no_part_of_the_field():
    start, end = jnp.array([[0.3], [-1.0]]), jnp.array([0.0, 0.5])

    def total(fields, start):
        points = losses.integrate_midpoint(fields, start, end, num_steps=4)
        return jnp.sum(points * jnp.array([[1.0], [3.0]]))

    def singular(point, time):
        return (2 - point) / (end - time)[:, None]

    def undefined(point, time):
        return jnp.where((end == 0)[:, None], jnp.nan, singular(point, time))

    # The second point ends at 2, wherever it came from.
    for field in (singular, undefined):
        value, slope = jax.value_and_grad(total, 1)(field, start)
        np.testing.assert_allclose(value, 6.3, rtol=1e-6)
        np.testing.assert_allclose(slope, [[1.0], [0.0]], atol=1e-6)


def test_slope_of_the_end_time_is_the_velocity_there():
    # d psi_t / dt = v_t(psi_t), up to the error of the solver.
    with jax.enable_x64(True):
        start, end = jnp.array([[0.7], [-0.4]]), jnp.array([0.5, 0.9])
        point, slope = jax.jvp(
            lambda t: losses.integrate_midpoint(gaussian_field, start, t, num_steps=200),
            (end,),
            (jnp.ones(2),),
        )
        velocity = gaussian_field(point, end)
    np.testing.assert_allclose(slope, velocity, atol=1e-4)


def test_network_may_compute_in_half_precision():
    start, end = jnp.ones((2, 3)), jnp.ones(2)
    found = losses.integrate_midpoint(
        lambda x, t: jnp.ones(x.shape, jnp.bfloat16), start, end, num_steps=8
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 2 * np.ones((2, 3)), rtol=1e-6)


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True])
def test_number_of_steps_is_checked(num_steps):
    error = (ValueError, pytest.importorskip("jaxtyping").TypeCheckError)
    with pytest.raises(error, match="num_steps"):
        losses.integrate_midpoint(gaussian_field, jnp.ones(1), jnp.ones(()), num_steps=num_steps)
    with pytest.raises(error, match="num_steps"):
        losses.flow_log_likelihood(gaussian_field, jnp.ones(1), num_steps=num_steps)


def test_wrong_fields_and_probes_are_named():
    error = (ValueError, pytest.importorskip("jaxtyping").TypeCheckError)
    data, time = jnp.ones((2, 3)), jnp.ones(2)

    def wrong(point, time):
        return point[..., :1]

    with pytest.raises(ValueError, match="velocity_fn"):
        losses.integrate_midpoint(wrong, data, time)
    with pytest.raises(ValueError, match="velocity_fn"):
        losses.flow_log_likelihood(wrong, data, num_steps=2)
    for shape in ((2, 3), (2, 0, 3), (1, 4, 3), (2, 4, 2)):
        with pytest.raises(error, match="probes"):
            losses.flow_log_likelihood(gaussian_field, data, num_steps=2, probes=jnp.ones(shape))


def gaussian_log_density(point):
    """log N(MEAN, SCALE^2) of a vector of independent features."""
    scaled = (point - MEAN) / SCALE
    return np.sum(-(scaled**2) / 2 - np.log(SCALE) - np.log(2 * np.pi) / 2, axis=-1)


def test_likelihood_of_a_gaussian_by_its_density():
    data = np.array([[1.2, 2.0], [0.4, 1.5], [2.5, 0.1]])
    exact = gaussian_log_density(data)
    errors = [np.abs(log_likelihood(gaussian_field, data, n) - exact).max() for n in (20, 40, 80)]
    assert errors[-1] < 1e-3
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, atol=0.3)


def curved_field(point, time):
    """Nonlinear, with a trace that depends on the point and features that depend on each other."""
    t = time[..., None]
    return jnp.sin(2 * point) * (1 - t) + t * jnp.tanh(jnp.flip(point, -1)) * point


def test_densities_add_up_to_one():
    # The trapezoidal rule is exact to rounding for smooth functions that decay; what is left is
    # the error of the solver.
    line = np.linspace(-9, 9, 121)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    totals = [
        np.exp(log_likelihood(curved_field, grid, n)).sum() * (line[1] - line[0]) ** 2
        for n in (20, 40)
    ]
    assert abs(totals[1] - 1) < 1e-3
    assert abs(totals[1] - 1) < 0.4 * abs(totals[0] - 1) + 1e-6


def test_likelihood_inverts_what_the_sampler_does():
    # log p_1(psi_1(x)) = log N(x) - log |det d psi_1 / dx|, the determinant from the sampler.
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4, 2))
    with jax.enable_x64(True):

        def sample(x):
            return losses.integrate_midpoint(curved_field, x, jnp.ones(()), num_steps=200)

        points = jax.vmap(sample)(jnp.asarray(noise))
        jacobians = jax.vmap(jax.jacfwd(sample))(jnp.asarray(noise))
    _, log_determinants = np.linalg.slogdet(np.asarray(jacobians))
    base = -np.sum(noise**2, -1) / 2 - np.log(2 * np.pi)
    found = log_likelihood(curved_field, points, 200)
    np.testing.assert_allclose(found, base - log_determinants, atol=2e-4)


def test_likelihood_is_never_asked_for_the_ends():
    def field(point, time):
        bad = (time <= 0) | (time >= 1)
        return jnp.where(bad[..., None], jnp.nan, gaussian_field(point, time))

    data = np.array([[1.2, 2.0]])
    assert np.isfinite(log_likelihood(field, data, 5)).all()


LINEAR = np.array([[0.3, -1.0, 0.2], [0.5, -0.4, 0.7], [-0.6, 0.1, 0.8]])


def linear_field(point, time):
    return point @ jnp.asarray(LINEAR.T, point.dtype) + jnp.cos(time)[..., None]


def test_mean_over_all_signs_is_the_exact_trace():
    # Over all 2^D sign vectors the mean of z_i z_j is 1 where i = j and 0 elsewhere, so that the
    # mean of z . A z is the trace of A.
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    data = np.array([[0.4, -0.2, 1.0], [1.0, 0.5, -0.3]])
    probes = np.broadcast_to(signs, (2, 8, 3))
    exact = log_likelihood(linear_field, data, 7)
    np.testing.assert_allclose(log_likelihood(linear_field, data, 7, probes), exact, rtol=1e-12)
    # A single sign vector leaves the terms off the diagonal.
    single = log_likelihood(linear_field, data, 7, probes[:, :1])
    off_diagonal = signs[0] @ LINEAR @ signs[0] - np.trace(LINEAR)
    np.testing.assert_allclose(exact - single, np.full(2, off_diagonal), rtol=1e-10)


def test_likelihood_of_a_linear_flow_by_the_exponential_of_its_matrix():
    linalg = pytest.importorskip("scipy.linalg")
    # x' = A x carries N(0, I) to N(0, e^A e^A^T).
    data = np.array([[0.4, -0.2, 1.0], [1.0, 0.5, -0.3]])
    root = linalg.expm(LINEAR)
    covariance = root @ root.T
    distance = np.einsum("bi,ij,bj->b", data, np.linalg.inv(covariance), data)
    exact = -(distance + np.linalg.slogdet(2 * np.pi * covariance)[1]) / 2
    found = log_likelihood(lambda x, t: x @ jnp.asarray(LINEAR.T, x.dtype), data, 200)
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_gradient_of_the_likelihood_is_the_score():
    # That of a Gaussian: -(x - MEAN) / SCALE^2.
    data = np.array([[1.2, 2.0], [0.4, 1.5]])
    with jax.enable_x64(True):
        score = jax.grad(
            lambda x: losses.flow_log_likelihood(gaussian_field, x, num_steps=100).sum()
        )(jnp.asarray(data))
    np.testing.assert_allclose(score, -(data - MEAN) / SCALE**2, atol=2e-3)
