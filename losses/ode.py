r"""Flows of vector fields by the midpoint rule: samples from noise, and likelihoods of data.

A field :math:`v_t(x)` enters as a callable `velocity_fn(point[..., D], time[...])`, conditions
bound, which treats each point by itself. Time runs from 0, noise, to 1, data, where the fields of
flow matching may be singular: neither function ever asks for the velocity at the end.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax.losses import _checks, _vectors

# (point[..., D], time[...]) -> velocity[..., D].
VelocityFn = Callable[[Array, Array], Array]


def integrate_midpoint(
    velocity_fn: VelocityFn,
    start: Float[Array, "*B D"],
    end_time: Float[Array, "*B"],
    *,
    num_steps: int = 10,
) -> Float[Array, "*B D"]:
    r"""Returns where a flow carries points from time 0 to an end of their own.

    .. math:: h = t_{end} / n, \quad t_i = i h, \quad x_{i + 1} = x_i + h \,
              v_{t_i + h / 2} \left( x_i + \tfrac{h}{2} v_{t_i}(x_i) \right)

    The error falls with the square of the number of steps; each step calls the field twice, at
    times below `end_time`. A point whose `end_time` is 0 stays where it is, whatever the field; the
    field is then called at time 1/2 and its answer dropped. Gradients flow to `start`, `end_time`
    (above 0) and what `velocity_fn` closes over.

    Args:
      velocity_fn: the field. (point [..., D], time [...]) -> velocity [..., D].
      start: points at time 0. [..., D].
      end_time: where to stop, in [0, 1]. [...].
      num_steps: n, at least 1.

    Returns:
      Points at `end_time`. [..., D].

    Raises:
      ValueError: the shapes do not fit, or `num_steps` is no integer of at least 1.
      TypeError: an array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    end, point = _vectors.at_times("end_time", end_time, start=start)
    _vectors.at_least_one("num_steps", num_steps)
    moves = end != 0
    step = (end / num_steps)[..., None]

    def advance(point: Array, index: Array) -> tuple[Array, None]:
        # 0 is the end of a point that does not move: nothing is asked for there.
        first, middle = (
            jnp.where(moves, (index + offset) / num_steps * end, 0.5) for offset in (0.0, 0.5)
        )
        slope = _vectors.call("velocity_fn", velocity_fn, point, first)
        slope = _vectors.call("velocity_fn", velocity_fn, point + step / 2 * slope, middle)
        return jnp.where(moves[..., None], point + step * slope, point), None

    # Under `shard_map` what a loop carries must vary over devices from the start.
    point = point + jnp.zeros_like(end, shape=point.shape)
    return jax.lax.scan(advance, point, jnp.arange(num_steps, dtype=point.dtype))[0]


def flow_log_likelihood(
    velocity_fn: VelocityFn,
    data: Float[Array, "*B D"],
    *,
    num_steps: int,
    probes: Float[Array, "*B P D"] | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the log-density of data under a flow from N(0, I): the change of variables.

    .. math:: \log p_1(x_1) = \log N(x_0; 0, I)
              - \int_0^1 \mathrm{tr} \, \frac{\partial v_t}{\partial x}(x_t) \, dt

    The points x_t run from the data back to noise in n steps of h = 1 / n, from t to t - h by

    .. math:: y = x_t - \tfrac{h}{2} v_{t - h / 2}(x_t), \quad
              x_{t - h} = x_t - h \, v_{t - h / 2}(y), \quad
              \int_{t - h}^t \mathrm{tr} \approx h \, \mathrm{tr} \,
              \frac{\partial v_{t - h / 2}}{\partial x}(y)

    This is the midpoint rule with its first slope, too, taken at the middle in time. That moves y
    by O(h^2) only, so that the error still falls with the square of the number of steps where the
    field is smooth; and the field is called at the middles of the steps alone, never at time 1 or
    0. Gradients flow to `data` and what `velocity_fn` closes over.

    Args:
      velocity_fn: the field. (point [..., D], time [...]) -> velocity [..., D]; each velocity
        depends on its own point only.
      data: x_1, points at time 1. [..., D].
      num_steps: n, at least 1.
      probes: independent vectors z of mean 0 and covariance I, signs for least variance, the same
        for all steps: Hutchinson's estimate of the trace, the mean of z . (dv / dx) z over P
        probes, unbiased and at the cost of P products. [..., P, D]. None takes the exact trace, at
        the cost of D products.

    Returns:
      Log-densities in nats, summed over the D features. [...].

    Raises:
      ValueError: the shapes do not fit, or `num_steps` is no integer of at least 1.
      TypeError: an array is not floating point.

    References:
      Chen et al., Neural Ordinary Differential Equations, 2018. https://arxiv.org/abs/1806.07366
      Grathwohl et al., FFJORD, 2019, for the estimated trace. https://arxiv.org/abs/1810.01367
    """
    (point,) = _vectors.vectors(data=data)
    _vectors.at_least_one("num_steps", num_steps)
    directions, weight = _directions(point, probes)
    middles = (np.arange(num_steps) + 0.5)[::-1] / num_steps

    def retreat(point: Array, middle: Array) -> tuple[Array, Array]:
        time = jnp.full_like(point[..., 0], middle)

        def field(point: Array) -> Array:
            return _vectors.call("velocity_fn", velocity_fn, point, time)

        halfway = point - field(point) / (2 * num_steps)
        slope, derivative = jax.linearize(field, halfway)
        traces = jnp.sum(directions * jax.vmap(derivative)(directions), axis=-1)
        return point - slope / num_steps, weight * jnp.sum(traces, axis=0)

    noise, traces = jax.lax.scan(retreat, point, jnp.asarray(middles, point.dtype))
    normaliser = point.shape[-1] / 2 * math.log(2 * math.pi)
    base = -jnp.sum(jnp.square(noise), axis=-1) / 2 - normaliser
    return base - jnp.sum(traces, axis=0) / num_steps


def _directions(
    point: Float[Array, "*B D"], probes: Array | None
) -> tuple[Float[Array, "K *B D"], float]:
    """Returns vectors, and the weight of each one's quadratic form in the trace."""
    if probes is None:
        basis = jnp.eye(point.shape[-1], dtype=point.dtype)
        axes = tuple(range(1, point.ndim))
        # Added to zeros of the points, so that they vary over devices as the points do.
        return jnp.expand_dims(basis, axes) + jnp.zeros_like(point)[None], 1.0
    values = _checks.as_float("probes", probes).astype(point.dtype)
    fits = values.ndim == point.ndim + 1 and values.shape[-2] >= 1
    if not fits or (*values.shape[:-2], values.shape[-1]) != point.shape:
        raise ValueError(
            f"probes must be [..., P, D] with P at least 1 where data is {point.shape}, "
            f"got {values.shape}."
        )
    return jnp.moveaxis(values, -2, 0), 1 / values.shape[-2]
