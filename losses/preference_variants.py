r"""Preference losses that are not a function of one margin: KTO, SPPO, SimPO, ORPO, CPL.

Each takes what its paper takes, and its docstring says whether a log-probability is summed or
averaged over tokens. All return one loss per example and average nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks, convex
from bellmax.losses._checks import Knob


def kto_baseline(
    mismatched_log_ratios: Float[Array, "*B N"], *, mask: Shaped[Array, "*B N"] | None = None
) -> Float[Array, "*B"]:
    r"""Returns the baseline of `kto_loss`: an estimated KL to the reference, at least 0.

    .. math:: z_0 = \max \Big( 0, \frac{1}{N} \sum_i h(x_i, y_{i + 1}) \Big)

    The mean runs over prompts paired with completions of other prompts. Under several devices,
    average the sums and counts over devices before the clamp. The gradient is stopped.

    Args:
      mismatched_log_ratios: log-ratio of each mismatched pair, nats, summed over tokens. [..., N].
      mask: 1 where a pair counts; masked entries may hold anything. [..., N]; None counts all.

    Returns:
      Baselines in nats, >= 0; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes differ, or there is no axis of pairs.
      TypeError: `mismatched_log_ratios` is not floating point.

    References:
      Ethayarajh et al., KTO, 2024. https://arxiv.org/abs/2402.01306
    """
    ratios = _checks.as_float("mismatched_log_ratios", mismatched_log_ratios)
    if ratios.ndim < 1:
        raise ValueError("mismatched_log_ratios must have an axis of pairs, got a scalar.")
    counted = jnp.ones_like(ratios) if mask is None else jnp.asarray(mask)
    _checks.same_shape(mismatched_log_ratios=ratios, mask=counted)
    total = jnp.sum(_checks.keep(ratios, counted), axis=-1)
    count = jnp.sum(counted.astype(ratios.dtype), axis=-1)
    mean = total / jnp.where(count > 0, count, 1)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0))


def kto_loss(
    log_ratios: Float[Array, "*B"],
    desirable: Shaped[Array, "*B"],
    kl_baseline: Knob,
    *,
    beta: Knob = 0.1,
    desirable_weight: Knob = 1.0,
    undesirable_weight: Knob = 1.0,
) -> Float[Array, "*B"]:
    r"""Returns the KTO loss of completions that are labelled one by one, not in pairs.

    .. math:: \ell = \lambda_D (1 - \sigma(\beta (h - z_0))) \text{ if desirable, else }
              \lambda_U (1 - \sigma(\beta (z_0 - h)))

    Gradients flow to `log_ratios`; the baseline's is stopped here, the reference's is the caller's
    to stop.

    Args:
      log_ratios: h, nats, summed over tokens. [...].
      desirable: non-zero where the completion is desirable; boolean, integer or float. [...].
      kl_baseline: z_0, nats, >= 0: usually one number a batch, see `kto_baseline`. A scalar or
        [...].
      beta: > 0, 1/nats. A scalar or [...]; may be traced.
      desirable_weight: lambda_D, > 0. A scalar or [...]; may be traced.
      undesirable_weight: lambda_U, > 0; choose lambda_D n_D / (lambda_U n_U) near 1. A scalar or
        [...]; may be traced.

    Returns:
      Losses between 0 and the weight; half the weight at h = z_0. [...].

    Raises:
      ValueError: the arrays differ in shape, or a number is not positive.
      TypeError: `log_ratios` is not floating point.

    References:
      Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, 2024.
      https://arxiv.org/abs/2402.01306
    """
    _checks.same_shape(log_ratios=log_ratios, desirable=desirable)
    ratios = _checks.as_float("log_ratios", log_ratios)
    for name, value in (
        ("beta", beta),
        ("desirable_weight", desirable_weight),
        ("undesirable_weight", undesirable_weight),
    ):
        _checks.positive(name, value)
    wanted = jnp.asarray(desirable) != 0
    advantage = ratios - jax.lax.stop_gradient(_checks.knob("kl_baseline", kl_baseline, ratios))
    scaled = _checks.knob("beta", beta, ratios) * jnp.where(wanted, advantage, -advantage)
    weight = jnp.where(
        wanted,
        _checks.knob("desirable_weight", desirable_weight, ratios),
        _checks.knob("undesirable_weight", undesirable_weight, ratios),
    )
    # 1 - sigma(z) as sigma(-z), which keeps its digits where z is large.
    return weight * jax.nn.sigmoid(-scaled)


def sppo_completion_loss(
    log_ratios: Float[Array, "*B"], preferences: Float[Array, "*B"], *, eta: Knob = 1e3
) -> Float[Array, "*B"]:
    r"""Returns the SPPO loss of single completions: a regression of the log-ratio on the win-rate.

    .. math:: \ell = \left( h - \eta \left( \hat P(y \succ \pi_t) - \tfrac12 \right) \right)^2

    Gradients flow to `log_ratios`; `preferences` are stopped here, and the previous policy inside
    the log-ratio is the caller's to stop.

    Args:
      log_ratios: h = log pi(y | x) - log pi_t(y | x) to the previous iterate, nats, summed over
        tokens. [...].
      preferences: estimated probability, in [0, 1], that the completion beats the previous
        iterate's. [...].
      eta: > 0, nats; the step of the multiplicative-weights update (1 / beta in the official code).
        A scalar or [...]; may be traced.

    Returns:
      Losses in squared nats. [...].

    Raises:
      ValueError: the arrays differ in shape, or `eta` is not positive.
      TypeError: an array is not floating point.

    References:
      Wu et al., Self-Play Preference Optimization for Language Model Alignment, 2024.
      https://arxiv.org/abs/2405.00675
    """
    ratios, wins = _checks.floats(log_ratios=log_ratios, preferences=preferences)
    _checks.positive("eta", eta)
    target = _checks.knob("eta", eta, ratios) * (jax.lax.stop_gradient(wins) - 0.5)
    return jnp.square(ratios - target)


def sppo_loss(
    chosen_log_ratios: Float[Array, "*B"],
    rejected_log_ratios: Float[Array, "*B"],
    chosen_preferences: Float[Array, "*B"],
    rejected_preferences: Float[Array, "*B"],
    *,
    eta: Knob = 1e3,
) -> Float[Array, "*B"]:
    r"""Returns the SPPO loss of pairs: the mean of two `sppo_completion_loss`.

    .. math:: \ell = \tfrac12 (h_w - \eta (\hat P_w - \tfrac12))^2
              + \tfrac12 (h_l - \eta (\hat P_l - \tfrac12))^2

    The two preferences are each completion's own win-rate against the previous iterate, not the
    pair's. Gradients flow to both log-ratios; the preferences are stopped here, and the previous
    policy is the caller's to stop.

    Args:
      chosen_log_ratios: h_w to the previous iterate, nats, summed over tokens. [...].
      rejected_log_ratios: h_l, the same for the other completion. [...].
      chosen_preferences: estimated win-rate of the chosen completion against the previous iterate,
        in [0, 1]. [...].
      rejected_preferences: the same for the rejected completion. [...].
      eta: > 0, nats; 1 / beta in the official code. A scalar or [...]; may be traced.

    Returns:
      Losses in squared nats. [...].

    Raises:
      ValueError: the arrays differ in shape, or `eta` is not positive.
      TypeError: an array is not floating point.

    References:
      Wu et al., Self-Play Preference Optimization for Language Model Alignment, 2024.
      https://arxiv.org/abs/2405.00675
    """
    _checks.floats(
        chosen_log_ratios=chosen_log_ratios,
        rejected_log_ratios=rejected_log_ratios,
        chosen_preferences=chosen_preferences,
        rejected_preferences=rejected_preferences,
    )
    chosen = sppo_completion_loss(chosen_log_ratios, chosen_preferences, eta=eta)
    rejected = sppo_completion_loss(rejected_log_ratios, rejected_preferences, eta=eta)
    return (chosen + rejected) / 2


def simpo_loss(
    chosen_mean_log_probs: Float[Array, "*B"],
    rejected_mean_log_probs: Float[Array, "*B"],
    *,
    beta: Knob,
    gamma: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the SimPO loss of each pair, which has no reference.

    .. math:: \ell = -\log \sigma \left( \frac{\beta}{|y_w|} \log \pi(y_w \mid x)
              - \frac{\beta}{|y_l|} \log \pi(y_l \mid x) - \gamma \right)

    Gradients flow to both arguments.

    Args:
      chosen_mean_log_probs: log-probability of the chosen completion, AVERAGED over its tokens
        (nats a token): `sequence_log_probs(..., normalise=True)`. [...].
      rejected_mean_log_probs: the same for the rejected completion. [...].
      beta: > 0; 2 to 2.5 in the paper, since log-probabilities are means. A scalar or [...]; may be
        traced.
      gamma: >= 0, the target margin after scaling by beta; 0.3 to 1.6 in the paper. A scalar or
        [...]; may be traced.

    Returns:
      Losses in nats. [...].

    Raises:
      ValueError: the arrays differ in shape, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Meng et al., SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024.
      https://arxiv.org/abs/2405.14734
    """
    chosen, rejected = _checks.floats(
        chosen_mean_log_probs=chosen_mean_log_probs,
        rejected_mean_log_probs=rejected_mean_log_probs,
    )
    _checks.positive("beta", beta)
    _checks.in_range("gamma", gamma, 0, float("inf"))
    margin = _checks.knob("beta", beta, chosen) * (chosen - rejected)
    return convex.logistic(margin - _checks.knob("gamma", gamma, chosen))


