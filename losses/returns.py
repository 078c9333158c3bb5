"""Returns and advantages of trajectories, from rewards and estimated values of states.

Step t goes from x_t to x_{t+1}: reward and discount are its own, and values are of T + 1 states.
`off_policy_returns` has the returns from values of actions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob


class VTrace(NamedTuple):
    """What V-trace makes of a trajectory, gradient-stopped.

    Attributes:
      targets: v_t, what the values should be. [..., T].
      advantages: of the actions taken, times the clipped ratio: the weights of a policy gradient.
        [..., T].
      action_values: q_t, the estimated values of the actions taken. [..., T].
    """

    targets: Float[Array, "*B T"]
    advantages: Float[Array, "*B T"]
    action_values: Float[Array, "*B T"]


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
    reward, value, discount = _trajectory(rewards, values, discounts)
    decays = discount * _trace_decay(trace_decay, reward)
    errors = reward + _next(value, discount) - value[..., :-1]
    return accumulate(errors, decays, discount != 0)


def lambda_returns(
    rewards: Float[Array, "*B T"],
    values: Float[Array, "*B S"],
    discounts: Float[Array, "*B T"],
    *,
    trace_decay: Knob,
) -> Float[Array, "*B T"]:
    r"""Returns lambda-returns: the targets of TD(lambda) in its forward view.

    .. math:: G_t = r_t + \gamma_t \left( (1 - \lambda) V(x_{t+1}) + \lambda G_{t+1} \right),
              \quad G_T = V(x_T)

    At lambda 0 one step, at lambda 1 the whole return. It is `generalised_advantages` plus the
    values. Gradient-stopped here.

    Args:
      rewards: r of each transition. [..., T].
      values: V of the T states and of the one after the last; the first is not read. [..., T + 1].
      discounts: gamma of each transition, in [0, 1]; 0 where it terminates. What follows a discount
        of 0 may hold anything, and does not reach back over it. [..., T].
      trace_decay: lambda in [0, 1]. A scalar or [..., T]; may be traced.

    Returns:
      Returns in the unit of the rewards. [..., T].

    Raises:
      ValueError: the shapes do not fit, or `trace_decay` is out of range.
      TypeError: an array is not floating point.

    References:
      Sutton, Learning to Predict by the Methods of Temporal Differences, 1988.
      https://doi.org/10.1007/BF00115009
    """
    reward, value, discount = _trajectory(rewards, values, discounts)
    decay = _trace_decay(trace_decay, reward)
    known = reward + (1 - decay) * _next(value, discount)
    return accumulate(known, discount * decay, discount != 0, last=value[..., -1])


def n_step_returns(
    rewards: Float[Array, "*B T"],
    values: Float[Array, "*B S"],
    discounts: Float[Array, "*B T"],
    *,
    num_steps: int,
) -> Float[Array, "*B T"]:
    r"""Returns n-step returns: n rewards, then the value of the state that they lead to.

    .. math:: G^{(n)}_t = r_t + \gamma_t G^{(n-1)}_{t+1}, \quad G^{(0)}_t = V(x_t)

    Steps closer to the end of the trajectory than n use what is left and the last value.
    Gradient-stopped here. The work is n T.

    Args:
      rewards: r of each transition. [..., T].
      values: V of the T states and of the one after the last. [..., T + 1].
      discounts: gamma of each transition, in [0, 1]; 0 where it terminates. What follows a discount
        of 0 may hold anything, and does not reach back over it. [..., T].
      num_steps: n, at least 1.

    Returns:
      Returns in the unit of the rewards. [..., T].

    Raises:
      ValueError: the shapes do not fit, or `num_steps` is below 1.
      TypeError: an array is not floating point.

    References:
      Sutton and Barto, Reinforcement Learning: An Introduction, 2018, chapter 7.
      http://incompleteideas.net/book/the-book-2nd.html
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    reward, value, discount = _trajectory(rewards, values, discounts)
    dtype = jnp.result_type(reward, discount, value)

    def step(_: Any, estimate: Array) -> Array:
        longer = reward + _next(estimate, discount)
        return jnp.concatenate([longer, estimate[..., -1:]], axis=-1)

    count = min(num_steps, reward.shape[-1])
    # Under `shard_map` what a loop carries must vary over devices from the start.
    start = value.astype(dtype) + jnp.zeros_like(reward, shape=value.shape)
    return jax.lax.fori_loop(0, count, step, start)[..., :-1]


