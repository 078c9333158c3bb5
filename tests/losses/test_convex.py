"""The convex functions against their table: values, slopes, curvature and population optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

FUNCTIONS = {
    name: getattr(losses, name)
    for name in ("logistic", "hinge", "squared", "exponential", "truncated_quadratic", "savage")
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)

# f(0), f'(0), f''(0): derived by hand from the formulas.
AT_ZERO = {
    "logistic": (np.log(2), -0.5, 0.25),
    "hinge": (1, -1, 0),
    "squared": (1, -2, 2),
    "exponential": (1, -1, 1),
    "truncated_quadratic": (1, -2, 2),
    "savage": (0.25, -0.25, 0.125),
}


@every_function
def test_derivatives_at_zero(name):
    f = FUNCTIONS[name]
    found = [g(jnp.zeros(())) for g in (f, jax.grad(f), jax.grad(jax.grad(f)))]
    np.testing.assert_allclose(found, AT_ZERO[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "savage"])
def test_convex(name):
    points = jnp.linspace(-60.0, 60.0, 2001)
    values = FUNCTIONS[name](points)
    middle = FUNCTIONS[name]((points[:-1] + points[1:]) / 2)
    chord = (values[:-1] + values[1:]) / 2
    assert bool(jnp.all(middle <= chord * (1 + 1e-5) + 1e-5))


def test_savage_is_concave_exactly_below_minus_log_two():
    curvature = jax.vmap(jax.grad(jax.grad(losses.savage)))
    edge = -np.log(2)
    below, above = jnp.linspace(-6.0, edge - 0.01, 50), jnp.linspace(edge + 0.01, 6.0, 50)
    assert bool(jnp.all(curvature(below) < 0))
    assert bool(jnp.all(curvature(above) > 0))
    np.testing.assert_allclose(curvature(jnp.array([edge])), 0, atol=1e-6)


# The scaled margin that minimises p f(z) + (1 - p) f(-z), and the risk there: closed forms.
OPTIMA = {
    "logistic": (
        lambda p: np.log(p / (1 - p)),
        lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p),
    ),
    "savage": (lambda p: np.log(p / (1 - p)), lambda p: p * (1 - p)),
    "exponential": (lambda p: np.log(p / (1 - p)) / 2, lambda p: 2 * np.sqrt(p * (1 - p))),
    "squared": (lambda p: 2 * p - 1, lambda p: 4 * p * (1 - p)),
    "truncated_quadratic": (lambda p: 2 * p - 1, lambda p: 4 * p * (1 - p)),
    "hinge": (lambda p: np.sign(p - 0.5), lambda p: 2 * min(p, 1 - p)),
}


@every_function
@pytest.mark.parametrize("p", [0.6, 0.75, 0.9])
def test_population_optimum(name, p):
    optimum, least = OPTIMA[name]

    def risk(margin):
        # The margin itself as the log-ratio; a label wrong with probability 1 - p.
        return losses.gpo_loss(
            margin,
            jnp.zeros_like(margin),
            convex_fn=FUNCTIONS[name],
            beta=1.0,
            label_smoothing=1 - p,
        )

    grid = jnp.linspace(-4.0, 4.0, 8001)
    risks = risk(grid)
    np.testing.assert_allclose(grid[jnp.argmin(risks)], optimum(p), atol=6e-3)
    np.testing.assert_allclose(risks.min(), least(p), rtol=1e-5)
    if name != "hinge":  # Its optimum is a kink.
        np.testing.assert_allclose(jax.grad(risk)(jnp.float32(optimum(p))), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "beta", "probability"),
    [
        ("logistic", 0.5, 0.9),
        ("logistic", 1.0, 0.75),
        ("exponential", 0.5, 0.75),
        ("exponential", 1.0, 0.63397460),
        ("squared", 0.5, 0.73105858),
        ("squared", 1.0, 0.62245933),
    ],
)
def test_optimal_policy_of_two_actions(name, beta, probability):
    # p = 0.75, uniform reference: pi(1) = sigma(z* / beta), where the gradient is 0.
    def risk(log_ratio):
        return losses.gpo_loss(
            log_ratio,
            jnp.zeros(()),
            convex_fn=FUNCTIONS[name],
            beta=beta,
            label_smoothing=0.25,
        )

    margin = jnp.float32(np.log(probability / (1 - probability)))
    np.testing.assert_allclose(jax.grad(risk)(margin), 0, atol=1e-6)


def test_exponential_continues_by_its_tangent():
    # Below -40: e^40 (1 + (-40 - z)), with the slope -e^40 of the edge.
    points = jnp.array([-1e4, -88.0, -41.0, -39.0])
    values, slopes = jax.vmap(jax.value_and_grad(losses.exponential))(points)
    expected = np.where(points < -40, np.exp(40.0) * (-39.0 - points), np.exp(39.0))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(slopes, -np.exp(np.minimum(-points, 40.0)), rtol=1e-5)


@every_function
def test_tails(name):
    # Every one vanishes or grows as its formula says, without overflow in float16 inputs either.
    far = FUNCTIONS[name](jnp.array([-1e4, 1e4], jnp.float16))
    assert far.dtype == jnp.float32
    expected = {
        "logistic": (1e4, 0),
        "hinge": (10001, 0),
        "squared": (10001.0**2, 9999.0**2),
        "exponential": (np.exp(40.0) * 9961, 0),
        "truncated_quadratic": (10001.0**2, 0),
        "savage": (1, 0),
    }
    np.testing.assert_allclose(far, expected[name], rtol=1e-5)
