r"""Contrastive preference learning (CPL): from preferences over segments straight to a policy.

A segment's score is its discounted log-likelihood, which stands for its advantage under the regret
model of preferences. For language, T counts tokens and the segment is a completion; for control, T
counts steps.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks, convex
from bellmax.losses._checks import Knob


def segment_scores(
    log_probs: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
    *,
    alpha: Knob = 0.1,
    discount: Knob = 1.0,
) -> Float[Array, "*B"]:
    r"""Returns the discounted, scaled log-likelihood of each segment.

    .. math:: S = \alpha \sum_{t=0}^{T-1} \gamma^t m_t \log \pi(a_t \mid s_t)

    Args:
      log_probs: log-probability of each action or token, nats; masked entries may hold anything.
        [..., T].
      mask: 1 where a step counts. The power of the discount is the position on the axis, counted or
        not. [..., T].
      alpha: > 0, the temperature of the regret model. A scalar; may be traced.
      discount: gamma in [0, 1]; 1 in the official code. A scalar; may be traced.

    Returns:
      Scores; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes differ, there is no axis of steps, or a number is out of range.
      TypeError: `log_probs` is not floating point.

    References:
      Hejna et al., Contrastive Preference Learning, 2023. https://arxiv.org/abs/2310.13639
    """
    return _scores("log_probs", log_probs, "mask", mask, alpha, discount)


def cpl_loss(
    chosen_log_probs: Float[Array, "*B T"],
    rejected_log_probs: Float[Array, "*B U"],
    chosen_mask: Shaped[Array, "*B T"],
    rejected_mask: Shaped[Array, "*B U"],
    *,
    alpha: Knob = 0.1,
    bias: Knob = 0.5,
    discount: Knob = 1.0,
    label_smoothing: Knob = 0.0,
) -> Float[Array, "*B"]:
    r"""Returns the CPL loss of each pair of segments.

    .. math:: \ell = -(1 - s) \log \sigma(S_w - \lambda S_l) - s \log \sigma(S_l - \lambda S_w),
              \quad S = \alpha \sum_t \gamma^t m_t \log \pi(a_t \mid s_t)

    At lambda = 1 the loss does not change when all log-probabilities of both segments move
    together; below 1 it prefers likely segments, at the price of consistency. Gradients flow to
    both arguments. Log-ratios to a reference in place of log-probabilities give CPL-KL; the
    reference is then the caller's to stop.

    Args:
      chosen_log_probs: log-probability of each step of the preferred segment, nats; masked entries
        may hold anything. [..., T].
      rejected_log_probs: the same for the other segment, whose length may differ. [..., U].
      chosen_mask: 1 where a step of the preferred segment counts. [..., T].
      rejected_mask: the same for the other segment. [..., U].
      alpha: > 0, the temperature of the regret model. A scalar; may be traced.
      bias: lambda in [0, 1], the weight of the rejected segment ("contrastive bias"). A scalar or
        [...]; may be traced.
      discount: gamma in [0, 1] a step; 1 in the official code. A scalar; may be traced.
      label_smoothing: s in [0, 1], the probability that the label is wrong. A scalar or [...]; may
        be traced.

    Returns:
      Losses in nats. [...].

    Raises:
      ValueError: shapes do not fit, or a number is out of range.
      TypeError: a log-probability is not floating point.

    References:
      Hejna et al., Contrastive Preference Learning: Learning from Human Feedback without RL, 2023.
      https://arxiv.org/abs/2310.13639
    """
    chosen = _scores(
        "chosen_log_probs", chosen_log_probs, "chosen_mask", chosen_mask, alpha, discount
    )
    rejected = _scores(
        "rejected_log_probs", rejected_log_probs, "rejected_mask", rejected_mask, alpha, discount
    )
    if chosen.shape != rejected.shape:
        raise ValueError(
            "chosen_log_probs and rejected_log_probs must agree on all axes but the last, got "
            f"{jnp.shape(chosen_log_probs)} and {jnp.shape(rejected_log_probs)}."
        )
    _checks.in_range("bias", bias, 0, 1)
    _checks.in_range("label_smoothing", label_smoothing, 0, 1)
    weight = _checks.knob("bias", bias, chosen)
    smoothing = _checks.knob("label_smoothing", label_smoothing, chosen)
    right = convex.logistic(chosen - weight * rejected)
    wrong = convex.logistic(rejected - weight * chosen)
    return (1 - smoothing) * right + smoothing * wrong


def cpl_dense_loss(
    log_probs: Float[Array, "*B N T"],
    mask: Shaped[Array, "*B N T"],
    scores: Float[Array, "*B N"],
    *,
    alpha: Knob = 0.1,
    bias: Knob = 0.5,
    discount: Knob = 1.0,
) -> Float[Array, "*B"]:
    r"""Returns the CPL loss of N ranked segments: the mean over all pairs with a strict order.

    .. math:: \ell = \operatorname{mean}_{(i, j):\, r_i > r_j} -\log \sigma(S_i - \lambda S_j)

    Tied segments make no pair (the official code orders them arbitrarily). Gradients flow to
    `log_probs`.

    Args:
      log_probs: log-probability of each step of each segment, nats; masked entries may hold
        anything. [..., N, T].
      mask: 1 where a step counts. [..., N, T].
      scores: r, the ranking: higher is better; only comparisons are used. [..., N].
      alpha: > 0, the temperature of the regret model. A scalar; may be traced.
      bias: lambda in [0, 1], the weight of the worse segment. A scalar; may be traced.
      discount: gamma in [0, 1] a step. A scalar; may be traced.

    Returns:
      Losses in nats; 0 where all scores tie. [...].

    Raises:
      ValueError: shapes do not fit, or a number is out of range.
      TypeError: `log_probs` or `scores` is not floating point.

    References:
      Hejna et al., Contrastive Preference Learning, 2023. https://arxiv.org/abs/2310.13639
    """
    values = _scores("log_probs", log_probs, "mask", mask, alpha, discount)
    ranks = _checks.as_float("scores", scores)
    if values.ndim < 1 or ranks.shape != values.shape:
        raise ValueError(
            "scores must have the shape of log_probs without its last axis, got "
            f"{ranks.shape} and {jnp.shape(log_probs)}."
        )
    _checks.in_range("bias", bias, 0, 1)
    weight = _checks.knob("bias", bias, jnp.zeros((), values.dtype))
    pairs = convex.logistic(values[..., :, None] - weight * values[..., None, :])
    ordered = (ranks[..., :, None] > ranks[..., None, :]).astype(values.dtype)
    count = jnp.sum(ordered, axis=(-2, -1))
    total = jnp.sum(_checks.keep(pairs, ordered), axis=(-2, -1))
    return total / jnp.where(count > 0, count, 1)


def _scores(
    name: str, log_probs: Array, mask_name: str, mask: Array, alpha: Knob, discount: Knob
) -> Float[Array, "..."]:
    """Returns `segment_scores`, with the caller's argument names in errors. [..., T] to [...]."""
    _checks.same_shape(**{name: log_probs, mask_name: mask})
    values = _checks.as_float(name, log_probs)
    if values.ndim < 1:
        raise ValueError(f"{name} must have an axis of steps, got a scalar.")
    _checks.positive("alpha", alpha)
    _checks.in_range("discount", discount, 0, 1)
    scalar = jnp.zeros((), values.dtype)
    gamma = _checks.knob("discount", discount, scalar)
    steps = jnp.arange(values.shape[-1])
    # A running product and not a power: the derivative of 0 ** 0 is NaN.
    powers = jnp.cumprod(jnp.where(steps == 0, 1, gamma)).astype(values.dtype)
    powers = powers.reshape((1,) * (values.ndim - 1) + (-1,))
    total = jnp.sum(_checks.keep(values, mask) * powers, axis=-1)
    return _checks.knob("alpha", alpha, scalar) * total
