r"""Laws of actions, discrete and continuous, behind one face, as functions of a network's outputs.

A law's own variable is its CHOICE: the number of an action, or a point of a Gaussian. What a choice
does, `features`, is what critics read and, for continuous actions, what the environment takes: the
point limited to [-1, 1], or its hyperbolic tangent. Choices are what rollouts keep: the density of
a squashed Gaussian at a choice is exact, while at the action it has lost all digits near 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax import losses

# Nodes of the quadrature of a squashed Gaussian's entropy, accurate to 1e-5 up to a deviation of 1.
_NODES = 64
_LOG_ROOT_TWO_PI = 0.5 * float(np.log(2 * np.pi))


class Gaussian(NamedTuple):
    """Outputs of a network that are a law of independent normal numbers.

    Attributes:
      mean: [..., D].
      log_std: logarithm of the standard deviation. [..., D].
    """

    mean: Float[Array, "*B D"]
    log_std: Float[Array, "*B D"]


class ActionLaw(NamedTuple):
    """A law of actions; all functions broadcast over leading axes and are differentiable.

    Attributes:
      sample: `(outputs, key) -> choices`, reparameterised where choices are continuous.
      log_prob: `(outputs, choices) -> [...]`, in nats: log-probability of an action, or log-density
        of its features (of the point itself where it is only limited, not squashed).
      entropy: `(outputs) -> [...]`, in nats, of the same law as `log_prob`.
      kl: `(outputs, other_outputs) -> [...]`, the divergence of the FIRST law from the other, in
        nats and in closed form.
      mode: `(outputs) -> choices`: the most likely action, or the Gaussian's mean.
      features: `(choices) -> [..., D]`: one-hot actions, or actions in [-1, 1].
      support: `(outputs, key) -> (choices[..., N, *choice], weights[..., N])`, over which
        expectations under the law are taken: all actions with their probabilities, or one sample of
        weight 1; either way the gradient of the weighted sum is that of the expectation, or
        unbiased for it.
      size: D of the features.
    """

    sample: Callable[[Any, PRNGKeyArray], Array]
    log_prob: Callable[[Any, Array], Array]
    entropy: Callable[[Any], Array]
    kl: Callable[[Any, Any], Array]
    mode: Callable[[Any], Array]
    features: Callable[[Array], Array]
    support: Callable[[Any, PRNGKeyArray], tuple[Array, Array]]
    size: int


def categorical(num_actions: int) -> ActionLaw:
    """Returns the law of one of some actions, whose outputs are logits.

    Args:
      num_actions: A, at least 1.

    Returns:
      The law; outputs are [..., A], -inf where an action is impossible, choices integers [...].

    Raises:
      ValueError: `num_actions` is below 1.
    """
    if num_actions < 1:
        raise ValueError(f"num_actions must be at least 1, got {num_actions}.")

    def log_prob(logits: Array, choices: Array) -> Array:
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        return jnp.take_along_axis(log_probs, choices[..., None], axis=-1)[..., 0]

    def support(logits: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        del key
        actions = jnp.broadcast_to(jnp.arange(num_actions), logits.shape)
        return actions, jax.nn.softmax(logits, axis=-1)

    return ActionLaw(
        sample=lambda logits, key: jax.random.categorical(key, logits),
        log_prob=log_prob,
        entropy=losses.categorical_entropy,
        kl=losses.categorical_kl,
        mode=lambda logits: jnp.argmax(logits, axis=-1),
        features=lambda choices: jax.nn.one_hot(choices, num_actions),
        support=support,
        size=num_actions,
    )


def gaussian(size: int, *, squash: bool = False) -> ActionLaw:
    r"""Returns the law of independent normal numbers, whose outputs are a `Gaussian`.

    Squashed, an action is :math:`a = \tanh(u)` of a normal u, with

    .. math:: \log \pi(a) = \log N(u) - \sum_i \log(1 - \tanh^2 u_i)

    and an entropy by Gauss-Hermite quadrature of the second term, good to 1e-5 nats up to a
    deviation of 1 and to 1e-3 up to 4. The divergence of two such laws is that of the Gaussians.
    Not squashed, the environment limits the point to [-1, 1], and density and entropy are those of
    the point.

    Args:
      size: D, numbers of an action, at least 1.
      squash: whether the action is the hyperbolic tangent of the point, or the point within limits.

    Returns:
      The law; outputs are a `Gaussian` of [..., D], choices points [..., D].

    Raises:
      ValueError: `size` is below 1.

    References:
      Haarnoja et al., Soft Actor-Critic, 2018 (appendix C, squashing).
      https://arxiv.org/abs/1801.01290
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()

    def sample(law: Gaussian, key: PRNGKeyArray) -> Array:
        noise = jax.random.normal(key, law.mean.shape, law.mean.dtype)
        return law.mean + jnp.exp(law.log_std) * noise

    def log_prob(law: Gaussian, choices: Array) -> Array:
        standard = (choices - law.mean) * jnp.exp(-law.log_std)
        density = -0.5 * jnp.square(standard) - law.log_std - _LOG_ROOT_TWO_PI
        return jnp.sum(density - _log_slope(choices) if squash else density, axis=-1)

    def entropy(law: Gaussian) -> Array:
        each = law.log_std + 0.5 + _LOG_ROOT_TWO_PI
        if squash:
            points = law.mean[..., None] + jnp.exp(law.log_std)[..., None] * jnp.asarray(
                nodes, law.mean.dtype
            )
            each = each + _log_slope(points) @ jnp.asarray(weights, law.mean.dtype)
        return jnp.sum(each, axis=-1)

    def kl(law: Gaussian, other: Gaussian) -> Array:
        ratio = jnp.exp(2 * (law.log_std - other.log_std))
        distance = jnp.square((law.mean - other.mean) * jnp.exp(-other.log_std))
        return 0.5 * jnp.sum(ratio + distance - 1 - 2 * (law.log_std - other.log_std), axis=-1)

    def support(law: Gaussian, key: PRNGKeyArray) -> tuple[Array, Array]:
        choices = sample(law, key)[..., None, :]
        return choices, jnp.ones(choices.shape[:-1], choices.dtype)

    return ActionLaw(
        sample=sample,
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
        mode=lambda law: law.mean,
        features=jnp.tanh if squash else lambda choices: jnp.clip(choices, -1, 1),
        support=support,
        size=size,
    )


def _log_slope(points: Array) -> Array:
    """Returns log(1 - tanh^2), without loss of digits where it is far below 0. [...]."""
    return 2 * (jnp.log(2.0) - points - jax.nn.softplus(-2 * points))


def log_probs_of_many(law: ActionLaw, outputs: Any, choices: Array) -> Array:
    """Returns the log-probabilities of several choices under each law, as `support` gives them.

    Args:
      law: the law.
      outputs: of the network, each leaf [..., D].
      choices: [..., N, *choice].

    Returns:
      In nats. [..., N].
    """
    several = jax.tree.map(lambda leaf: leaf[..., None, :], outputs)
    count = choices.shape[jax.tree.leaves(outputs)[0].ndim - 1]
    several = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (*leaf.shape[:-2], count, leaf.shape[-1])), several
    )
    return law.log_prob(several, choices)
