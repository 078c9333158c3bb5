r"""Weighted likelihood of completions that are given: A-LoL and its relatives, offline.

All raise the likelihood of data by weights that are held constant:

- likelihood itself: `policy_gradient_loss` with advantages 1; weighted behaviour cloning: with the
  rewards;
- A-LoL: `alol_loss`; without a reference: `clip_epsilon=0`; with a divergence in its place:
  `clip_epsilon=0` and a `beta`; with ratios of tokens: `alol_token_loss`;
- R-LoL: `alol_loss` with rewards >= 0 in place of advantages; R-GOLD: `gold_loss`.

A completion's advantage is its reward less the expected reward of its prompt under the reference;
only positive ones count. `priority_weights` samples the data by them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def alol_loss(
    log_probs: Float[Array, "*B"],
    reference_log_probs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
    *,
    clip_epsilon: Knob = 0.9,
    beta: Knob = 0.0,
) -> Float[Array, "*B"]:
    r"""Returns the loss of advantage-based leftover-lunch learning (A-LoL).

    .. math:: \ell = -\mathrm{stop} \left( \max(A, 0) \,
              \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) \right) \log \pi(y \mid x)
              + \beta \log \rho, \quad \rho = \frac{\pi(y \mid x)}{\pi_{ref}(y \mid x)}

    The clipped ratio is a weight: unlike under `ppo_clip_loss`, what is clipped goes on pushing. At
    the reference every ratio is 1. At epsilon 0 it always is: A-LoL without a reference, and with a
    beta A-LoL with a divergence, whose gradient on given data lowers every log-probability by the
    same weight. Gradients flow to `log_probs` outside the bracket; advantages and reference are
    stopped here.

    Args:
      log_probs: log-probability of each completion under the policy, nats, SUMMED over its tokens.
        [...].
      reference_log_probs: the same under the reference. [...].
      advantages: A; a negative one counts as 0. [...].
      clip_epsilon: epsilon >= 0, a part of 1; infinity clips nothing. A scalar or [...]; may be
        traced.
      beta: >= 0, the weight of the log-ratio. A scalar or [...]; may be traced.

    Returns:
      Losses. [...].

    Raises:
      ValueError: the arrays differ in shape, or a number is negative.
      TypeError: an array is not floating point.

    References:
      Baheti et al., Leftover-Lunch: Advantage-based Offline Reinforcement Learning for Language
      Models, 2023. https://arxiv.org/abs/2305.14718
    """
    policy, reference, advantage = _checks.floats(
        log_probs=log_probs, reference_log_probs=reference_log_probs, advantages=advantages
    )
    _checks.in_range("beta", beta, 0, float("inf"))
    reference, advantage = _checks.stop(reference, jnp.maximum(advantage, 0))
    log_ratio = policy - reference
    weight = advantage * _clipped_ratio(log_ratio, clip_epsilon)
    return _checks.knob("beta", beta, policy) * log_ratio - weight * policy


def alol_token_loss(
    log_probs: Float[Array, "*B T"],
    reference_log_probs: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
    advantages: Float[Array, "*B"],
    *,
    clip_epsilon: Knob = 0.9,
) -> Float[Array, "*B"]:
    r"""Returns the loss of A-LoL with the ratio of every token by itself ("A-LoL sequence").

    .. math:: \ell = -\mathrm{stop}(\max(A, 0)) \sum_t m_t \,
              \mathrm{stop}(\mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)) \log \pi_t, \quad
              \rho_t = \frac{\pi_t}{\pi_{ref, t}}

    SUMMED over tokens. Gradients flow to `log_probs` outside the brackets; advantages and reference
    are stopped here.

    Args:
      log_probs: log-probability of each token under the policy, nats; masked entries may hold
        anything. [..., T].
      reference_log_probs: the same under the reference. [..., T].
      mask: 1 where a token counts. [..., T].
      advantages: A of each completion; a negative one counts as 0. [...].
      clip_epsilon: epsilon >= 0, a part of 1; infinity clips nothing. A scalar; may be traced.

    Returns:
      Losses; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes do not fit, there is no axis of tokens, or `clip_epsilon` is negative.
      TypeError: an array is not floating point.

    References:
      Baheti et al., Leftover-Lunch: Advantage-based Offline Reinforcement Learning for Language
      Models, 2023. https://arxiv.org/abs/2305.14718
    """
    _checks.same_shape(log_probs=log_probs, reference_log_probs=reference_log_probs, mask=mask)
    policy, reference = _checks.floats(log_probs=log_probs, reference_log_probs=reference_log_probs)
    advantage = _of_completions("advantages", advantages, policy)
    weight = jnp.where(jnp.asarray(mask) != 0, _clipped_ratio(policy - reference, clip_epsilon), 0)
    total = jnp.sum(weight * _checks.keep(policy, mask), axis=-1)
    return -jnp.maximum(advantage, 0) * total


def gold_loss(
    log_probs: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
    rewards: Float[Array, "*B"],
    *,
    floor: Knob = 0.1,
) -> Float[Array, "*B"]:
    r"""Returns the loss of R-GOLD: tokens weighed by how likely the policy finds them already.

    .. math:: \ell = -\mathrm{stop}(R) \sum_t m_t \,
              \mathrm{stop}(\max(\pi_t, u)) \log \pi_t

    The weight is an importance ratio to data whose law is held to be uniform. SUMMED over tokens.
    Gradients flow to `log_probs` outside the brackets; rewards are stopped here.

    Args:
      log_probs: log-probability of each token under the policy, nats; masked entries may hold
        anything. [..., T].
      mask: 1 where a token counts. [..., T].
      rewards: R of each completion. [...].
      floor: u in [0, 1], the least weight of a token; 0.1 to 0.2 in the paper. A scalar; may be
        traced.

    Returns:
      Losses; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes do not fit, there is no axis of tokens, or `floor` is out of range.
      TypeError: an array is not floating point.

    References:
      Pang and He, Text Generation by Learning from Demonstrations, 2020.
      https://arxiv.org/abs/2009.07839
    """
    _checks.same_shape(log_probs=log_probs, mask=mask)
    policy = _checks.as_float("log_probs", log_probs)
    reward = _of_completions("rewards", rewards, policy)
    _checks.in_range("floor", floor, 0, 1)
    least = _checks.knob("floor", floor, policy)
    weight = jax.lax.stop_gradient(jnp.maximum(jnp.exp(policy), least))
    weight = jnp.where(jnp.asarray(mask) != 0, weight, 0)
    return -reward * jnp.sum(weight * _checks.keep(policy, mask), axis=-1)


def priority_weights(advantages: Float[Array, "*B N"]) -> Float[Array, "*B N"]:
    r"""Returns probabilities with which A-LoL samples its data: by positive advantage.

    .. math:: p_i = \frac{\max(A_i, 0)}{\sum_j \max(A_j, 0)}

    Data sampled like this and then weighed by `alol_loss` counts its advantage twice, as it does in
    the official code. Gradient-stopped here.

    Args:
      advantages: A of each example of a data set. [..., N].

    Returns:
      Probabilities; all 0 where no advantage is positive. [..., N].

    Raises:
      ValueError: there is no axis of examples.
      TypeError: `advantages` is not floating point.

    References:
      Baheti et al., Leftover-Lunch: Advantage-based Offline Reinforcement Learning for Language
      Models, 2023. https://arxiv.org/abs/2305.14718
    """
    values = _checks.as_float("advantages", advantages)
    if values.ndim < 1:
        raise ValueError("advantages must have an axis of examples, got a scalar.")
    positive = jnp.maximum(jax.lax.stop_gradient(values), 0)
    total = jnp.sum(positive, axis=-1, keepdims=True)
    return positive / jnp.where(total > 0, total, 1)


def _clipped_ratio(log_ratio: Array, clip_epsilon: Knob) -> Array:
    """Returns the ratio within [1 - epsilon, 1 + epsilon], constant. [...]."""
    _checks.in_range("clip_epsilon", clip_epsilon, 0, float("inf"))
    width = _checks.knob("clip_epsilon", clip_epsilon, log_ratio)
    return jax.lax.stop_gradient(jnp.clip(jnp.exp(log_ratio), 1 - width, 1 + width))


def _of_completions(name: str, values: Array, tokens: Array) -> Array:
    """Returns one constant for each completion, checked against its tokens. [...]."""
    if tokens.ndim < 1:
        raise ValueError("log_probs must have an axis of tokens, got a scalar.")
    number = _checks.as_float(name, values)
    if number.shape != tokens.shape[:-1]:
        raise ValueError(
            f"{name} must have the shape of log_probs without its last axis, got "
            f"{number.shape} and {tokens.shape}."
        )
    return jax.lax.stop_gradient(number)
