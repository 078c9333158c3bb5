r"""Flow matching of geometric horizon models: Monte-Carlo, and by temporal differences.

A geometric horizon model is the law of the state found after a geometric time,

.. math:: m(\cdot \mid s, a) = (1 - \gamma) \sum_{k \ge 0} \gamma^k
          P(S_{k + 1} \in \cdot \mid S_0 = s, A_0 = a, \pi),

which solves :math:`m = (1 - \gamma) P + \gamma P^\pi m`. A flow is fitted to it with one direct
term, a path to the next state, and one bootstrap term, a path drawn from a target network at the
next state and action:

| method    | bootstrapped point        | its velocity        | function                   |
|-----------|---------------------------|---------------------|----------------------------|
| TD-CFM    | path from fresh noise     | that of the path    | `td_cfm_bootstrap`         |
| TD-CFM(C) | path from the same noise  | that of the path    | `coupled_td_cfm_bootstrap` |
| TD2-CFM   | the target's flow, to t   | the target's        | `td2_cfm_bootstrap`        |

A step of training draws a time t ~ U[0, 1) an example, the same for both terms, and noise for each;
takes `direct = path(noise, next_states, t)` and one of the bootstraps; evaluates the network at
both points, conditioned on the state and action; and averages `td_flow_loss` over the batch.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks, _vectors
from bellmax.losses._checks import Knob
from bellmax.losses.ode import VelocityFn, integrate_midpoint
from bellmax.losses.paths import PathFn, linear_path


def flow_matching_loss(
    prediction: Float[Array, "*B D"], velocity: Float[Array, "*B D"]
) -> Float[Array, "*B"]:
    r"""Returns the conditional flow-matching loss of each example.

    .. math:: \ell = \lVert v_\theta(X_t, t) - \dot X_t \rVert^2

    With samples of the horizon model itself as data this is Monte-Carlo flow matching. Gradients
    flow to `prediction`; the velocity is stopped here.

    Args:
      prediction: the network at the path's point and time. [..., D].
      velocity: that of the path, see `linear_path`. [..., D].

    Returns:
      Squared distances, SUMMED over D. [...].

    Raises:
      ValueError: the shapes differ, or there is no axis of features.
      TypeError: an array is not floating point.

    References:
      Lipman et al., Flow Matching for Generative Modeling, 2023. https://arxiv.org/abs/2210.02747
    """
    predicted, wanted = _vectors.vectors(prediction=prediction, velocity=velocity)
    return _vectors.squared_distance(predicted, *_checks.stop(wanted))


def td_flow_loss(
    direct_prediction: Float[Array, "*B D"],
    direct_velocity: Float[Array, "*B D"],
    bootstrap_prediction: Float[Array, "*B D"],
    bootstrap_velocity: Float[Array, "*B D"],
    *,
    discount: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the temporal-difference flow loss of each transition.

    .. math:: \ell = (1 - \gamma) \lVert v_\theta(X^d_t, t \mid s, a) - u^d \rVert^2
              + \gamma \lVert v_\theta(X^b_t, t \mid s, a) - u^b \rVert^2

    Gradients flow to both predictions; both velocities are stopped here. At a discount of 0 it is
    `flow_matching_loss` on the next state.

    Args:
      direct_prediction: the network at the point of a path to the next state. [..., D].
      direct_velocity: u^d, the velocity of that path. [..., D].
      bootstrap_prediction: the network, at the transition's own state and action, at the
        bootstrapped point. [..., D].
      bootstrap_velocity: u^b, as the bootstrap functions return it. [..., D].
      discount: gamma in [0, 1], the weight of the bootstrap term. A scalar or [...]; may be traced.

    Returns:
      Weighted squared distances, each SUMMED over D. [...].

    Raises:
      ValueError: the shapes do not fit, or `discount` is out of range.
      TypeError: an array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025, Algorithm 1.
      https://arxiv.org/abs/2503.09817
    """
    direct, direct_target, bootstrap, bootstrap_target = _vectors.vectors(
        direct_prediction=direct_prediction,
        direct_velocity=direct_velocity,
        bootstrap_prediction=bootstrap_prediction,
        bootstrap_velocity=bootstrap_velocity,
    )
    return _vectors.td_loss(discount, (direct, bootstrap), (direct_target, bootstrap_target))


