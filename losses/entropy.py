r"""Entropy and divergence of categorical policies, differentiable, from their logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks


def categorical_entropy(logits: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    r"""Returns the entropy of a categorical policy.

    .. math:: H = -\sum_a \pi(a) \log \pi(a)

    Gradients flow to `logits`, none to a logit of -inf.

    Args:
      logits: unnormalised log-probabilities; -inf where an action is impossible. [..., A].

    Returns:
      Entropies in nats, between 0 and log A; NaN where no action is possible. [...].

    Raises:
      ValueError: there is no axis of actions.
      TypeError: `logits` is not floating point.

    References:
      Williams and Peng, Function Optimization using Connectionist Reinforcement Learning
      Algorithms, 1991. https://doi.org/10.1080/09540099108946587
    """
    values = _checks.as_float("logits", logits)
    _has_actions("logits", values)
    log_probs = jax.nn.log_softmax(values, axis=-1)
    # A select before the product: 0 times -inf is NaN.
    finite = jnp.where(values == -jnp.inf, 0, log_probs)
    return -jnp.sum(jnp.exp(log_probs) * finite, axis=-1)


def categorical_kl(
    logits: Float[Array, "*B A"], reference_logits: Float[Array, "*B A"]
) -> Float[Array, "*B"]:
    r"""Returns the divergence of a categorical policy from another, summed over actions.

    .. math:: KL(\pi, \pi_{ref}) = \sum_a \pi(a) \log \frac{\pi(a)}{\pi_{ref}(a)}

    Gradients flow to both arguments, none to a logit of -inf; a frozen one is the caller's to stop.

    Args:
      logits: of the FIRST policy, over which the expectation is; -inf where an action is
        impossible. [..., A].
      reference_logits: of the second one, the same. [..., A].

    Returns:
      Divergences in nats, >= 0; infinite where the first policy may do what the second one cannot,
      NaN where one of them can do nothing. [...].

    Raises:
      ValueError: the shapes differ, or there is no axis of actions.
      TypeError: an array is not floating point.

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951.
      https://doi.org/10.1214/aoms/1177729694
    """
    first, second = _checks.floats(logits=logits, reference_logits=reference_logits)
    _has_actions("logits", first)
    log_probs = jax.nn.log_softmax(first, axis=-1)
    ratios = log_probs - jax.nn.log_softmax(second, axis=-1)
    ratios = jnp.where(first == -jnp.inf, 0, ratios)
    return jnp.sum(jnp.exp(log_probs) * ratios, axis=-1)


def _has_actions(name: str, values: Array) -> None:
    if values.ndim < 1:
        raise ValueError(f"{name} must have an axis of actions, got a scalar.")
