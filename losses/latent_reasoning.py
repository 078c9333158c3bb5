r"""Reasoning as a latent variable: bounds of the likelihood of a known answer, without a verifier.

A chain of thought c is sampled from the policy, and the answer a* that is known to be right has the
likelihood pi(a* | x, c) after it. For G chains there are two lower bounds of log pi(a* | x):

    one sample      E [ mean_i log pi(a* | x, c_i) ]
    multi-sample    E [ log mean_i pi(a* | x, c_i) ],   which rises with G

Each has a gradient of two parts: through the likelihood of the answer, and through the chains,
which the advantages weigh. Chains are independent samples of the policy. Log-probabilities are
summed over the tokens of a chain or of the answer, never averaged. An answer that a chain makes
impossible (-inf) counts as -1e9 nats, and has no gradient.

Masks leave out chains after which there is no place for an answer; the bound is then that of the
chains left, and 0 where none is, as the objective of several samples in `k_sample` is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks, _groups, advantages
from bellmax.losses._checks import Knob

# Below any log-probability of a real answer; its square is far from the end of float32.
_IMPOSSIBLE = -1e9


class _LogMean(NamedTuple):
    """log of a mean of exponentials, in two parts whose differences keep their digits."""

    peak: Array
    rest: Array


def jepo_bound(
    answer_log_probs: Float[Array, "*B G"],
    *,
    multi_sample: bool = True,
    mask: Shaped[Array, "*B G"] | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the bound of the log-likelihood of the answer, from G chains of thought.

    .. math:: f = \log \frac{1}{G} \sum_i \pi(a^* \mid x, c_i) \quad \text{or} \quad
              \frac{1}{G} \sum_i \log \pi(a^* \mid x, c_i)

    Gradients flow; those of the first are weighed by each chain's share of the likelihood.

    Args:
      answer_log_probs: log pi(a* | x, c_i), nats, summed over the tokens of the answer. [..., G].
      multi_sample: whether the mean is inside the logarithm. Static.
      mask: 1 where a chain counts; what is masked may hold anything. [..., G]; None counts all.

    Returns:
      Bounds in nats, <= 0; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes differ, or there is no axis of samples.
      TypeError: `answer_log_probs` is not floating point.

    References:
      Tang et al., Learning to Chain-of-Thought with Jensen's Evidence Lower Bound, 2025.
      https://arxiv.org/abs/2503.19618
    """
    answers, counted = _answers(answer_log_probs, mask)
    if multi_sample:
        peak, rest = _log_mean_exp(answers, counted)
        return peak + rest
    number = jnp.maximum(jnp.sum(counted, axis=-1), 1)
    return jnp.sum(jnp.where(counted, answers, 0), axis=-1) / number


def jepo_advantages(
    answer_log_probs: Float[Array, "*B G"],
    *,
    multi_sample: bool = True,
    mask: Shaped[Array, "*B G"] | None = None,
) -> Float[Array, "*B G"]:
    r"""Returns what each chain of thought adds to the bound, neither normalised nor clipped.

    .. math:: A_i = \log \frac{1}{G} \sum_j p_j - \log \frac{1}{G - 1} \sum_{j \ne i} p_j
              \quad \text{or} \quad
              \log p_i - \frac{1}{G - 1} \sum_{j \ne i} \log p_j, \quad p_i = \pi(a^* \mid x, c_i)

    The first weighs chains in a sum over them, the second in a mean. A chain alone has no baseline:
    A is log p in both. All are 0 where the answer is equally likely after every chain.
    Gradient-stopped here.

    Args:
      answer_log_probs: log p_i, nats, summed over the tokens of the answer. [..., G].
      multi_sample: which of the two bounds. Static.
      mask: 1 where a chain counts; what is masked may hold anything and has advantage 0. [..., G];
        None counts all.

    Returns:
      Advantages in nats. [..., G].

    Raises:
      ValueError: the shapes differ, or there is no axis of samples.
      TypeError: `answer_log_probs` is not floating point.

    References:
      Tang et al., Learning to Chain-of-Thought with Jensen's Evidence Lower Bound, 2025.
      https://arxiv.org/abs/2503.19618
    """
    answers, counted = _answers(answer_log_probs, mask)
    answers = jax.lax.stop_gradient(answers)
    samples = answers.shape[-1]
    shape = (*answers.shape, samples)
    others = counted[..., None, :] & jnp.broadcast_to(~np.eye(samples, dtype=bool), shape)
    every = jnp.broadcast_to(answers[..., None, :], shape)
    if multi_sample:
        everyone = _log_mean_exp(answers, counted)
        rest = _log_mean_exp(every, others)
        # Part by part: log-likelihoods may be many times larger than what tells them apart.
        found = everyone.peak[..., None] - rest.peak + (everyone.rest[..., None] - rest.rest)
    else:
        difference = jnp.where(others, answers[..., None] - every, 0)
        number = jnp.sum(others, axis=-1)
        mean = jnp.sum(difference, axis=-1) / jnp.maximum(number, 1)
        found = jnp.where(number > 0, mean, answers)
    return jnp.where(counted, found, 0)


