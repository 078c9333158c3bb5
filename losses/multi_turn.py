r"""Multi-turn preference optimisation (MTPO): losses of a policy and of values, one item a turn.

A conversation of H turns is compared as a whole, when it has ended. A turn is one action: its
log-probability is summed over its tokens. Advantages and value targets are those of
`generalised_advantages` over turns, of the rewards of `mtpo_turn_rewards`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def mtpo_turn_rewards(
    kl: Float[Array, "*B H"],
    preferences: Float[Array, "*B"],
    mask: Shaped[Array, "*B H"],
    *,
    alpha: Knob,
) -> Float[Array, "*B H"]:
    r"""Returns the reward of each turn: its divergence paid, and the preference at the end.

    .. math:: r_h = -\alpha \, KL(\pi, \pi_{ref})[x_h]
              + P(x_{H+1} \succ x'_{H+1}) \, 1[h \text{ is the last counted turn}]

    Everything is gradient-stopped here: rewards are data to the losses that follow.

    Args:
      kl: divergence of policy from reference at each turn, nats; masked entries may hold anything.
        [..., H].
      preferences: the probability in [0, 1] that the conversation beats the other one of its
        context; a reward model's score in its place gives multi-turn RLHF. [...].
      mask: 1 where a turn counts. [..., H].
      alpha: >= 0, the weight of the divergence, 1/nats. A scalar or [...]; may be traced.

    Returns:
      Rewards; 0 on masked turns, and everywhere if nothing counts. [..., H].

    Raises:
      ValueError: the shapes do not fit, there is no axis of turns, or `alpha` is negative.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    _checks.same_shape(kl=kl, mask=mask)
    divergence = _checks.as_float("kl", kl)
    if divergence.ndim < 1:
        raise ValueError("kl must have an axis of turns, got a scalar.")
    wins = _checks.as_float("preferences", preferences)
    if wins.shape != divergence.shape[:-1]:
        raise ValueError(
            "preferences must have the shape of kl without its last axis, got "
            f"{wins.shape} and {divergence.shape}."
        )
    _checks.in_range("alpha", alpha, 0, float("inf"))
    divergence, wins = _checks.stop(divergence, wins)
    weight = jnp.broadcast_to(_checks.knob("alpha", alpha, wins), wins.shape)[..., None]
    counted = jnp.asarray(mask) != 0
    seen = jnp.cumsum(counted, axis=-1)
    last = counted & (seen == seen[..., -1:])
    return jnp.where(last, wins[..., None], 0) - weight * _checks.keep(divergence, mask)


def mtpo_policy_loss(
    log_probs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
    kl: Float[Array, "*B"],
    *,
    alpha: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the policy loss of MTPO, one value a turn.

    .. math:: \ell = -\mathrm{stop}(\hat A(x, y)) \log \pi(y \mid x)
              + \alpha \, KL(\pi, \pi_{ref})[x]

    The advantages are stopped here; gradients flow to the log-probabilities and to the divergence,
    which must be a differentiable one: a sampled log-ratio has an expected gradient of 0.

    Args:
      log_probs: log-probability of the policy's turn, nats, summed over its tokens. [...].
      advantages: of `generalised_advantages` over turns, normalised or not. [...].
      kl: divergence of policy from reference at the turn, nats, differentiable. [...].
      alpha: >= 0, the weight of the divergence; 0.005 in the paper's runs of MTPO. A scalar or
        [...]; may be traced.

    Returns:
      Losses. [...].

    Raises:
      ValueError: the arrays differ in shape, or `alpha` is negative.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    policy, advantage, divergence = _checks.floats(
        log_probs=log_probs, advantages=advantages, kl=kl
    )
    _checks.in_range("alpha", alpha, 0, float("inf"))
    weight = _checks.knob("alpha", alpha, policy)
    return weight * divergence - jax.lax.stop_gradient(advantage) * policy


def mtpo_value_loss(values: Float[Array, "*B"], targets: Float[Array, "*B"]) -> Float[Array, "*B"]:
    r"""Returns the value loss of MTPO, one value a turn.

    .. math:: \ell = (\mathrm{stop}(\hat V(x)) - V(x))^2

    The targets are stopped here; gradients flow to the values.

    Args:
      values: V of each turn's state. [...].
      targets: what it should be: advantages plus the values that they were computed from. [...].

    Returns:
      Losses; without a factor of 1/2. [...].

    Raises:
      ValueError: the arrays differ in shape.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    value, target = _checks.floats(values=values, targets=targets)
    return jnp.square(jax.lax.stop_gradient(target) - value)
