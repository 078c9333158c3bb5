r"""Pairwise policy gradients (P3O): two completions of a prompt, and what lies between them.

The gradient of an expected reward r is that of half a difference: of y_1 and y_2 sampled from mu,

.. math:: \nabla E_\pi[r] = \tfrac12 E_\mu \left[ (r_1 - r_2) \, w_1 w_2
          \, \nabla \log \frac{\pi(y_1 \mid x)}{\pi(y_2 \mid x)} \right], \quad
          w_i = \frac{\pi(y_i \mid x)}{\mu(y_i \mid x)}

whatever the prompt adds to both rewards. The two losses clip it in two ways, and are it where
`clip_epsilon` is infinite; on the policy's own samples it is half the gradient of `copg_loss` on
regularised rewards. Rewards are given as they should count: the paper's are those of a reward model
less beta log(pi_old / pi_ref), sampled before the update.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob
from bellmax.losses.policy_gradient import ppo_clip_loss


def p3o_loss(
    log_probs: Float[Array, "*B 2"],
    behaviour_log_probs: Float[Array, "*B 2"],
    rewards: Float[Array, "*B 2"],
    *,
    clip_epsilon: Knob = 0.2,
) -> Float[Array, "*B"]:
    r"""Returns the loss of P3O with joint clipping: of the log-ratio of the two completions.

    .. math:: \ell = -\tfrac12 \min(k u, \; k \,
              \mathrm{clip}(u, u_\mu - \epsilon, u_\mu + \epsilon)),
              \quad u = \log \frac{\pi(y_1 \mid x)}{\pi(y_2 \mid x)},
              \; k = \mathrm{stop}((r_1 - r_2) w_1 w_2)

    with u_mu that of the behaviour policy. The gradient vanishes for both completions at once,
    where u has moved in the direction that the rewards ask for by more than epsilon. Adding a
    number to both rewards, or changing the order of the two, changes nothing. Gradients flow to
    `log_probs`; behaviour and rewards are stopped here. The value is no quantity to watch.

    Args:
      log_probs: log-probability of the two completions under the policy, nats, summed over tokens.
        [..., 2].
      behaviour_log_probs: the same under the policy mu that sampled them. [..., 2].
      rewards: of the two, constant. [..., 2].
      clip_epsilon: epsilon >= 0, in NATS of u; infinity clips nothing. A scalar or [...]; may be
        traced.

    Returns:
      Losses. [...].

    Raises:
      ValueError: the shapes differ, the last axis has no two entries, or `clip_epsilon` is
      negative. TypeError: an array is not floating point.

    References:
      Wu et al., Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM
      Alignment, 2023. https://arxiv.org/abs/2310.00212
    """
    policy, behaviour, difference = _pairs(log_probs, behaviour_log_probs, rewards)
    _checks.in_range("clip_epsilon", clip_epsilon, 0, float("inf"))
    margin = policy[..., 0] - policy[..., 1]
    limit = _checks.knob("clip_epsilon", clip_epsilon, margin)
    before = behaviour[..., 0] - behaviour[..., 1]
    weight = difference * jnp.exp(jnp.sum(policy - behaviour, axis=-1))
    weight, before = _checks.stop(weight, before)
    # Moved as the rewards ask for, and far: the paper's minimum is of a constant there.
    ahead = jnp.where(weight < 0, before - margin, margin - before) > limit
    bound = before + jnp.where(weight < 0, -limit, limit)
    return -weight * jnp.where(ahead, bound, margin) / 2


def p3o_separate_loss(
    log_probs: Float[Array, "*B 2"],
    behaviour_log_probs: Float[Array, "*B 2"],
    rewards: Float[Array, "*B 2"],
    *,
    clip_epsilon: Knob = 0.2,
) -> Float[Array, "*B"]:
    r"""Returns the loss of P3O with separate clipping: of the ratio of each completion by itself.

    .. math:: \ell = -\tfrac12 \sum_{i \ne j} \min(k_{ij} w_i, \;
              k_{ij} \, \mathrm{clip}(w_i, 1 - \epsilon, 1 + \epsilon)), \quad
              k_{ij} = \mathrm{stop}((r_i - r_j) w_j)

    It is half of `ppo_clip_loss` for either completion, with k as its advantage. Where only one of
    the two is clipped, the other goes on moving. Adding a number to both rewards, or changing the
    order of the two, changes nothing. Gradients flow to `log_probs`; behaviour and rewards are
    stopped here. The value is no quantity to watch: unclipped, the two terms cancel.

    Args:
      log_probs: log-probability of the two completions under the policy, nats, summed over tokens.
        [..., 2].
      behaviour_log_probs: the same under the policy mu that sampled them. [..., 2].
      rewards: of the two, constant. [..., 2].
      clip_epsilon: epsilon >= 0, a part of 1 as in `ppo_clip_loss`; infinity clips nothing. A
        scalar or [...]; may be traced.

    Returns:
      Losses. [...].

    Raises:
      ValueError: the shapes differ, the last axis has no two entries, or `clip_epsilon` is
      negative. TypeError: an array is not floating point.

    References:
      Wu et al., Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM
      Alignment, 2023. https://arxiv.org/abs/2310.00212
    """
    policy, behaviour, difference = _pairs(log_probs, behaviour_log_probs, rewards)
    _checks.in_range("clip_epsilon", clip_epsilon, 0, float("inf"))
    limit = _checks.knob("clip_epsilon", clip_epsilon, difference)
    limit = jnp.broadcast_to(limit, difference.shape)[..., None]
    others = jnp.flip(jnp.exp(policy - behaviour), axis=-1)
    advantages = jnp.stack([difference, -difference], axis=-1) * others
    clipped = ppo_clip_loss(
        policy, behaviour, advantages, clip_epsilon=jnp.broadcast_to(limit, policy.shape)
    )
    return jnp.sum(clipped, axis=-1) / 2


def _pairs(log_probs: Array, behaviour_log_probs: Array, rewards: Array) -> tuple[Array, ...]:
    """Returns log-probabilities [..., 2] and r_1 - r_2 [...], checked; constants are stopped."""
    policy, behaviour, reward = _checks.floats(
        log_probs=log_probs, behaviour_log_probs=behaviour_log_probs, rewards=rewards
    )
    if policy.ndim < 1 or policy.shape[-1] != 2:
        raise ValueError(f"log_probs must have two entries on the last axis, got {policy.shape}.")
    return policy, *_checks.stop(behaviour, reward[..., 0] - reward[..., 1])
