"""Losses that fit a reward model, or a model of preferences that need not be transitive."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks, convex
from bellmax.losses._checks import Knob


def bradley_terry_loss(
    chosen_rewards: Float[Array, "*B"],
    rejected_rewards: Float[Array, "*B"],
    *,
    margin: Knob = 0.0,
    label_smoothing: Knob = 0.0,
    centering: Knob = 0.0,
) -> Float[Array, "*B"]:
    r"""Returns the negative log-likelihood of each preference under the Bradley-Terry model.

    .. math:: \ell = -(1 - s) \log \sigma(r_w - r_l - m) - s \log \sigma(r_l - r_w + m)
              + c \, (r_w + r_l)^2

    Without centering only the difference of rewards matters. Gradients flow to both rewards.

    Args:
      chosen_rewards: r_w, the model's reward of the preferred completion, dimensionless. [...].
      rejected_rewards: r_l, the same for the other completion. [...].
      margin: m, by how much the preferred one should be ahead, for labels with a strength. A scalar
        or [...]; may be traced.
      label_smoothing: s in [0, 1], the probability that the label is wrong. A scalar or [...]; may
        be traced; 1 minus a soft label.
      centering: c >= 0, the weight of a pull of the rewards' sum to 0, which the likelihood leaves
        free; 0.01 where it is used. A scalar or [...]; may be traced.

    Returns:
      Losses in nats. [...].

    Raises:
      ValueError: the rewards differ in shape, or a number is out of range.
      TypeError: a reward is not floating point.

    References:
      Bradley and Terry, Rank Analysis of Incomplete Block Designs, 1952.
      https://doi.org/10.2307/2334029
      Touvron et al., Llama 2, 2023 (margin). https://arxiv.org/abs/2307.09288
      Eisenstein et al., Helping or Herding?, 2023 (centering). https://arxiv.org/abs/2312.09244
    """
    chosen, rejected = _checks.floats(
        chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards
    )
    _checks.in_range("label_smoothing", label_smoothing, 0, 1)
    _checks.in_range("centering", centering, 0, float("inf"))
    ahead = chosen - rejected - _checks.knob("margin", margin, chosen)
    smoothing = _checks.knob("label_smoothing", label_smoothing, chosen)
    likelihood = (1 - smoothing) * convex.logistic(ahead) + smoothing * convex.logistic(-ahead)
    if isinstance(centering, int | float) and centering == 0:
        # Not multiplied by 0, which would turn a square that overflows into NaN.
        return likelihood
    return likelihood + _checks.knob("centering", centering, chosen) * jnp.square(chosen + rejected)


def antisymmetric_logits(
    forward_logits: Float[Array, "*B"], backward_logits: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    r"""Returns the antisymmetric part of a preference model's logits.

    .. math:: a(y, y') = \tfrac12 (l(y, y') - l(y', y))

    Then sigma(a) is a preference: it adds up to 1 over the two orders, and is 1/2 of a completion
    against itself, whatever the model. Gradients flow to both arguments.

    Args:
      forward_logits: l(y, y'), the model's logit of "the first is better". [...].
      backward_logits: l(y', y), the same model with the completions swapped. [...].

    Returns:
      Logits. [...].

    Raises:
      ValueError: the arrays differ in shape.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (preference models).
      https://arxiv.org/abs/2312.00886
    """
    forward, backward = _checks.floats(
        forward_logits=forward_logits, backward_logits=backward_logits
    )
    return (forward - backward) / 2


def pairwise_preference_loss(
    logits: Float[Array, "*B"], preferences: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    r"""Returns the cross-entropy of a preference model to labels, hard or soft.

    .. math:: \ell = -p \log \sigma(l) - (1 - p) \log \sigma(-l)

    The model need not have a reward behind it, so it may hold cycles. Gradients flow to the logits;
    the labels are stopped here.

    Args:
      logits: l, of "the first is better", best antisymmetric in the two completions, see
        `antisymmetric_logits`. [...].
      preferences: p, the probability in [0, 1] that the first is better; 1 and 0 are hard labels.
        [...].

    Returns:
      Losses in nats. [...].

    Raises:
      ValueError: the arrays differ in shape.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    ahead, label = _checks.floats(logits=logits, preferences=preferences)
    label = jax.lax.stop_gradient(label)
    return label * convex.logistic(ahead) + (1 - label) * convex.logistic(-ahead)
