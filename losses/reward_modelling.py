"""Losses that fit a reward model to preferences."""

from jaxtyping import Array, Float

from bellmax.losses import _checks, convex
from bellmax.losses._checks import Knob


def bradley_terry_loss(
    chosen_rewards: Float[Array, "*B"],
    rejected_rewards: Float[Array, "*B"],
    *,
    margin: Knob = 0.0,
    label_smoothing: Knob = 0.0,
) -> Float[Array, "*B"]:
    r"""Returns the negative log-likelihood of each preference under the Bradley-Terry model.

    .. math:: \ell = -(1 - s) \log \sigma(r_w - r_l - m) - s \log \sigma(r_l - r_w + m)

    Only the difference of rewards matters. Gradients flow to both rewards.

    Args:
      chosen_rewards: r_w, the model's reward of the preferred completion, dimensionless. [...].
      rejected_rewards: r_l, the same for the other completion. [...].
      margin: m, by how much the preferred one should be ahead, for labels with a strength. A scalar
        or [...]; may be traced.
      label_smoothing: s in [0, 1], the probability that the label is wrong. A scalar or [...]; may
        be traced.

    Returns:
      Losses in nats. [...].

    Raises:
      ValueError: the rewards differ in shape, or a number is out of range.
      TypeError: a reward is not floating point.

    References:
      Bradley and Terry, Rank Analysis of Incomplete Block Designs, 1952.
      https://doi.org/10.2307/2334029 Touvron et al., Llama 2, 2023 (margin).
      https://arxiv.org/abs/2307.09288
    """
    chosen, rejected = _checks.floats(
        chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards
    )
    _checks.in_range("label_smoothing", label_smoothing, 0, 1)
    ahead = chosen - rejected - _checks.knob("margin", margin, chosen)
    smoothing = _checks.knob("label_smoothing", label_smoothing, chosen)
    return (1 - smoothing) * convex.logistic(ahead) + smoothing * convex.logistic(-ahead)
