"""The adaptive solver against flows in closed form, and against the midpoint rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses
from bellmax.agents import adaptive_flow

pytest.importorskip("diffrax", reason="needs the extra `horizon`")

MEAN, SPREAD = 1.5, 0.5


def gaussian_field(point, time):
    """The field that carries N(0, I) to N(MEAN, SPREAD^2 I) along straight conditional paths."""
    t = time[..., None]
    scale = (t * SPREAD**2 - (1 - t)) / (t**2 * SPREAD**2 + (1 - t) ** 2)
    return MEAN + scale * (point - t * MEAN)


@pytest.mark.parametrize("end_time", [0.5, 1.0])
def test_reaches_the_closed_form(end_time):
    start = jnp.array([[0.7, -0.2], [2.0, 0.0], [-1.0, 1.0]])
    found = jax.jit(
        lambda x: adaptive_flow.integrate_adaptive(gaussian_field, x, end_time=end_time)
    )(start)
    width = np.sqrt(end_time**2 * SPREAD**2 + (1 - end_time) ** 2)
    np.testing.assert_allclose(found, end_time * MEAN + width * start, atol=2e-4)


def test_more_midpoint_steps_come_closer_to_it():
    start = jax.random.normal(jax.random.key(0), (16, 2))
    exact = adaptive_flow.integrate_adaptive(gaussian_field, start)
    ends = jnp.ones(16)
    errors = [
        float(
            jnp.abs(
                losses.integrate_midpoint(gaussian_field, start, ends, num_steps=n) - exact
            ).max()
        )
        for n in (5, 20)
    ]
    # Four times the steps, a sixteenth of the error, up to the float32 of both.
    assert errors[1] < errors[0] / 8


def test_gradient_is_the_flow_s():
    slope = jax.grad(
        lambda x: adaptive_flow.integrate_adaptive(gaussian_field, x[None, None])[0, 0]
    )(jnp.array(0.3))
    np.testing.assert_allclose(slope, SPREAD, rtol=1e-3)


def test_too_few_steps_are_nan_and_not_a_wrong_number():
    found = adaptive_flow.integrate_adaptive(
        gaussian_field, jnp.ones((2, 1)), rtol=1e-6, max_steps=2
    )
    assert jnp.isnan(found).all()


@pytest.mark.parametrize(
    ("name", "value"), [("end_time", 0.0), ("end_time", 1.5), ("rtol", 0.0), ("atol", -1.0)]
)
def test_refuses(name, value):
    with pytest.raises(ValueError, match=name):
        adaptive_flow.integrate_adaptive(gaussian_field, jnp.ones((1, 1)), **{name: value})