def vtrace_returns(
    rewards: Float[Array, "*B T"],
    values: Float[Array, "*B S"],
    discounts: Float[Array, "*B T"],
    ratios: Float[Array, "*B T"],
    *,
    trace_decay: Knob = 1.0,
    rho_clip: Knob = 1.0,
    c_clip: Knob = 1.0,
    policy_rho_clip: Knob = 1.0,
) -> VTrace:
    r"""Returns V-trace targets of values, and the advantages of a policy gradient.

    .. math:: v_t = V(x_t) + e_t, \quad e_t = \min(\bar\rho, \rho_t)
              (r_t + \gamma_t V(x_{t+1}) - V(x_t)) + \gamma_t \lambda \min(\bar c, \rho_t) e_{t+1}

    .. math:: q_t = r_t + \gamma_t (\lambda v_{t+1} + (1 - \lambda) V(x_{t+1})), \quad
              A_t = \min(\bar\rho_\pi, \rho_t) (q_t - V(x_t))

    with V(x_T) in place of v_T. On policy, unclipped, the targets are lambda-returns. With rho-bar
    finite they are values of a policy between the behaviour and the target. Everything is
    gradient-stopped here.

    Args:
      rewards: r of each transition. [..., T].
      values: V of the T states and of the one after the last. [..., T + 1].
      discounts: gamma of each transition, in [0, 1]; 0 where it terminates. What follows a discount
        of 0 may hold anything, and does not reach back over it. [..., T].
      ratios: rho = pi / mu of each action taken, > 0, finite. [..., T].
      trace_decay: lambda in [0, 1]. A scalar or [..., T]; may be traced.
      rho_clip: rho-bar > 0; infinity clips nothing. A scalar; may be traced.
      c_clip: c-bar > 0, at most rho-bar. A scalar; may be traced.
      policy_rho_clip: rho-bar of the advantages, > 0. A scalar; may be traced.

    Returns:
      Targets, advantages and values of the actions taken, each in the unit of the rewards.

    Raises:
      ValueError: the shapes do not fit, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Espeholt et al., IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner
      Architectures, 2018. https://arxiv.org/abs/1802.01561
    """
    reward, value, discount = _trajectory(rewards, values, discounts)
    _checks.same_shape(rewards=reward, ratios=ratios)
    ratio = jax.lax.stop_gradient(_checks.as_float("ratios", ratios))

    def clipped(name: str, limit: Knob) -> Array:
        _checks.positive(name, limit)
        return jnp.minimum(ratio, jax.lax.stop_gradient(_checks.knob(name, limit, ratio)))

    decay = _trace_decay(trace_decay, reward)
    goes_on, bootstrap = discount != 0, _next(value, discount)
    errors = clipped("rho_clip", rho_clip) * (reward + bootstrap - value[..., :-1])
    traces = discount * decay * clipped("c_clip", c_clip)
    targets = value[..., :-1] + accumulate(errors, traces, goes_on)
    # The last step bootstraps from the last value alone, whatever lambda is.
    after = jnp.concatenate([targets, value[..., -1:].astype(targets.dtype)], axis=-1)
    action_values = reward + decay * _next(after, discount) + (1 - decay) * bootstrap
    advantages = clipped("policy_rho_clip", policy_rho_clip) * (action_values - value[..., :-1])
    return VTrace(targets, advantages, action_values)


def accumulate(
    terms: Float[Array, "*B T"],
    decays: Float[Array, "*B T"],
    connected: Array,
    *,
    last: Float[Array, "*B"] | None = None,
) -> Float[Array, "*B T"]:
    r"""Returns discounted sums over what follows each step, that step included.

    .. math:: y_t = u_t + d_t y_{t+1}

    Args:
      terms: u. [..., T].
      decays: d. [..., T].
      connected: whether y_{t+1} counts at all; where not, it may be NaN. [..., T].
      last: y_T; None for 0. [...].

    Returns:
      Sums. [..., T].
    """
    dtype = jnp.result_type(terms, decays)
    # Made of the terms: under `shard_map` a carry must vary over devices from the start.
    beyond = jnp.zeros_like(terms, shape=terms.shape[:-1])
    beyond = beyond if last is None else beyond + last
    dtype = jnp.result_type(dtype, beyond)

    def step(later, inputs):
        term, decay, counts = inputs
        total = (term + decay * jnp.where(counts, later, 0)).astype(dtype)
        return total, total

    # Time-major: a scan over the last axis would gather a strided column at every step.
    steps = tuple(jnp.moveaxis(array, -1, 0) for array in (terms, decays, connected))
    _, sums = jax.lax.scan(step, beyond.astype(dtype), steps, reverse=True)
    return jnp.moveaxis(sums, 0, -1)


def _trajectory(rewards: Any, values: Any, discounts: Any) -> tuple[Array, Array, Array]:
    """Returns rewards [..., T], values [..., T + 1], discounts [..., T]: checked and stopped."""
    reward, discount = _checks.floats(rewards=rewards, discounts=discounts)
    value = _checks.as_float("values", values)
    if reward.ndim < 1 or value.shape != (*reward.shape[:-1], reward.shape[-1] + 1):
        raise ValueError(
            "values must have one more step than rewards on the last axis, got "
            f"{value.shape} and {reward.shape}."
        )
    return _checks.stop(reward, value, discount)


def _trace_decay(trace_decay: Knob, reward: Float[Array, "*B T"]) -> Array:
    _checks.in_range("trace_decay", trace_decay, 0, 1)
    return jax.lax.stop_gradient(_checks.knob("trace_decay", trace_decay, reward))


def _next(value: Float[Array, "*B S"], discount: Float[Array, "*B T"]) -> Float[Array, "*B T"]:
    """Returns the discounted value of the next state; 0 past an end, where it may be NaN."""
    # A select and not a product: 0 times NaN is NaN.
    return discount * jnp.where(discount != 0, value[..., 1:], 0)
