"""Advantages of the samples of one prompt, from their rewards.

The last axis holds G samples of one prompt. Every advantage is gradient-stopped: it is what
multiplies the gradient of a log-probability. What is called unbiased is so for independent samples:
the mean of A_i grad log pi(y_i) has the gradient of the expected reward as its expectation.

    | function                   | A_i                                   | unbiased               |
    |----------------------------|---------------------------------------|------------------------|
    | leave_one_out_advantages   | r_i - mean of the others              | yes                    |
    | greedy_baseline_advantages | r_i - reward of the greedy completion | yes, unclipped         |
    | centred_advantages         | r_i - mean of all                     | but for 1 - 1 / G      |
    | group_advantages           | (r_i - mean of all) / (std + epsilon) | no                     |

`k_sample` and `majority` have those of objectives of several samples, `returns` those of steps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks, _groups
from bellmax.losses._checks import Knob


def leave_one_out_advantages(rewards: Float[Array, "*B G"]) -> Float[Array, "*B G"]:
    r"""Returns each reward less the mean of the other samples', as RLOO does.

    .. math:: A_i = r_i - \frac{1}{G - 1} \sum_{j \ne i} r_j = \frac{G}{G - 1} (r_i - \bar r)

    No sample is part of its own baseline, so the policy gradient stays unbiased; a constant added
    to the rewards of a prompt changes nothing. One sample has no others, and is refused.
    Gradient-stopped here.

    Args:
      rewards: r, a divergence from a reference subtracted or not. [..., G] with G at least 2.

    Returns:
      Advantages in the unit of the rewards, of mean 0 over the group; exactly 0 where all rewards
      are equal. [..., G].

    Raises:
      ValueError: there are fewer than 2 samples.
      TypeError: `rewards` is not floating point.

    References:
      Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free!, 2019.
      https://openreview.net/forum?id=r1lgTGL5DE
      Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from
      Human Feedback in LLMs, 2024. https://arxiv.org/abs/2402.14740
    """
    values = jax.lax.stop_gradient(_checks.as_float("rewards", rewards))
    _groups.has_samples("rewards", values, at_least=2, why="a baseline from the others")
    return _groups.leave_one_out(values)


def centred_advantages(rewards: Float[Array, "*B G"]) -> Float[Array, "*B G"]:
    r"""Returns each reward less the mean of its group, as Dr. GRPO does: GRPO without a scale.

    .. math:: A_i = r_i - \bar r

    It is 1 - 1 / G times `leave_one_out_advantages`. A group of one has advantage 0 and teaches
    nothing. Gradient-stopped here.

    Args:
      rewards: r. [..., G].

    Returns:
      Advantages in the unit of the rewards; exactly 0 where all rewards are equal. [..., G].

    Raises:
      ValueError: there is no axis of samples.
      TypeError: `rewards` is not floating point.

    References:
      Liu et al., Understanding R1-Zero-Like Training: A Critical Perspective, 2025.
      https://arxiv.org/abs/2503.20783
    """
    values = jax.lax.stop_gradient(_checks.as_float("rewards", rewards))
    _groups.has_samples("rewards", values)
    return _groups.centre(values)


def group_advantages(
    rewards: Float[Array, "*B G"], *, ddof: int = 0, epsilon: Knob = 1e-4
) -> Float[Array, "*B G"]:
    r"""Returns rewards standardised within their group, as GRPO does.

    .. math:: A_i = \frac{r_i - \bar r}{s + \epsilon}, \quad
              s^2 = \frac{1}{G - \mathrm{ddof}} \sum_i (r_i - \bar r)^2

    The scale makes prompts of little variance count as much as the others, which biases the
    gradient. The paper leaves `ddof` open. A group of one has advantage 0 and teaches nothing.
    Gradient-stopped here.

    Args:
      rewards: r. [..., G].
      ddof: what is subtracted from G under the variance: 0, or 1 as in TRL. Static, below G.
      epsilon: >= 0, in the unit of the rewards; 1e-4 as in TRL, with which most reported numbers
        were made: rewards that differ by less than this are noise. A scalar or [...]; may be
        traced.

    Returns:
      Advantages, dimensionless; exactly 0 where all rewards are equal, also with `epsilon` 0.
      [..., G].

    Raises:
      ValueError: there are no more samples than `ddof`, or a number is out of range.
      TypeError: `rewards` is not floating point.

    References:
      Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
      Models, 2024. https://arxiv.org/abs/2402.03300
    """
    values = jax.lax.stop_gradient(_checks.as_float("rewards", rewards))
    _check_ddof("rewards", values, ddof)
    deviations = _groups.centre(values)
    variance = jnp.sum(jnp.square(deviations), axis=-1, keepdims=True) / (values.shape[-1] - ddof)
    return deviations / _scale(jnp.sqrt(variance), epsilon, values)


def greedy_baseline_advantages(
    rewards: Float[Array, "*B G"], greedy_rewards: Float[Array, "*B"], *, clip: Knob | None = None
) -> Float[Array, "*B G"]:
    r"""Returns each reward less that of the most likely completion, as ReMax does.

    .. math:: A_i = \mathrm{clip}(r_i - r_{greedy}, -c, c)

    The greedy completion does not depend on the samples, so without clipping the policy gradient
    stays unbiased, also for a group of one. Gradient-stopped here.

    Args:
      rewards: r of each sample. [..., G].
      greedy_rewards: reward of the prompt's greedy completion. [...].
      clip: c > 0, in the unit of the rewards; 5 in the official code, None for none. A scalar or
        [...]; may be traced.

    Returns:
      Advantages in the unit of the rewards. [..., G].

    Raises:
      ValueError: the shapes do not fit, or `clip` is not positive.
      TypeError: an array is not floating point.

    References:
      Li et al., ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for
      Aligning Large Language Models, 2023. https://arxiv.org/abs/2310.10505
    """
    values = jax.lax.stop_gradient(_checks.as_float("rewards", rewards))
    greedy = jax.lax.stop_gradient(_checks.as_float("greedy_rewards", greedy_rewards))
    _groups.has_samples("rewards", values)
    if greedy.shape != values.shape[:-1]:
        raise ValueError(
            "greedy_rewards must have the shape of rewards without its last axis, got "
            f"{greedy.shape} and {values.shape}."
        )
    advantages = values - greedy[..., None]
    return advantages if clip is None else _clipped(advantages, clip)


def scaled_advantages(
    advantages: Float[Array, "*B G"],
    *,
    clip: Knob | None = 1.0,
    ddof: int = 0,
    epsilon: Knob = 1e-4,
    scale: Knob | None = None,
    mask: Shaped[Array, "*B G"] | None = None,
) -> Float[Array, "*B G"]:
    r"""Returns advantages over their standard deviation, clipped, without subtracting a mean.

    .. math:: \tilde A_i = \mathrm{clip} \left( \frac{A_i}{s + \epsilon}, -c, c \right)

    For advantages that have a baseline already; the practical update of JEPO. s is the standard
    deviation over the group, or what `scale` says, such as that over a batch. One advantage alone
    has no spread to compare it with, and becomes 0. Gradient-stopped here.

    Args:
      advantages: A. [..., G].
      clip: c > 0, dimensionless; None for none. A scalar or [...]; may be traced.
      ddof: what is subtracted from the number of advantages under the variance. Static, below G.
      epsilon: >= 0, in the unit of the advantages. A scalar or [...]; may be traced.
      scale: s > 0 in place of the group's own. A scalar or [...]; may be traced.
      mask: 1 where an advantage counts; what is masked may hold anything and becomes 0. [..., G];
        None counts all.

    Returns:
      Advantages, dimensionless. [..., G].

    Raises:
      ValueError: the shapes differ, there are no more samples than `ddof`, or a number is out of
        range.
      TypeError: `advantages` is not floating point.

    References:
      Tang et al., Beyond Verifiable Rewards: Scaling Reinforcement Learning for Language Models to
      Unverifiable Data, 2025 (appendix B). https://arxiv.org/abs/2503.19618
    """
    values = jax.lax.stop_gradient(_checks.as_float("advantages", advantages))
    _check_ddof("advantages", values, ddof)
    counted = jnp.ones(values.shape, bool) if mask is None else jnp.asarray(mask) != 0
    _checks.same_shape(advantages=values, mask=counted)
    kept = jnp.where(counted, values, 0)
    if scale is None:
        number = jnp.sum(counted, axis=-1, keepdims=True)
        deviations = kept - jnp.sum(kept, axis=-1, keepdims=True) / jnp.maximum(number, 1)
        total = jnp.sum(jnp.where(counted, jnp.square(deviations), 0), axis=-1, keepdims=True)
        spread = jnp.sqrt(total / jnp.maximum(number - ddof, 1))
        kept = jnp.where(number > max(ddof, 1), kept, 0)
    else:
        _checks.positive("scale", scale)
        spread = jax.lax.stop_gradient(_groups.per_group("scale", scale, values))
    scaled = kept / _scale(spread, epsilon, values)
    return scaled if clip is None else _clipped(scaled, clip)


def _check_ddof(name: str, values: Float[Array, "*B G"], ddof: int) -> None:
    if not isinstance(ddof, int) or ddof < 0:
        raise ValueError(f"ddof must be a whole number of at least 0, got {ddof!r}.")
    _groups.has_samples(name, values, at_least=ddof + 1, why=f"a deviation with ddof {ddof}")


def _scale(spread: Array, epsilon: Knob, values: Float[Array, "*B G"]) -> Array:
    """Returns spread + epsilon, and 1 where that is 0: nothing is divided by it but 0. [..., 1]."""
    _checks.in_range("epsilon", epsilon, 0, float("inf"))
    divisor = spread + jax.lax.stop_gradient(_groups.per_group("epsilon", epsilon, values))
    return jnp.where(divisor > 0, divisor, 1)


def _clipped(values: Float[Array, "*B G"], clip: Knob) -> Float[Array, "*B G"]:
    _checks.positive("clip", clip)
    limit = jax.lax.stop_gradient(_groups.per_group("clip", clip, values))
    return jnp.clip(values, -limit, limit)
