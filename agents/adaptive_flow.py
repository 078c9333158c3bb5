"""Flows of vector fields to a tolerance, by diffrax (extra `horizon`)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses.ode import VelocityFn


@functools.cache
def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "integrate_adaptive needs diffrax; install the extra: pip install 'bellmax[horizon]'."
        ) from error
    return diffrax


def integrate_adaptive(
    velocity_fn: VelocityFn,
    start: Float[Array, "*B D"],
    *,
    end_time: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_steps: int = 4096,
) -> Float[Array, "*B D"]:
    """Returns where a flow carries points from time 0 to an end that all share.

    The steps are those of Tsitouras' method of order 5, as small as the tolerances ask, the same
    for all points. Each costs six evaluations, and `losses.integrate_midpoint` two, of a fixed
    number of steps: this one is for evaluations, and for a check of how many steps are enough.
    Gradients flow to `start` and what `velocity_fn` closes over.

    Args:
      velocity_fn: the field. (point [..., D], time [...]) -> velocity [..., D].
      start: points at time 0. [..., D].
      end_time: where to stop, in (0, 1]; the field is called there, too.
      rtol: tolerance of a step's error over the point's size.
      atol: tolerance of it beside.
      max_steps: steps, rejected ones included, after which the solution is given up.

    Returns:
      Points at `end_time`; NaN where `max_steps` were not enough. [..., D].

    Raises:
      ValueError: `end_time` or a tolerance is out of range.
      ImportError: diffrax is not installed.

    References:
      Tsitouras, Runge-Kutta pairs of order 5(4), 2011.
      Kidger, On Neural Differential Equations, 2021. https://arxiv.org/abs/2202.02435
    """
    if not 0 < end_time <= 1:
        raise ValueError(f"end_time must be in (0, 1], got {end_time}.")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not tolerance > 0:
            raise ValueError(f"{name} must be positive, got {tolerance}.")
    diffrax = _diffrax()

    def field(time, point, arguments):
        del arguments
        return velocity_fn(point, jnp.full(point.shape[:-1], time, point.dtype))

    found = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        t0=0.0,
        t1=end_time,
        dt0=None,
        y0=start,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        throw=False,
    )
    succeeded = found.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda point: jnp.where(succeeded, point, jnp.nan), found.ys[-1])
