r"""Off-policy returns from values of actions: Retrace, Harutyunyan's Q(lambda), tree backup.

One recursion, and traces that tell the methods apart: see `traces`. Step t goes from (x_t, a_t) to
x_{t+1}. What is known of the next states x_1 .. x_T has T entries; what the behaviour did there,
and the traces, T - 1, since at x_T the return bootstraps whatever comes next.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks, returns, trajectories
from bellmax.losses import traces as trace_rules
from bellmax.losses._checks import Knob


def off_policy_returns(
    next_action_values: Float[Array, "*B T A"],
    policy: Float[Array, "*B T A"],
    next_actions: Int[Array, "*B S"],
    rewards: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    traces: Float[Array, "*B S"],
) -> Float[Array, "*B T"]:
    r"""Returns off-policy returns of every step of a trajectory, for any traces.

    .. math:: G_t = r_t + \gamma_t \Big( \sum_a \pi(a \mid x_{t+1}) Q(x_{t+1}, a)
              + c_{t+1} (G_{t+1} - Q(x_{t+1}, a_{t+1})) \Big), \quad c_T = 0

    These are targets of Q(x_t, a_t), as the mean of `categorical_multistep_target` is of the first
    step. Everything is gradient-stopped here.

    Args:
      next_action_values: Q at x_1 .. x_T. [..., T, A].
      policy: pi, the probabilities of the policy to evaluate at the same states; one-hot for a
        greedy one. An action of probability 0 that was not taken may hold any value. [..., T, A].
      next_actions: a_1 .. a_{T-1}, taken by the behaviour at x_1 .. x_{T-1}. [..., T - 1].
      rewards: r_0 .. r_{T-1}. [..., T].
      discounts: gamma of each transition, in [0, 1]; 0 where it terminates. What follows a discount
        of 0 may hold anything, and does not reach back over it. [..., T].
      traces: c_1 .. c_{T-1}, >= 0, see the module; 0 cuts, as where an episode was truncated and
        another one begins. What follows a 0 may hold anything. [..., T - 1].

    Returns:
      Returns of (x_0, a_0) .. (x_{T-1}, a_{T-1}), in the unit of the rewards. [..., T].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array has the wrong kind of numbers.

    References:
      Munos et al., Safe and Efficient Off-Policy Reinforcement Learning, 2016.
      https://arxiv.org/abs/1606.02647
    """
    checked = trajectories.check_steps(
        ("next_action_values", next_action_values),
        policy,
        next_actions,
        rewards,
        discounts,
        ("traces", traces),
    )
    value, law, action, reward, discount, trace = checked
    after = trajectories.pad_last(trace)
    weight = trajectories.coefficients(law, action, after)
    bootstrap = jnp.sum(jnp.where(weight != 0, weight * value, 0), axis=-1)
    goes_on = discount != 0
    known = reward + discount * jnp.where(goes_on, bootstrap, 0)
    connected = goes_on & (after != 0)
    return returns.accumulate(known, discount * jnp.where(connected, after, 0), connected)


def q_lambda_returns(
    next_action_values: Float[Array, "*B T A"],
    policy: Float[Array, "*B T A"],
    next_actions: Int[Array, "*B S"],
    rewards: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    *,
    trace_decay: Knob,
) -> Float[Array, "*B T"]:
    """Returns Harutyunyan's Q(lambda) returns: off-policy, without importance sampling.

    `off_policy_returns` of `q_lambda_traces`. Gradient-stopped here.

    Args:
      next_action_values: Q at x_1 .. x_T. [..., T, A].
      policy: pi at the same states. [..., T, A].
      next_actions: taken at x_1 .. x_{T-1}. [..., T - 1].
      rewards: of each transition. [..., T].
      discounts: of each transition; 0 where it terminates. [..., T].
      trace_decay: lambda in [0, 1]. A scalar or [..., T - 1]; may be traced.

    Returns:
      Returns in the unit of the rewards. [..., T].

    Raises:
      ValueError: the shapes do not fit, or `trace_decay` is out of range.
      TypeError: an array has the wrong kind of numbers.

    References:
      Harutyunyan et al., Q(lambda) with Off-Policy Corrections, 2016.
      https://arxiv.org/abs/1602.04951
    """
    dtype = _checks.as_float("rewards", rewards).dtype
    # One a step with an action; this method reads no probabilities.
    steps = jnp.zeros_like(next_actions, dtype=dtype)
    traces = trace_rules.q_lambda_traces(steps, steps, trace_decay=trace_decay)
    return off_policy_returns(next_action_values, policy, next_actions, rewards, discounts, traces)


def retrace_returns(
    next_action_values: Float[Array, "*B T A"],
    policy: Float[Array, "*B T A"],
    next_actions: Int[Array, "*B S"],
    rewards: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    behaviour_probs: Float[Array, "*B S"],
    *,
    trace_decay: Knob,
) -> Float[Array, "*B T"]:
    """Returns Retrace(lambda) returns.

    `off_policy_returns` of `retrace_traces`. Gradient-stopped here.

    Args:
      next_action_values: Q at x_1 .. x_T. [..., T, A].
      policy: pi at the same states. [..., T, A].
      next_actions: taken at x_1 .. x_{T-1}. [..., T - 1].
      rewards: of each transition. [..., T].
      discounts: of each transition; 0 where it terminates. [..., T].
      behaviour_probs: mu of the actions taken at x_1 .. x_{T-1}. [..., T - 1].
      trace_decay: lambda in [0, 1]. A scalar or [..., T - 1]; may be traced.

    Returns:
      Returns in the unit of the rewards. [..., T].

    Raises:
      ValueError: the shapes do not fit, or `trace_decay` is out of range.
      TypeError: an array has the wrong kind of numbers.

    References:
      Munos et al., Safe and Efficient Off-Policy Reinforcement Learning, 2016.
      https://arxiv.org/abs/1606.02647
    """
    _, law, action, _, _, behaviour = trajectories.check_steps(
        ("next_action_values", next_action_values),
        policy,
        next_actions,
        rewards,
        discounts,
        ("behaviour_probs", behaviour_probs),
    )
    taken = jnp.take_along_axis(law[..., :-1, :], action[..., None], axis=-1, mode="clip")
    traces = trace_rules.retrace_traces(taken[..., 0], behaviour, trace_decay=trace_decay)
    return off_policy_returns(next_action_values, policy, next_actions, rewards, discounts, traces)
