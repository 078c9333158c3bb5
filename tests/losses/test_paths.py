"""Probability paths: ends, velocities as derivatives, conditional velocities, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

PATHS = {"linear": losses.linear_path, "curved": losses.curved_path}
# alpha and beta of X_t = alpha X_1 + beta X_0, and their derivatives, from the definitions.
COEFFICIENTS = {
    "linear": lambda t: (t, 1 - t, np.ones_like(t), -np.ones_like(t)),
    "curved": lambda t: (
        np.sin(np.pi * t / 2),
        np.cos(np.pi * t / 2),
        np.pi / 2 * np.cos(np.pi * t / 2),
        -np.pi / 2 * np.sin(np.pi * t / 2),
    ),
}
every_path = pytest.mark.parametrize("name", PATHS)


def draw(count=5, features=3, seed=0):
    rng = np.random.default_rng(seed)
    noise, data = rng.standard_normal((2, count, features))
    return noise, data, rng.uniform(0.05, 0.95, count)


@every_path
def test_path_runs_from_noise_to_data(name):
    noise, data, time = (jnp.asarray(array, jnp.float32) for array in draw())
    start, _ = PATHS[name](noise, data, jnp.zeros_like(time))
    end, _ = PATHS[name](noise, data, jnp.ones_like(time))
    np.testing.assert_array_equal(start, noise)
    np.testing.assert_allclose(end, data, atol=1e-6)


@every_path
def test_point_and_velocity_by_the_definitions(name):
    noise, data, time = draw()
    alpha, beta, alpha_slope, beta_slope = (c[:, None] for c in COEFFICIENTS[name](time))
    with jax.enable_x64(True):
        point, velocity = PATHS[name](*(jnp.asarray(a) for a in (noise, data, time)))
    point, velocity = np.asarray(point), np.asarray(velocity)
    np.testing.assert_allclose(point, alpha * data + beta * noise, rtol=1e-12)
    np.testing.assert_allclose(velocity, alpha_slope * data + beta_slope * noise, rtol=1e-12)
    # The conditional velocity, a function of the point and the data alone.
    conditional = (alpha_slope - alpha * beta_slope / beta) * data + beta_slope / beta * point
    np.testing.assert_allclose(velocity, conditional, rtol=1e-9)


@every_path
def test_velocity_is_the_derivative_of_the_point(name):
    with jax.enable_x64(True):
        noise, data, time = (jnp.asarray(array) for array in draw())
        _, slope = jax.jvp(
            lambda t: PATHS[name](noise, data, t)[0], (time,), (jnp.ones_like(time),)
        )
        _, velocity = PATHS[name](noise, data, time)
    np.testing.assert_allclose(velocity, slope, rtol=1e-12)


def test_direct_point_of_the_specification():
    # Specification C1: t X_1 + (1 - t) X_0 and X_1 - X_0.
    noise, data = jnp.array([[0.2], [-1.1]]), jnp.array([[1.0], [-0.5]])
    point, velocity = losses.linear_path(noise, data, jnp.array([0.3, 0.7]))
    np.testing.assert_allclose(point[:, 0], [0.44, -0.68], rtol=1e-6)
    np.testing.assert_allclose(velocity[:, 0], [0.8, 0.6], rtol=1e-6)


@every_path
@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((2, 3), (2, 4), (2,)), "data"),
        (((2, 3), (2, 3), (2, 1)), "time"),
        (((2, 3), (2, 3), ()), "time"),
        (((), (), ()), "noise"),
    ],
)
def test_wrong_shapes_are_named(name, shapes, named):
    # jaxtyping's own error where its checks are switched on.
    error = (ValueError, pytest.importorskip("jaxtyping").TypeCheckError)
    with pytest.raises(error, match=named):
        PATHS[name](*(jnp.zeros(shape) for shape in shapes))
