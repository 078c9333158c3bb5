r"""What a return's law says: its expectation, its conditional value at risk, its CDF.

A categorical law has K weights on a support [K] that all examples share; a quantile law has N atoms
of weight 1 / N, [..., N]. `categorical` and `quantile` hold their losses, `multistep` the targets.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks, categorical
from bellmax.losses._checks import Knob


def categorical_mean(
    probs: Float[Array, "*B K"], support: Float[Array, " K"]
) -> Float[Array, "*B"]:
    r"""Returns the expectation of a categorical law.

    .. math:: Q = \sum_i z_i p_i

    Args:
      probs: p, weights of the atoms; signed ones have a mean too. [..., K].
      support: z. [K].

    Returns:
      Means, in the unit of the support. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Bellemare et al., A Distributional Perspective on Reinforcement Learning, 2017.
      https://arxiv.org/abs/1707.06887
    """
    weight = _checks.as_float("probs", probs)
    grid = categorical.on_support("probs", weight, support)
    # A product with a vector, in full precision. On a CPU it is 4 times as fast after a softmax as
    # a sum, into which all of the softmax would be merged and computed entry by entry.
    return jnp.matmul(weight, grid, precision=jax.lax.Precision.HIGHEST)


def categorical_cvar(
    probs: Float[Array, "*B K"], support: Float[Array, " K"], *, level: Knob
) -> Float[Array, "*B"]:
    r"""Returns the conditional value at risk of a categorical law: the mean of its lowest part.

    .. math:: CVaR_\alpha = \frac{1}{\alpha} \int_0^\alpha F^{-1}(u) \, du
              = \frac{1}{\alpha} \sum_i z_i (\min(F_i, \alpha) - \min(F_{i-1}, \alpha))

    At level 1 it is the mean; as the level falls it tends to the lowest atom that has mass.

    Args:
      probs: p, a probability law. [..., K].
      support: z, increasing. [K].
      level: alpha in (0, 1]. A scalar or [...]; may be traced.

    Returns:
      Values in the unit of the support. [...].

    Raises:
      ValueError: the shapes do not fit, or `level` is out of range.
      TypeError: an array is not floating point.

    References:
      Rockafellar and Uryasev, Optimization of Conditional Value-at-Risk, 2000.
      https://doi.org/10.21314/JOR.2000.038
      Dabney et al., Implicit Quantile Networks for Distributional Reinforcement Learning, 2018.
      https://arxiv.org/abs/1806.06923
    """
    weight = _checks.as_float("probs", probs)
    grid = categorical.on_support("probs", weight, support)
    return _lowest_mean(jnp.broadcast_to(grid, weight.shape), weight, level)


def categorical_cdf(
    probs: Float[Array, "*B K"], support: Float[Array, " K"], points: Float[Array, "*B P"]
) -> Float[Array, "*B P"]:
    r"""Returns the cumulative distribution function of a categorical law.

    .. math:: F(x) = \sum_{i : z_i \le x} p_i

    It jumps at the atoms, the jump included. On the support itself it is `jnp.cumsum(probs, -1)`.
    Gradients flow to `probs` alone.

    Args:
      probs: p, weights of the atoms, of any sign. [..., K].
      support: z. [K].
      points: x, where to read it. [..., P].

    Returns:
      F at the points; between 0 and 1 for a probability law. [..., P].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Rowland et al., An Analysis of Categorical Distributional Reinforcement Learning, 2018.
      https://arxiv.org/abs/1802.08163
    """
    weight = _checks.as_float("probs", probs)
    grid = categorical.on_support("probs", weight, support)
    return _mass_below(jnp.broadcast_to(grid, weight.shape), weight, points)


def quantile_mean(quantiles: Float[Array, "*B N"]) -> Float[Array, "*B"]:
    r"""Returns the expectation of a quantile law: the mean of its atoms.

    Args:
      quantiles: theta, N atoms of weight 1 / N. [..., N].

    Returns:
      Means, in the unit of the quantiles. [...].

    Raises:
      ValueError: there is no axis of quantiles.
      TypeError: `quantiles` is not floating point.

    References:
      Dabney et al., Distributional Reinforcement Learning with Quantile Regression, 2017.
      https://arxiv.org/abs/1710.10044
    """
    return jnp.mean(_quantiles(quantiles), axis=-1)


def quantile_cvar(quantiles: Float[Array, "*B N"], *, level: Knob) -> Float[Array, "*B"]:
    r"""Returns the conditional value at risk of a quantile law: the mean of its lowest part.

    .. math:: CVaR_\alpha = \frac{1}{\alpha} \int_0^\alpha F^{-1}(u) \, du

    At level k / N it is the mean of the k lowest quantiles. They are sorted here: estimates may
    cross.

    Args:
      quantiles: theta, N atoms of weight 1 / N, in any order. [..., N].
      level: alpha in (0, 1]. A scalar or [...]; may be traced.

    Returns:
      Values in the unit of the quantiles. [...].

    Raises:
      ValueError: there is no axis of quantiles, or `level` is out of range.
      TypeError: `quantiles` is not floating point.

    References:
      Dabney et al., Implicit Quantile Networks for Distributional Reinforcement Learning, 2018.
      https://arxiv.org/abs/1806.06923
    """
    atoms = _quantiles(quantiles)
    return _lowest_mean(jnp.sort(atoms, axis=-1), _equal_weights(atoms), level)


def quantile_cdf(
    quantiles: Float[Array, "*B N"], points: Float[Array, "*B P"]
) -> Float[Array, "*B P"]:
    r"""Returns the cumulative distribution function of a quantile law.

    .. math:: F(x) = \frac{1}{N} \, \# \{ i : \theta_i \le x \}

    It jumps at the atoms, the jump included, and is flat between them: it passes no gradient.

    Args:
      quantiles: theta, N atoms of weight 1 / N, in any order. [..., N].
      points: x, where to read it. [..., P].

    Returns:
      F at the points, in [0, 1]. [..., P].

    Raises:
      ValueError: the shapes do not fit, or there is no axis of quantiles.
      TypeError: an array is not floating point.

    References:
      Dabney et al., Distributional Reinforcement Learning with Quantile Regression, 2017.
      https://arxiv.org/abs/1710.10044
    """
    atoms = _quantiles(quantiles)
    return _mass_below(atoms, _equal_weights(atoms), points)


def _lowest_mean(
    atoms: Float[Array, "*B N"], weights: Float[Array, "*B N"], level: Knob
) -> Float[Array, "*B"]:
    """Returns the mean of the lowest part of a law whose atoms are in increasing order. [...]."""
    _checks.positive("level", level)
    _checks.in_range("level", level, 0, 1)
    part = _checks.knob("level", level, weights[..., 0])
    part = jnp.broadcast_to(part, weights.shape[:-1])
    # What is left of each atom's mass when the lower ones have had their share of the part.
    left = part[..., None] - (jnp.cumsum(weights, axis=-1) - weights)
    return jnp.sum(atoms * jnp.clip(left, 0, weights), axis=-1) / part


def _mass_below(
    atoms: Float[Array, "*B N"], weights: Float[Array, "*B N"], points: Any
) -> Float[Array, "*B P"]:
    """Returns the mass at or below each point; atoms are in any order. [..., P]."""
    place = _checks.as_float("points", points)
    if place.ndim != atoms.ndim or place.shape[:-1] != atoms.shape[:-1]:
        raise ValueError(
            f"points must have shape {atoms.shape[:-1]} and an axis of points, got {place.shape}."
        )
    weights = weights.astype(jnp.result_type(weights, place))
    below = atoms[..., None, :] <= place[..., :, None]
    return jnp.sum(jnp.where(below, weights[..., None, :], 0), axis=-1)


def _quantiles(quantiles: Any) -> Float[Array, "*B N"]:
    atoms = _checks.as_float("quantiles", quantiles)
    if atoms.ndim < 1 or atoms.shape[-1] < 1:
        raise ValueError(f"quantiles must have an axis of quantiles, got shape {atoms.shape}.")
    return atoms


def _equal_weights(atoms: Float[Array, "*B N"]) -> Float[Array, "*B N"]:
    return jnp.full_like(atoms, 1 / atoms.shape[-1])
