r"""Mirror descent policy optimisation (MDPO): a step towards higher values, near the last policy.

.. math:: \pi_{k+1} = \arg\max_\pi \sum_a \pi(a) A(a) - \frac{1}{t_k} KL(\pi, \pi_k)
          \propto \pi_k \exp(t_k A)

The divergence has the NEW policy first. Both forms take several gradient steps with pi_k frozen; at
pi_k itself the divergence has no gradient, so that a single step is plain policy gradient.
`inverse_step` is 1 / t_k: 1 / (1 - k / K) at iteration k of K in the on-policy paper, a constant 1
in the off-policy code.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks, entropy
from bellmax.losses._checks import Knob
from bellmax.losses.log_probs import token_log_probs


def mdpo_loss(
    logits: Float[Array, "*B A"],
    old_logits: Float[Array, "*B A"],
    actions: Int[Array, "*B"],
    advantages: Float[Array, "*B"],
    *,
    inverse_step: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the on-policy loss of MDPO for categorical policies.

    .. math:: \ell = -\frac{\pi(a)}{\mathrm{stop}(\pi_k(a))} \mathrm{stop}(A)
              + \frac{1}{t_k} KL(\pi, \mathrm{stop}(\pi_k))

    Over actions of pi_k it is minus the objective of the mirror step. The divergence is the exact
    sum over actions, new policy first. Gradients flow to `logits`; old logits and advantages are
    stopped here.

    Args:
      logits: of the policy; -inf where an action is impossible. [..., A].
      old_logits: of pi_k, which sampled the actions. [..., A].
      actions: a, in [0, A). [...].
      advantages: A of the actions under pi_k. [...].
      inverse_step: 1 / t_k >= 0, in units of the advantage a nat. A scalar or [...]; may be traced.

    Returns:
      Losses in the unit of the advantages. [...].

    Raises:
      ValueError: the shapes do not fit, or `inverse_step` is negative.
      TypeError: an array is not floating point or `actions` not of integers.

    References:
      Tomar et al., Mirror Descent Policy Optimization, 2020. https://arxiv.org/abs/2005.09814
    """
    policy, old = _checks.floats(logits=logits, old_logits=old_logits)
    taken = _checks.as_integer("actions", actions)
    if policy.ndim < 1 or taken.shape != policy.shape[:-1]:
        raise ValueError(
            "actions must have the shape of logits without its last axis, got "
            f"{taken.shape} and {policy.shape}."
        )
    _checks.same_shape(actions=taken, advantages=advantages)
    (old,) = _checks.stop(old)
    return mdpo_surrogate_loss(
        _of_actions(policy, taken),
        _of_actions(old, taken),
        advantages,
        entropy.categorical_kl(policy, old),
        inverse_step=inverse_step,
    )


def mdpo_surrogate_loss(
    log_probs: Float[Array, "*B"],
    old_log_probs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
    kl: Float[Array, "*B"],
    *,
    inverse_step: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the on-policy loss of MDPO for any policy whose divergence has a closed form.

    .. math:: \ell = -\frac{\pi(a)}{\mathrm{stop}(\pi_k(a))} \mathrm{stop}(A) + \frac{1}{t_k} KL

    Gradients flow to `log_probs` and to the divergence; old log-probabilities and advantages are
    stopped here. A log-ratio of samples in place of the divergence has no useful gradient.

    Args:
      log_probs: log-probability, or log-density, of the actions under the policy. [...].
      old_log_probs: the same under pi_k, which sampled them. [...].
      advantages: A of the actions under pi_k. [...].
      kl: KL(pi, pi_k), the NEW policy first, nats, differentiable; pi_k inside it is the caller's
        to stop. [...].
      inverse_step: 1 / t_k >= 0, in units of the advantage a nat. A scalar or [...]; may be traced.

    Returns:
      Losses in the unit of the advantages. [...].

    Raises:
      ValueError: the arrays differ in shape, or `inverse_step` is negative.
      TypeError: an array is not floating point.

    References:
      Tomar et al., Mirror Descent Policy Optimization, 2020. https://arxiv.org/abs/2005.09814
    """
    policy, old, advantage, divergence = _checks.floats(
        log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages, kl=kl
    )
    _checks.in_range("inverse_step", inverse_step, 0, float("inf"))
    old, advantage = _checks.stop(old, advantage)
    weight = _checks.knob("inverse_step", inverse_step, policy)
    return weight * divergence - jnp.exp(policy - old) * advantage


def mdpo_off_policy_loss(
    log_probs: Float[Array, "*B"],
    old_log_probs: Float[Array, "*B"],
    action_values: Float[Array, "*B"],
    *,
    inverse_step: Knob = 1.0,
    entropy_weight: Knob = 0.0,
) -> Float[Array, "*B"]:
    r"""Returns the off-policy loss of MDPO at actions that the policy samples by
    reparameterisation.

    .. math:: \ell = \frac{1}{t_k} \log \pi(a) + \left( \lambda - \frac{1}{t_k} \right)
              \log \pi_k(a) - Q(a) = \left( \frac{1}{t_k} - \lambda \right)
              \log \frac{\pi(a)}{\pi_k(a)} + \lambda \log \pi(a) - Q(a)

    At lambda = 0 it is the paper's loss over t_k. The official code has 1 / t_k = 1 and lambda =
    0.2, the weight of the entropy in its values too; with lambda = 1 / t_k pi_k drops out, and what
    is left is the policy loss of soft actor-critic. NOTHING is stopped here: with a = a(epsilon) a
    function of the policy, gradients flow through a into all three arguments, and the parameters of
    pi_k and Q are the caller's to freeze. Averaged over all actions with the policy's probabilities
    it is, up to a constant, the divergence from :math:`\pi_k^{1 - t_k \lambda} \exp(t_k Q)` over
    t_k.

    Args:
      log_probs: log-density, or log-probability, of a under the policy. [...].
      old_log_probs: of the same a under pi_k. [...].
      action_values: Q of the same a. [...].
      inverse_step: 1 / t_k >= 0, in units of the value a nat. A scalar or [...]; may be traced.
      entropy_weight: lambda >= 0, in the same unit. A scalar or [...]; may be traced.

    Returns:
      Losses in the unit of the values. [...].

    Raises:
      ValueError: the arrays differ in shape, or a number is negative.
      TypeError: an array is not floating point.

    References:
      Tomar et al., Mirror Descent Policy Optimization, 2020. https://arxiv.org/abs/2005.09814
      Haarnoja et al., Soft Actor-Critic, 2018. https://arxiv.org/abs/1801.01290
    """
    policy, old, value = _checks.floats(
        log_probs=log_probs, old_log_probs=old_log_probs, action_values=action_values
    )
    for name, number in (("inverse_step", inverse_step), ("entropy_weight", entropy_weight)):
        _checks.in_range(name, number, 0, float("inf"))
    mirror = _checks.knob("inverse_step", inverse_step, policy)
    keep = _checks.knob("entropy_weight", entropy_weight, policy)
    return mirror * policy + (keep - mirror) * old - value


def _of_actions(logits: Float[Array, "*B A"], actions: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns the log-probability of each action: that of a sequence of one token. [...]."""
    return token_log_probs(logits[..., None, :], actions[..., None])[..., 0]