def td_cfm_bootstrap(
    target_velocity_fn: VelocityFn,
    noise: Float[Array, "*B D"],
    fresh_noise: Float[Array, "*B D"],
    time: Float[Array, "*B"],
    *,
    num_steps: int = 10,
    path: PathFn = linear_path,
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    r"""Returns the bootstrapped point and velocity of TD-CFM: a path to a sample of the target.

    .. math:: Y_1 = \psi_1(Y_0), \quad X^b_t = t Y_1 + (1 - t) Z_0, \quad u^b = Y_1 - Z_0

    for the straight path, with psi the target's flow. Gradient-stopped here.

    Args:
      target_velocity_fn: the target network at the next state and action. (point [..., D],
        time [...]) -> velocity [..., D].
      noise: Y_0, samples of N(0, I), which the flow carries to samples of the model. [..., D].
      fresh_noise: Z_0, samples of N(0, I) independent of `noise`: where the path starts. [..., D].
      time: t in [0, 1]. [...].
      num_steps: steps of the midpoint rule from 0 to 1, two evaluations each.
      path: (noise, data, time) -> (point, velocity), such as `curved_path`.

    Returns:
      The point and the velocity. [..., D] each.

    Raises:
      ValueError: the shapes do not fit, or `num_steps` is no integer of at least 1.
      TypeError: an array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    t, first, second = _vectors.at_times("time", time, noise=noise, fresh_noise=fresh_noise)
    t, first, second = _checks.stop(t, first, second)
    sample = integrate_midpoint(target_velocity_fn, first, jnp.ones_like(t), num_steps=num_steps)
    point, velocity = _checks.stop(*path(second, sample, t))
    return point, velocity


def coupled_td_cfm_bootstrap(
    target_velocity_fn: VelocityFn,
    noise: Float[Array, "*B D"],
    time: Float[Array, "*B"],
    *,
    num_steps: int = 10,
    path: PathFn = linear_path,
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    r"""Returns the bootstrapped point and velocity of TD-CFM(C), with noise and sample coupled.

    .. math:: Y_1 = \psi_1(Y_0), \quad X^b_t = t Y_1 + (1 - t) Y_0, \quad u^b = Y_1 - Y_0

    for the straight path, with psi the target's flow: the path starts at the noise that became the
    sample. Where the flow is straight too, this is `td2_cfm_bootstrap`; where it bends, the lines
    pass other points at time t, and the fixed point is another field than that of Monte-Carlo flow
    matching, with the same law at time 1. Gradient-stopped here.

    Args:
      target_velocity_fn: the target network at the next state and action. (point [..., D],
        time [...]) -> velocity [..., D].
      noise: Y_0, samples of N(0, I). [..., D].
      time: t in [0, 1]. [...].
      num_steps: steps of the midpoint rule from 0 to 1, two evaluations each.
      path: (noise, data, time) -> (point, velocity), such as `curved_path`.

    Returns:
      The point and the velocity. [..., D] each.

    Raises:
      ValueError: the shapes do not fit, or `num_steps` is no integer of at least 1.
      TypeError: an array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    return td_cfm_bootstrap(target_velocity_fn, noise, noise, time, num_steps=num_steps, path=path)


def td2_cfm_bootstrap(
    target_velocity_fn: VelocityFn,
    noise: Float[Array, "*B D"],
    time: Float[Array, "*B"],
    *,
    num_steps: int = 10,
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    r"""Returns the bootstrapped point and velocity of TD2-CFM: the target's flow and its field.

    .. math:: X^b_t = \psi_t(Y_0), \qquad u^b = v_t(X^b_t)

    with psi the target's flow and v its field. No path enters, since the flow is integrated to t
    only: its shape is that of the direct term's path. Gradient-stopped here.

    Args:
      target_velocity_fn: the target network at the next state and action. (point [..., D],
        time [...]) -> velocity [..., D]; it is called at `time` once, for the velocity.
      noise: Y_0, samples of N(0, I). [..., D].
      time: t in [0, 1), or 1 where the field is finite there. [...].
      num_steps: steps of the midpoint rule from 0 to t, two evaluations each.

    Returns:
      The point and the velocity. [..., D] each.

    Raises:
      ValueError: the shapes do not fit, or `num_steps` is no integer of at least 1.
      TypeError: an array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    t, start = _checks.stop(*_vectors.at_times("time", time, noise=noise))
    point = integrate_midpoint(target_velocity_fn, start, t, num_steps=num_steps)
    velocity = _vectors.call("target_velocity_fn", target_velocity_fn, point, t)
    point, velocity = _checks.stop(point, velocity)
    return point, velocity