def orpo_loss(
    chosen_mean_log_probs: Float[Array, "*B"],
    rejected_mean_log_probs: Float[Array, "*B"],
    *,
    weight: Knob = 0.1,
) -> Float[Array, "*B"]:
    r"""Returns the ORPO loss of each pair: likelihood and a ratio of odds, without a reference.

    .. math:: \ell = -\log p_w - \lambda \log \sigma \left(
              \log \frac{p_w}{1 - p_w} - \log \frac{p_l}{1 - p_l} \right)

    with p the exponential of the mean log-probability of a token. Gradients flow to both arguments.
    The odds take p at most one rounding step below 1, where they would be infinite, so an empty
    completion is finite.

    Args:
      chosen_mean_log_probs: log p_w, AVERAGED over tokens (nats a token), <= 0:
        `sequence_log_probs(..., normalise=True)`. [...].
      rejected_mean_log_probs: log p_l, the same for the rejected completion. [...].
      weight: lambda >= 0 of the odds ratio. A scalar or [...]; may be traced.

    Returns:
      Losses in nats. [...].

    Raises:
      ValueError: the arrays differ in shape, or `weight` is negative.
      TypeError: an array is not floating point.

    References:
      Hong et al., ORPO: Monolithic Preference Optimization without Reference Model, 2024.
      https://arxiv.org/abs/2403.07691
    """
    chosen, rejected = _checks.floats(
        chosen_mean_log_probs=chosen_mean_log_probs,
        rejected_mean_log_probs=rejected_mean_log_probs,
    )
    _checks.in_range("weight", weight, 0, float("inf"))
    odds_ratio = _log_odds(chosen) - _log_odds(rejected)
    return -chosen + _checks.knob("weight", weight, chosen) * convex.logistic(odds_ratio)


def _log_odds(log_prob: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns log(p / (1 - p)) from log p, with p at most 1 - epsilon. [...]."""
    epsilon = jnp.finfo(log_prob.dtype).eps
    bounded = jnp.where(log_prob < -epsilon, log_prob, -epsilon)
    # Each form loses its digits where the other one keeps them.
    near_one = bounded > -0.5
    complement = jnp.where(
        near_one,
        jnp.log(-jnp.expm1(jnp.where(near_one, bounded, -0.5))),
        jnp.log1p(-jnp.exp(jnp.where(near_one, -0.5, bounded))),
    )
    return bounded - complement
