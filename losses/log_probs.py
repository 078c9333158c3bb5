r"""Log-probabilities of tokens and of sequences, and estimators of the KL divergence.

Nothing here shifts: `tokens[t]` is scored by `logits[t]`. The caller that owns the sequence aligns
the two, once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks


def token_log_probs(
    logits: Float[Array, "... T V"], tokens: Int[Array, "... T"]
) -> Float[Array, "... T"]:
    r"""Returns the log-probability of each token under its logits.

    .. math:: \log p_t = z_{t, y_t} - \log \sum_v \exp z_{t, v}

    A token below 0 or not below V has no log-probability: its entry is NaN, so that a wrong
    vocabulary shows at once instead of reading another token's row; where a mask leaves the entry
    out, nothing changes.

    Args:
      logits: unnormalised log-probabilities, of the same positions as `tokens`. [..., T, V].
      tokens: token ids in [0, V). [..., T].

    Returns:
      Log-probabilities in nats, <= 0, float32 (float64 for float64 logits). [..., T].

    Raises:
      ValueError: `tokens` does not have the shape of `logits` without its last axis.
      TypeError: `logits` is not floating point or `tokens` not of integers.

    References:
      The softmax cross-entropy, negated.
    """
    logits = _checks.as_float("logits", logits)
    tokens = _checks.as_integer("tokens", tokens)
    if logits.ndim < 1 or logits.shape[:-1] != tokens.shape:
        raise ValueError(
            "tokens must have the shape of logits without its last axis, got tokens "
            f"{tokens.shape} and logits {logits.shape}."
        )
    size = logits.shape[-1]
    valid = (tokens >= 0) & (tokens < size)
    index = jnp.where(valid, tokens, 0)[..., None]
    picked = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    return jnp.where(valid, picked - _log_normaliser(logits), jnp.nan)


@jax.custom_jvp
def _log_normaliser(logits: Float[Array, "... V"]) -> Float[Array, "..."]:
    """Returns the logsumexp over the last axis; rows without a finite one pass no gradient on."""
    return jax.nn.logsumexp(logits, axis=-1)


@_log_normaliser.defjvp
def _log_normaliser_jvp(primals, tangents):
    (logits,), (slopes,) = primals, tangents
    total = _log_normaliser(logits)
    # A masked row of NaN meets a gradient of 0, and their product would be NaN.
    shifted = jnp.where(jnp.isfinite(total)[..., None], logits - total[..., None], -jnp.inf)
    return total, jnp.sum(jnp.exp(shifted) * slopes, axis=-1)


def sequence_log_probs(
    token_log_probs: Float[Array, "... T"], mask: Array, *, normalise: bool = False
) -> Float[Array, "..."]:
    r"""Returns the log-probability of each sequence: the sum over its counted tokens, or their
    mean.

    .. math:: \log \pi(y \mid x) = \sum_t m_t \log p_t

    Args:
      token_log_probs: log-probabilities of tokens in nats; masked entries may hold anything. [...,
        T].
      mask: 1 where a token counts; boolean, integer or float. [..., T].
      normalise: divide by the number of counted tokens (nats a token); default the sum (nats), as
        in DPO.

    Returns:
      Log-probabilities; 0 where nothing counts, normalised or not, with gradient 0. [...].

    Raises:
      ValueError: the shapes differ or there is no axis of tokens.
      TypeError: `token_log_probs` is not floating point.

    References:
      Rafailov et al., Direct Preference Optimization, 2023 (sum). https://arxiv.org/abs/2305.18290
      Meng et al., SimPO, 2024 (mean). https://arxiv.org/abs/2405.14734
    """
    values = _checks.as_float("token_log_probs", token_log_probs)
    _checks.same_shape(token_log_probs=token_log_probs, mask=mask)
    if values.ndim < 1:
        raise ValueError("token_log_probs must have an axis of tokens, got a scalar.")
    total = jnp.sum(_checks.keep(values, mask), axis=-1)
    if not normalise:
        return total
    count = jnp.sum(jnp.asarray(mask).astype(values.dtype), axis=-1)
    return total / jnp.where(count > 0, count, 1)


def kl_estimate(
    log_probs: Float[Array, "..."], reference_log_probs: Float[Array, "..."], *, estimator: str
) -> Float[Array, "..."]:
    r"""Returns an estimate of KL(policy, reference) from samples of the policy, one a sample.

    With the log-ratio :math:`r = \log \pi_{ref}(y) - \log \pi(y)` of a sample y of the policy:

    .. math:: k_1 = -r, \quad k_2 = r^2 / 2, \quad k_3 = e^r - 1 - r

    k1 is unbiased and may be negative; k2 is biased, never negative, and has the gradient of the KL
    when samples are fixed; k3 is unbiased and never negative. These are values: differentiated with
    samples fixed, k1 has an expected gradient of 0 and k3 that of the reverse divergence, neither
    of them the KL's.

    Args:
      log_probs: log-probability of each sample under the policy it was drawn from, nats. [...].
      reference_log_probs: log-probability of the same samples under the reference, nats. [...].
      estimator: "k1", "k2" or "k3".

    Returns:
      Estimates in nats. [...]. k3 is continued by its tangent above r = 40, so that it stays
      finite.

    Raises:
      ValueError: the shapes differ, or there is no estimator of this name.
      TypeError: an array is not floating point.

    References:
      Schulman, Approximating KL Divergence, 2020. http://joschu.net/blog/kl-approx.html
    """
    policy, reference = _checks.floats(log_probs=log_probs, reference_log_probs=reference_log_probs)
    log_ratio = reference - policy
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return jnp.square(log_ratio) / 2
    if estimator == "k3":
        bounded = jnp.minimum(log_ratio, 40.0)
        return jnp.expm1(bounded) + jnp.exp(bounded) * (log_ratio - bounded) - log_ratio
    raise ValueError(f'estimator must be "k1", "k2" or "k3", got {estimator!r}.')
