"""Losses of deterministic policies and their critics, with values of an ensemble on the last axis.

A step of TD3 takes the target policy's actions at the next states, smooths them by
`target_policy_smoothing`, evaluates all target critics there, and regresses all critics on
`clipped_double_q_target` by `td3_critic_loss`. Every so many steps the policy ascends the value of
its own actions by `deterministic_policy_loss`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks, _vectors
from bellmax.losses._checks import Knob


def target_policy_smoothing(
    actions: Float[Array, "*B A"],
    noise: Float[Array, "*B A"],
    *,
    scale: Knob,
    clip: Knob,
    low: Knob = -1.0,
    high: Knob = 1.0,
) -> Float[Array, "*B A"]:
    r"""Returns actions with clipped noise, at which a target is taken so that it has no thin peaks.

    .. math:: \tilde a = \mathrm{clip}(a + \mathrm{clip}(\sigma \epsilon, -c, c), low, high)

    Gradient-stopped here.

    Args:
      actions: a, of the target policy at the next states. [..., A].
      noise: epsilon, samples of N(0, I). [..., A].
      scale: sigma >= 0, in units of actions; 0.2 in the paper. May be traced.
      clip: c >= 0, in units of actions; 0.5 in the paper. May be traced.
      low: the lowest action there is.
      high: the highest.

    Returns:
      Actions in [low, high]. [..., A].

    Raises:
      ValueError: the shapes differ, or `scale` or `clip` is negative.
      TypeError: an array is not floating point.

    References:
      Fujimoto et al., Addressing Function Approximation Error in Actor-Critic Methods, 2018.
      https://arxiv.org/abs/1802.09477
    """
    chosen, drawn = _checks.stop(*_vectors.vectors(actions=actions, noise=noise))
    for name, value in (("scale", scale), ("clip", clip)):
        _checks.in_range(name, value, 0, float("inf"))
    spread = _checks.knob("scale", scale, drawn) * drawn
    bound = _checks.knob("clip", clip, drawn)
    lowest, highest = _checks.knob("low", low, drawn), _checks.knob("high", high, drawn)
    return jax.lax.stop_gradient(
        jnp.clip(chosen + jnp.clip(spread, -bound, bound), lowest, highest)
    )


def clipped_double_q_target(
    target_values: Float[Array, "*B E"],
    rewards: Float[Array, "*B"],
    discounts: Float[Array, "*B"],
) -> Float[Array, "*B"]:
    r"""Returns what all critics regress on: one step with the least of the target critics' values.

    .. math:: y = r + \gamma \min_e \bar Q_e(s', \tilde a)

    Gradient-stopped here.

    Args:
      target_values: of the E target critics at the next states and smoothed actions. [..., E].
      rewards: r. [...].
      discounts: gamma, 0 where the transition ended the episode by itself. [...].

    Returns:
      Targets. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Fujimoto et al., Addressing Function Approximation Error in Actor-Critic Methods, 2018.
      https://arxiv.org/abs/1802.09477
    """
    (values,) = _vectors.vectors(target_values=target_values)
    earned = _vectors.per_vector("rewards", _checks.as_float("rewards", rewards), values)
    going_on = _vectors.per_vector("discounts", _checks.as_float("discounts", discounts), values)
    return jax.lax.stop_gradient(earned + going_on * jnp.min(values, axis=-1))


def td3_critic_loss(
    values: Float[Array, "*B E"], targets: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    r"""Returns the squared errors of all critics.

    .. math:: \ell = \sum_e (Q_e(s, a) - y)^2

    Gradients flow to `values`; the targets are stopped here.

    Args:
      values: of the E critics at states and actions of the data. [..., E].
      targets: y, see `clipped_double_q_target`. [...].

    Returns:
      Squared errors, SUMMED over E. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Fujimoto et al., Addressing Function Approximation Error in Actor-Critic Methods, 2018.
      https://arxiv.org/abs/1802.09477
    """
    (predicted,) = _vectors.vectors(values=values)
    wanted = _vectors.per_vector("targets", _checks.as_float("targets", targets), predicted)
    errors = predicted - jax.lax.stop_gradient(wanted)[..., None]
    return jnp.sum(jnp.square(errors), axis=-1)


def deterministic_policy_loss(values: Float[Array, "*B"]) -> Float[Array, "*B"]:
    r"""Returns the loss of a deterministic policy, minus the value of its own actions.

    .. math:: \ell = -Q(s, \pi(s))

    Differentiated through the actions it is the deterministic policy gradient. Gradients flow to
    `values`; the caller differentiates with respect to the policy's parameters only.

    Args:
      values: of the policy's actions; one critic's, or the least of several. [...].

    Returns:
      Losses. [...].

    Raises:
      TypeError: `values` is not floating point.

    References:
      Silver et al., Deterministic Policy Gradient Algorithms, ICML 2014.
      https://proceedings.mlr.press/v32/silver14.html
    """
    return -_checks.as_float("values", values)
