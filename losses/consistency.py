r"""Losses that ask what a completion earns, less its divergence, to be one number: AGRO and CoPG.

At the policy that is best under a penalty of beta times its KL divergence from the reference,

.. math:: R_\beta(y) = r(y) - \beta \log \frac{\pi(y \mid x)}{\pi_{ref}(y \mid x)}

is the same for EVERY completion y: pi* is proportional to pi_ref exp(r / beta), and R_beta is
beta log E_ref exp(r / beta). So its differences can be regressed to 0 on completions from anywhere.
Both losses are one kernel, the unbiased covariance over the completions of a prompt, with h the
log-ratio to the reference:

    AGRO    cov(R_beta, R_beta) / 2
    CoPG    -2 cov(h, R_{beta / 2}) = (2 / beta) (AGRO - var(r) / 2)

For two completions a covariance is half the product of the differences. The gradient of CoPG is
2 / beta times that of AGRO, for any number of completions. Log-probabilities are summed over the
tokens of a completion, never averaged: of means, R_beta would not be one number at any policy.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks, _groups
from bellmax.losses._checks import Knob


def agro_loss(
    log_probs: Float[Array, "*B G"],
    reference_log_probs: Float[Array, "*B G"],
    rewards: Float[Array, "*B G"],
    *,
    beta: Knob,
    on_policy: bool = False,
) -> Float[Array, "*B"]:
    r"""Returns the AGRO loss of a prompt: half the unbiased variance of the regularised rewards.

    .. math:: \ell = \frac{1}{2 (G - 1)} \sum_i \left( R_\beta(y_i) - \bar R_\beta \right)^2, \quad
              \nabla \ell = -\frac{\beta}{G} \sum_i A_i \nabla \log \pi(y_i \mid x)

    with A_i the regularised reward less the mean of the others'. For independent completions from
    ANY law mu that covers the reference, value and gradient are unbiased for Var_mu(R_beta) / 2,
    whose only minimum, 0, is the best policy. Gradients flow through `log_probs`; reference and
    rewards are stopped here.

    On policy, mu is the policy itself, and what is sampled changes with it as well:

    .. math:: \nabla \tfrac12 \mathrm{Var}_\pi(R_\beta) = -\beta
              E_\pi[(R_\beta - V) \nabla \log \pi] + \tfrac12 E_\pi[(R_\beta - V)^2 \nabla \log \pi]

    The first term, minus beta times the gradient of the regularised reward, is that of the loss
    above. With `on_policy` the second is added to the gradient, not to the value, as the sum of

    .. math:: w_i \nabla \log \pi(y_i \mid x), \quad
              w_i = \frac{1}{2 G} \left( A_i^2 - \mathrm{var}_{j \ne i} R_\beta(y_j) \right)

    The mean and the plain variance (ddof 0) of the others are baselines of independent samples: the
    gradient stays unbiased. For normal rewards of unlike completions no multiple of the variance
    would do better; where few completions come up again and again it may add noise. One other
    completion has no variance, and at G = 2 that baseline is 0.

    The paper's text was not at hand: both gradients are derived, and checked by enumeration. In a
    step that divides by beta, the loss divided by beta has the scale of a policy gradient.

    Args:
      log_probs: log pi(y_i | x), nats, summed over tokens. [..., G] with G at least 2.
      reference_log_probs: the same under the reference. [..., G].
      rewards: r, any unit. [..., G].
      beta: > 0, in units of reward a nat. A scalar or [...]; may be traced.
      on_policy: whether the completions are the policy's own and the gradient should say so.
        Static.

    Returns:
      Losses in squared units of reward, the same with and without `on_policy`. [...].

    Raises:
      ValueError: the arrays differ in shape, there are fewer than 2 completions, or `beta` is not
        positive.
      TypeError: an array is not floating point.

    References:
      Tang et al., RL-Finetuning LLMs from On- and Off-Policy Data with a Single Algorithm, 2025.
      https://arxiv.org/abs/2503.19612
    """
    policy, ratios, gains, weight = _prepared(log_probs, reference_log_probs, rewards, beta)
    regularised = gains - weight * ratios
    loss = _groups.covariance(regularised, regularised) / 2
    if not on_policy:
        return loss
    credit = _likelihood_ratio_credit(jax.lax.stop_gradient(regularised))
    # Worth 0, with the gradient of `credit` times the log-probabilities.
    moved = policy - jax.lax.stop_gradient(policy)
    return loss + jnp.sum(credit * moved, axis=-1)


def copg_loss(
    log_probs: Float[Array, "*B G"],
    reference_log_probs: Float[Array, "*B G"],
    rewards: Float[Array, "*B G"],
    *,
    beta: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the contrastive policy-gradient (CoPG) loss of a pair of completions, minimised.

    .. math:: \ell = -\left( R_{\beta / 2}(y) - R_{\beta / 2}(y') \right) (h(y) - h(y'))
              = \frac{(R_\beta(y) - R_\beta(y'))^2 - (r(y) - r(y'))^2}{2 \beta}

    .. math:: \nabla \ell = -\left( R_\beta(y) - R_\beta(y') \right)
              \left( \nabla \log \pi(y \mid x) - \nabla \log \pi(y' \mid x) \right)

    with h the log-ratio to the reference. The halved beta in the loss is the whole beta in its
    gradient: h is differentiated in both factors. The two completions may come from any two laws
    that cover the reference, whose densities are not needed; where both are the policy's own it is
    RLOO of two, on regularised rewards. The paper prints minus this as a loss to be minimised, "by
    gradient ascent". Gradients flow through `log_probs`; reference and rewards are stopped here.

    With G completions it is the mean over their pairs. The sum of squares 1 / (G - 1) times that
    others use for G is beta G times this, and a constant.

    Args:
      log_probs: log pi(y | x), nats, summed over tokens. [..., 2], or [..., G] with G at least 2.
      reference_log_probs: the same under the reference. [..., 2].
      rewards: r, any unit. [..., 2].
      beta: > 0, in units of reward a nat; 0.06 was the paper's best for summaries. A scalar or
        [...]; may be traced.

    Returns:
      Losses in units of reward times nats; negative at the optimum. [...].

    Raises:
      ValueError: the arrays differ in shape, there are fewer than 2 completions, or `beta` is not
        positive.
      TypeError: an array is not floating point.

    References:
      Flet-Berliac et al., Contrastive Policy Gradient: Aligning LLMs on Sequence-Level Scores in a
      Supervised-Friendly Fashion, 2024. https://arxiv.org/abs/2406.19185
      Cohere, Command A: An Enterprise-Ready Large Language Model, 2025 (more than two completions).
      https://arxiv.org/abs/2504.00698
    """
    _, ratios, gains, weight = _prepared(log_probs, reference_log_probs, rewards, beta)
    return -2 * _groups.covariance(ratios, gains - weight / 2 * ratios)


def _prepared(
    log_probs: Array, reference_log_probs: Array, rewards: Array, beta: Knob
) -> tuple[Array, Array, Array, Array]:
    """Returns log-probabilities, log-ratios, rewards [..., G] and beta [..., 1], checked."""
    policy, reference, gains = _checks.floats(
        log_probs=log_probs, reference_log_probs=reference_log_probs, rewards=rewards
    )
    _groups.has_samples("log_probs", policy, at_least=2, why="differences between them")
    _checks.positive("beta", beta)
    reference, gains = _checks.stop(reference, gains)
    return policy, policy - reference, gains, _groups.per_group("beta", beta, policy)


def _likelihood_ratio_credit(values: Float[Array, "*B G"]) -> Float[Array, "*B G"]:
    """Half of the squared deviation from the others, less their variance, over G. [..., G]."""
    samples = values.shape[-1]
    squares = jnp.square(_groups.leave_one_out(values))
    total = jnp.sum(jnp.square(_groups.centre(values)), axis=-1, keepdims=True)
    # Without sample i the sum of squares is smaller by (G - 1) / G of its squared deviation.
    others = (total - squares * ((samples - 1) / samples)) / (samples - 1)
    return (squares - jnp.maximum(others, 0)) / (2 * samples)