def jepo_loss(
    chain_log_probs: Float[Array, "*B G"],
    answer_log_probs: Float[Array, "*B G"],
    *,
    multi_sample: bool = True,
    mask: Shaped[Array, "*B G"] | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the JEPO loss of a prompt: minus a bound of the answer's log-likelihood.

    .. math:: \ell = -\sum_i \mathrm{stop}(A_i) \log \pi(c_i \mid x) - f \quad \text{or} \quad
              -\frac{1}{G} \sum_i \left( \mathrm{stop}(A_i) \log \pi(c_i \mid x)
              + \log \pi(a^* \mid x, c_i) \right)

    f being `jepo_bound` and A `jepo_advantages`. The expected gradient over independent chains is
    minus that of the expected bound. The chains are SUMMED over in the first, averaged in the
    second; with one chain both are the same, without a baseline, and without a chain they are
    supervised learning of the answer. Gradients flow to both arguments; advantages are stopped
    here. The value is no quantity to watch, `jepo_bound` is.

    Args:
      chain_log_probs: log pi(c_i | x) of the sampled chains, nats, summed over tokens. [..., G].
      answer_log_probs: log pi(a* | x, c_i) of the known answer after each, nats, summed over its
        tokens. [..., G].
      multi_sample: whether the multi-sample bound is meant. Static.
      mask: 1 where a chain counts; what is masked may hold anything. [..., G]; None counts all.

    Returns:
      Losses in nats; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes differ, or there is no axis of samples.
      TypeError: an array is not floating point.

    References:
      Tang et al., Learning to Chain-of-Thought with Jensen's Evidence Lower Bound, 2025.
      https://arxiv.org/abs/2503.19618
    """
    chains, answers = _checks.floats(
        chain_log_probs=chain_log_probs, answer_log_probs=answer_log_probs
    )
    counted = _counted(chains, mask)
    weight = jepo_advantages(answers, multi_sample=multi_sample, mask=counted)
    credit = jnp.sum(weight * jnp.where(counted, chains, 0), axis=-1)
    if not multi_sample:
        credit = credit / jnp.maximum(jnp.sum(counted, axis=-1), 1)
    return -credit - jepo_bound(answers, multi_sample=multi_sample, mask=counted)


def jepo_practical_loss(
    chain_log_probs: Float[Array, "*B G"],
    answer_log_probs: Float[Array, "*B G"],
    well_formatted: Shaped[Array, "*B G"],
    *,
    beta_supervised: Knob,
    multi_sample: bool = True,
    format_penalty: Knob = 10.0,
    clip: Knob | None = 1.0,
    ddof: int = 0,
    epsilon: Knob = 1e-4,
) -> Float[Array, "*B"]:
    r"""Returns JEPO as it is trained: scaled, clipped advantages, and a penalty of bad formatting.

    .. math:: \ell = -\frac{1}{G} \sum_i \mathrm{stop}(\tilde A_i + \tilde F_i)
              \log \pi(c_i \mid x) - \beta_{sup} f

    The advantages are those of `jepo_advantages` among the well-formatted chains, through
    `scaled_advantages`; f is their `jepo_bound`. F is a second reward, minus the penalty where the
    format is bad, less its mean over all chains, scaled and clipped by itself; whether the paper
    scales by the group or by the batch, and with which ddof, is not known to us: the group is
    ours, `ddof` is open. Chains are averaged over, unlike in `jepo_loss`: the scale is gone anyway.
    One well-formatted chain alone has no advantage. A divergence from a reference is the caller's
    to add, with 1e-3 in the paper.

    Gradients flow to the log-probabilities, the answer's outside the brackets only.

    Args:
      chain_log_probs: log pi(c_i | x) of the sampled chains, nats, summed over tokens. [..., G].
      answer_log_probs: log pi(a* | x, c_i), nats, summed over tokens; after a chain of bad format
        it may be anything. [..., G].
      well_formatted: non-zero where a chain ends in a place for the answer. [..., G].
      beta_supervised: >= 0, weight of the bound itself: 0 to 1e-2 for short answers, 1 for long
        ones. A scalar or [...]; may be traced.
      multi_sample: whether the multi-sample bound is meant. Static.
      format_penalty: >= 0; once it is scaled only its ratio to `epsilon` matters. A scalar or
        [...]; may be traced.
      clip: > 0, of each of the two advantages; None for none. A scalar or [...]; may be traced.
      ddof: of the standard deviations. Static, below G.
      epsilon: >= 0, added to the standard deviations. A scalar or [...]; may be traced.

    Returns:
      Losses; their value is no quantity to watch. [...].

    Raises:
      ValueError: the shapes differ, there are no more samples than `ddof`, or a number is out of
        range.
      TypeError: a log-probability is not floating point.

    References:
      Tang et al., Beyond Verifiable Rewards: Scaling Reinforcement Learning for Language Models to
      Unverifiable Data, 2025 (appendix B). https://arxiv.org/abs/2503.19618
    """
    chains, answers = _checks.floats(
        chain_log_probs=chain_log_probs, answer_log_probs=answer_log_probs
    )
    _checks.same_shape(chain_log_probs=chains, well_formatted=well_formatted)
    good = _counted(chains, well_formatted)
    _checks.in_range("beta_supervised", beta_supervised, 0, float("inf"))
    _checks.in_range("format_penalty", format_penalty, 0, float("inf"))

    def scaled(values: Array, mask: Array | None) -> Array:
        return advantages.scaled_advantages(
            values, clip=clip, ddof=ddof, epsilon=epsilon, mask=mask
        )

    penalty = _groups.per_group("format_penalty", format_penalty, chains)
    rewards = -penalty * (~good).astype(chains.dtype)
    weight = scaled(jepo_advantages(answers, multi_sample=multi_sample, mask=good), good)
    weight = weight + scaled(advantages.centred_advantages(rewards), None)
    bound = jepo_bound(answers, multi_sample=multi_sample, mask=good)
    supervised = _checks.knob("beta_supervised", beta_supervised, bound)
    return -jnp.mean(weight * chains, axis=-1) - supervised * bound


def answer_probability_loss(
    chain_log_probs: Float[Array, "*B G"], answer_log_probs: Float[Array, "*B G"]
) -> Float[Array, "*B"]:
    r"""Returns minus the probability of the known answer, with the gradient over chains of RLOO.

    .. math:: \ell = -\frac{1}{G} \sum_i \left( \mathrm{stop} \Big( p_i - \frac{1}{G - 1}
              \sum_{j \ne i} p_j \Big) \log \pi(c_i \mid x) + p_i \right), \quad
              p_i = \pi(a^* \mid x, c_i)

    The expected gradient over independent chains is minus that of the probability of the answer,
    pi(a* | x), itself, which no bound is needed for. It is what becomes of RLOO with the verifier
    of an exact match when the answer is not sampled but summed over, and it is as blind to answers
    that are long: their probabilities are all nearly 0. One chain has no baseline. Gradients flow
    to both arguments; the bracket is stopped here.

    Args:
      chain_log_probs: log pi(c_i | x) of the sampled chains, nats, summed over tokens. [..., G].
      answer_log_probs: log p_i, nats, summed over the tokens of the answer. [..., G].

    Returns:
      Losses; their value is no quantity to watch. [...].

    Raises:
      ValueError: the shapes differ, or there is no axis of samples.
      TypeError: an array is not floating point.

    References:
      Tang et al., Learning to Chain-of-Thought with Jensen's Evidence Lower Bound, 2025 (appendix).
      https://arxiv.org/abs/2503.19618
    """
    chains, answers = _checks.floats(
        chain_log_probs=chain_log_probs, answer_log_probs=answer_log_probs
    )
    _groups.has_samples("chain_log_probs", chains)
    probs = jnp.exp(answers)
    held = jax.lax.stop_gradient(probs)
    weight = _groups.leave_one_out(held) if held.shape[-1] > 1 else held
    return -jnp.mean(weight * chains + probs, axis=-1)


def _counted(values: Array, mask: Any) -> Array:
    return jnp.ones(values.shape, bool) if mask is None else jnp.asarray(mask) != 0


def _answers(answer_log_probs: Array, mask: Any) -> tuple[Array, Array]:
    """Returns log-likelihoods, finite but for NaN, and which of them count. [..., G]."""
    answers = _checks.as_float("answer_log_probs", answer_log_probs)
    _groups.has_samples("answer_log_probs", answers)
    counted = _counted(answers, mask)
    _checks.same_shape(answer_log_probs=answers, mask=counted)
    # A select, whose other branch has no gradient; what is masked may be NaN, and stops here.
    kept = jnp.where(counted, answers, 0)
    return jnp.where(kept < _IMPOSSIBLE, _IMPOSSIBLE, kept), counted


def _log_mean_exp(values: Float[Array, "*B G"], counted: Array) -> _LogMean:
    """Returns the log of the mean of exp over what counts; 0 where nothing does. [...]."""
    number = jnp.sum(counted, axis=-1)
    some = number > 0
    highest = jnp.max(jnp.where(counted, values, -jnp.inf), axis=-1, initial=-jnp.inf)
    peak = jax.lax.stop_gradient(jnp.where(some, highest, 0))
    # The mean of equal terms is 1 and its logarithm 0, to the last digit.
    terms = jnp.where(counted, jnp.exp(values - peak[..., None]), 0)
    mean = jnp.sum(terms, axis=-1) / jnp.maximum(number, 1)
    return _LogMean(peak, jnp.log(jnp.where(some, mean, 1)))
