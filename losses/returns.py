"""Returns and advantages of trajectories, from rewards and estimated values."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def generalised_advantages(
    rewards: Float[Array, "*B T"],
    values: Float[Array, "*B S"],
    discounts: Float[Array, "*B T"],
    *,
    trace_decay: Knob,
) -> Float[Array, "*B T"]:
    r"""Returns generalised advantage estimates (GAE) of a trajectory.

    .. math:: A_t = \delta_t + \gamma_{t+1} \lambda A_{t+1}, \quad
              \delta_t = r_{t+1} + \gamma_{t+1} V(x_{t+1}) - V(x_t)

    At lambda 0 it is the TD error, at lambda 1 the discounted return, the last value included,
    minus the value. Added to `values[..., :-1]` it is the target of the values. Advantages are what
    a policy loss holds constant: they are gradient-stopped here.

    Args:
      rewards: r of each transition. [..., T].
      values: V of the T states and of the one after the last. [..., T + 1].
      discounts: gamma of each transition, in [0, 1]; 0 where it terminates. What follows a discount
        of 0 may hold anything, and does not reach back over it. [..., T].
      trace_decay: lambda in [0, 1]; 0.95 is usual. A scalar or [..., T]; may be traced.

    Returns:
      Advantages in the unit of the rewards. [..., T].

    Raises:
      ValueError: the shapes do not fit, or `trace_decay` is out of range.
      TypeError: an array is not floating point.

    References:
      Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation,
      2015. https://arxiv.org/abs/1506.02438
    """
    reward, discount = _checks.floats(rewards=rewards, discounts=discounts)
    value = _checks.as_float("values", values)
    if reward.ndim < 1 or value.shape != (*reward.shape[:-1], reward.shape[-1] + 1):
        raise ValueError(
            "values must have one more step than rewards on the last axis, got "
            f"{value.shape} and {reward.shape}."
        )
    _checks.in_range("trace_decay", trace_decay, 0, 1)
    reward, discount, value = _checks.stop(reward, discount, value)
    goes_on = discount != 0
    # A select and not a product: a value past the end may be NaN, and 0 times NaN is NaN.
    bootstrap = discount * jnp.where(goes_on, value[..., 1:], 0)
    errors = reward + bootstrap - value[..., :-1]
    decays = discount * jax.lax.stop_gradient(_checks.knob("trace_decay", trace_decay, reward))

    def step(later, inputs):
        error, decay, connected = inputs
        advantage = error + decay * jnp.where(connected, later, 0)
        return advantage, advantage

    # Time-major: a scan over the last axis would gather a strided column at every step.
    steps = tuple(jnp.moveaxis(array, -1, 0) for array in (errors, decays, goes_on))
    nothing = jnp.zeros_like(value[..., -1], dtype=errors.dtype)
    _, advantages = jax.lax.scan(step, nothing, steps, reverse=True)
    return jnp.moveaxis(advantages, 0, -1)
