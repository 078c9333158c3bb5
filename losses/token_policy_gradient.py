r"""Policy gradients of completions token by token: rewards of tokens, and the losses of GRPO.

Rewards and advantages are data to the losses that follow, and gradient-stopped here. Tokens count
by a mask; what lies outside of it may be anything.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks
from bellmax.losses._checks import Knob
from bellmax.losses.log_probs import kl_estimate, sequence_log_probs
from bellmax.losses.multi_turn import mtpo_turn_rewards
from bellmax.losses.policy_gradient import ppo_clip_loss
from bellmax.losses.returns import accumulate

INFINITY = float("inf")


def reduce_tokens(
    values: Float[Array, "*B T"], mask: Shaped[Array, "*B T"], *, reduction: str | Knob = "mean"
) -> Float[Array, "*B"]:
    r"""Returns one number for each completion: mean, sum or scaled sum of its counted tokens.

    Args:
      values: of each token, in any unit; masked entries may hold anything. [..., T].
      mask: 1 where a token counts. [..., T].
      reduction: "mean" over the counted tokens of the completion (every completion weighs the same,
        a token of a long one less); "sum"; or a number > 0 that the sum is divided by, a scalar or
        [...], which may be traced, such as the longest completion there may be (every token weighs
        the same, whatever the batch).

    Returns:
      Numbers in the unit of the values; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes differ, there is no axis of tokens, or `reduction` is neither known nor
        positive.
      TypeError: `values` is not floating point.

    References:
      Liu et al., Understanding R1-Zero-Like Training, 2025. https://arxiv.org/abs/2503.20783
    """
    _checks.same_shape(values=values, mask=mask)
    entries = _checks.as_float("values", values)
    _has_tokens("values", entries)
    if isinstance(reduction, str):
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean", "sum" or a number, got {reduction!r}.')
        return sequence_log_probs(entries, mask, normalise=reduction == "mean")
    _checks.positive("reduction", reduction)
    total = sequence_log_probs(entries, mask)
    return total / _checks.knob("reduction", reduction, total)


def grpo_loss(
    log_probs: Float[Array, "*B T"],
    behaviour_log_probs: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
    advantages: Float[Array, "..."],
    *,
    clip_epsilon: Knob,
    clip_epsilon_high: Knob | None = None,
    dual_clip: Knob | None = None,
    reference_log_probs: Float[Array, "*B T"] | None = None,
    beta: Knob = 0.0,
    reduction: str | Knob = "mean",
) -> Float[Array, "*B"]:
    r"""Returns the GRPO loss of completions: the clipped surrogate and divergence of every token.

    .. math:: \ell = \frac{1}{|y|} \sum_t m_t \left( \ell_{clip}(\rho_t, A)
              + \beta k_{3, t} \right), \quad k_{3, t} = e^{r_t} - 1 - r_t,
              \; r_t = \log \frac{\pi_{ref, t}}{\pi_t}

    with `ppo_clip_loss` and `kl_estimate`. GRPO takes the mean over tokens and normalised
    `group_advantages`; Dr. GRPO the sum over a constant (`reduction=max_tokens`) and centred ones.
    DAPO divides the sum over ALL tokens of a batch by their number: take `reduction="sum"`, add the
    losses up and divide by the sum of the masks, both over all devices. Gradients flow to
    `log_probs`; behaviour, reference and advantages are stopped here.

    Args:
      log_probs: log-probability of each token under the policy, nats; masked entries of this and
        all other arrays of tokens may hold anything. [..., T].
      behaviour_log_probs: the same under the policy that sampled the completion. [..., T].
      mask: 1 where a token counts. [..., T].
      advantages: of each completion, [...], or of each token, [..., T].
      clip_epsilon: epsilon >= 0 on either side of 1; 0.2 is usual. A scalar or [...]; may be
        traced.
      clip_epsilon_high: epsilon above; None for `clip_epsilon`, 0.28 in DAPO. A scalar or [...];
        may be traced.
      dual_clip: see `ppo_clip_loss`; None for none. A scalar or [...]; may be traced.
      reference_log_probs: under the reference; None for no divergence. [..., T].
      beta: >= 0, the weight of the divergence. A scalar or [...]; may be traced.
      reduction: over the tokens of each completion, see `reduce_tokens`.

    Returns:
      Losses; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes do not fit, a number is out of range, or there is a `beta` but no
        `reference_log_probs`.
      TypeError: an array is not floating point.

    References:
      Shao et al., DeepSeekMath, 2024 (GRPO). https://arxiv.org/abs/2402.03300
      Liu et al., Understanding R1-Zero-Like Training, 2025 (Dr. GRPO).
      https://arxiv.org/abs/2503.20783
      Yu et al., DAPO, 2025. https://arxiv.org/abs/2503.14476
    """
    _checks.same_shape(log_probs=log_probs, behaviour_log_probs=behaviour_log_probs, mask=mask)
    policy, behaviour = _checks.floats(log_probs=log_probs, behaviour_log_probs=behaviour_log_probs)
    _has_tokens("log_probs", policy)
    advantage = _checks.as_float("advantages", advantages)
    if advantage.shape not in (policy.shape, policy.shape[:-1]):
        raise ValueError(
            "advantages must have the shape of log_probs, or that without its last axis, got "
            f"{advantage.shape} and {policy.shape}."
        )
    if advantage.shape != policy.shape:
        advantage = jnp.broadcast_to(advantage[..., None], policy.shape)
    counted = jnp.asarray(mask) != 0

    def only_counted(values: Array) -> Array:
        # Before the ratios: where an entry is NaN, the gradient of its ratio is NaN times 0.
        return jnp.where(counted, values, 0)

    def of_tokens(name: str, value: Any) -> Any:
        if value is None or jnp.ndim(value) == 0:
            return value
        number = _checks.knob(name, value, jnp.sum(policy, axis=-1))
        return jnp.broadcast_to(number[..., None], policy.shape)

    _checks.in_range("beta", beta, 0, INFINITY)
    limits = {"clip_epsilon_high": clip_epsilon_high, "dual_clip": dual_clip}
    losses = ppo_clip_loss(
        *(only_counted(values) for values in (policy, behaviour, advantage)),
        clip_epsilon=of_tokens("clip_epsilon", clip_epsilon),
        **{name: of_tokens(name, value) for name, value in limits.items()},
    )
    if reference_log_probs is not None:
        _checks.same_shape(log_probs=log_probs, reference_log_probs=reference_log_probs)
        reference = _checks.as_float("reference_log_probs", reference_log_probs)
        (reference,) = _checks.stop(reference)
        divergence = kl_estimate(only_counted(policy), only_counted(reference), estimator="k3")
        losses = losses + _checks.knob("beta", of_tokens("beta", beta), policy) * divergence
    elif not (isinstance(beta, int | float) and beta == 0):
        raise ValueError("reference_log_probs must be given where beta is not 0.")
    return reduce_tokens(losses, mask, reduction=reduction)


def kl_shaped_rewards(
    rewards: Float[Array, "*B"],
    log_probs: Float[Array, "*B T"],
    reference_log_probs: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
    *,
    beta: Knob,
) -> Float[Array, "*B T"]:
    r"""Returns what each token earns: its divergence paid, the completion's reward at the end.

    .. math:: r_t = -\beta \log \frac{\pi_t}{\pi_{ref, t}}
              + r \, 1[t \text{ is the last counted token}]

    Their sum is the regularised reward of the completion. Everything is gradient-stopped here.

    Args:
      rewards: r of each completion. [...].
      log_probs: log-probability of each token under the policy that sampled it, nats; masked
        entries may hold anything. [..., T].
      reference_log_probs: the same under the reference. [..., T].
      mask: 1 where a token counts. [..., T].
      beta: >= 0, the weight of the divergence, in units of the reward a nat. A scalar or [...]; may
        be traced.

    Returns:
      Rewards; 0 on masked tokens, and everywhere if nothing counts. [..., T].

    Raises:
      ValueError: the shapes do not fit, there is no axis of tokens, or `beta` is negative.
      TypeError: an array is not floating point.

    References:
      Stiennon et al., Learning to Summarize from Human Feedback, 2020.
      https://arxiv.org/abs/2009.01325
    """
    policy, reference, (reward,) = _completions(
        log_probs, reference_log_probs, mask, rewards=rewards
    )
    _checks.in_range("beta", beta, 0, INFINITY)
    # A token is a turn whose divergence is its own log-ratio.
    return mtpo_turn_rewards(policy - reference, reward, mask, alpha=beta)


def remax_token_advantages(
    rewards: Float[Array, "*B"],
    greedy_rewards: Float[Array, "*B"],
    log_probs: Float[Array, "*B T"],
    reference_log_probs: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
    *,
    beta: Knob = 0.0,
    kl_decay: Knob = 1.0,
    discount: Knob = 1.0,
    reward_clip: Knob | None = None,
) -> Float[Array, "*B T"]:
    r"""Returns the advantages of ReMax: what a completion earns above the most likely one.

    .. math:: A_t = \gamma^{n_t} \, \mathrm{clip}(r - r_{greedy}, -c, c)
              - \beta \sum_{k \ge t} \lambda^{n_t - n_k} m_k \log \frac{\pi_k}{\pi_{ref, k}}

    where n counts the tokens from t to the end, both included. The paper's advantage is the plain
    difference, the default; with a beta, it regularises rewards without bias as long as what is to
    come counts in full (lambda 1). The official code has beta 0.05, lambda 0 (each token pays for
    itself alone, which is biased), gamma 0.99, clip 5, and its loss is an average over all tokens
    of a batch. Everything is gradient-stopped here.

    Args:
      rewards: r of each completion. [...].
      greedy_rewards: of the most likely completion of its prompt, decoded greedily. [...].
      log_probs: log-probability of each token under the policy that sampled it, nats; masked
        entries may hold anything. [..., T].
      reference_log_probs: the same under the reference. [..., T].
      mask: 1 where a token counts. [..., T].
      beta: >= 0, the weight of the divergence, in units of the reward a nat. A scalar or [...]; may
        be traced.
      kl_decay: lambda in [0, 1] a token. A scalar or [...]; may be traced.
      discount: gamma in [0, 1] a token, once for the last one already. A scalar or [...]; may be
        traced.
      reward_clip: c > 0, in units of the reward; None clips nothing. A scalar or [...]; may be
        traced.

    Returns:
      Advantages; 0 on masked tokens. [..., T].

    Raises:
      ValueError: the shapes do not fit, there is no axis of tokens, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Li et al., ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for
      Aligning Large Language Models, 2023. https://arxiv.org/abs/2310.10505
    """
    policy, reference, (reward, greedy) = _completions(
        log_probs, reference_log_probs, mask, rewards=rewards, greedy_rewards=greedy_rewards
    )
    _checks.in_range("beta", beta, 0, INFINITY)
    for name, value in (("kl_decay", kl_decay), ("discount", discount)):
        _checks.in_range(name, value, 0, 1)
    gained = reward - greedy
    if reward_clip is not None:
        _checks.positive("reward_clip", reward_clip)
        limit = _checks.knob("reward_clip", reward_clip, gained)
        gained = jnp.clip(gained, -limit, limit)

    def column(name: str, value: Knob) -> Array:
        number = _checks.knob(name, value, gained)
        return jnp.broadcast_to(number, gained.shape)[..., None]

    counted = jnp.asarray(mask) != 0
    paid = column("beta", beta) * _checks.keep(policy - reference, mask)
    # A token that does not count lies between two that do: no decay on the way across.
    decays = jnp.where(counted, column("kl_decay", kl_decay), 1)
    to_come = accumulate(paid, decays, jnp.ones_like(counted))
    left = jnp.flip(jnp.cumsum(jnp.flip(counted, axis=-1), axis=-1), axis=-1)
    scale = jnp.power(column("discount", discount), left.astype(gained.dtype))
    advantages = jnp.where(counted, scale * gained[..., None] - to_come, 0)
    return jax.lax.stop_gradient(advantages)


def _completions(
    log_probs: Array, reference_log_probs: Array, mask: Array, **rewards: Array
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Returns log-probabilities [..., T] and what completions earn [...], checked and stopped."""
    _checks.same_shape(log_probs=log_probs, reference_log_probs=reference_log_probs, mask=mask)
    policy, reference = _checks.floats(log_probs=log_probs, reference_log_probs=reference_log_probs)
    _has_tokens("log_probs", policy)
    earned = _checks.floats(**rewards)
    if earned[0].shape != policy.shape[:-1]:
        raise ValueError(
            f"{next(iter(rewards))} must have the shape of log_probs without its last axis, got "
            f"{earned[0].shape} and {policy.shape}."
        )
    return *_checks.stop(policy, reference), _checks.stop(*earned)


def _has_tokens(name: str, values: Array) -> None:
    if values.ndim < 1:
        raise ValueError(f"{name} must have an axis of tokens, got a scalar.")
