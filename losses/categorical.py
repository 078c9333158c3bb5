r"""Categorical laws: weights on a support that does not move. The projection onto it, the losses.

A law has K weights on an increasing support [K] that all examples share; the loss takes logits in
place of weights. Weights may be signed, with total mass 1: those of off-policy targets are, see
`multistep`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax.losses import _checks

_KINDS = ("cross_entropy", "cramer", "clipped")


def categorical_projection(
    atoms: Float[Array, "*B N"], weights: Float[Array, "*B N"], support: Float[Array, " K"]
) -> Float[Array, "*B K"]:
    r"""Returns the law on a support that is nearest to weighted atoms in Cramer distance.

    .. math:: p_i = \sum_j w_j h_i(\min(\max(y_j, z_1), z_K))

    with h_i the hat function: 1 at z_i, 0 at its neighbours and beyond, linear between. An atom is
    split between the two points around it; outside the support it goes to the nearer end. The map
    is linear in the weights, which may be signed, so a sum of laws is projected at once or one by
    one. The total mass stays; so does the mean, unless an atom lies outside. Gradients flow to all
    arguments; those of atoms and support are those of the linear pieces.

    Where XLA targets a CPU, work and memory are linear in N + K on an evenly spaced support; on
    another one each atom is searched for, a factor of log K. Whether the gaps are equal, up to
    rounding in the dtype of the result, is looked up once where the support is a concrete array; a
    traced one is looked up by the compiled program in every call, and under `jax.vmap` over
    supports both ways are computed. An accelerator, where scattered additions wait for each other,
    sums over all N K pairs inside one fused reduction.

    Args:
      atoms: y, where the mass is, any number in any order; infinite ones go to the ends. [..., N].
      weights: w, of any sign. [..., N].
      support: z, strictly increasing, at least 2 atoms; shared by all examples. Computed in the
        dtype of atoms and weights. A traced one cannot be checked. [K].

    Returns:
      Weights on the support, of the same total mass. [..., K].

    Raises:
      ValueError: the shapes differ, there is no axis of atoms, or the support is no vector of at
        least 2 atoms or known not to increase.
      TypeError: an array is not floating point.

    References:
      Bellemare et al., A Distributional Perspective on Reinforcement Learning, 2017.
      https://arxiv.org/abs/1707.06887
      Rowland et al., An Analysis of Categorical Distributional Reinforcement Learning, 2018.
      https://arxiv.org/abs/1802.08163
    """
    location, weight = _checks.floats(atoms=atoms, weights=weights)
    if location.ndim < 1:
        raise ValueError("atoms must have an axis of atoms, got a scalar.")
    dtype = jnp.result_type(location, weight)
    location, weight = location.astype(dtype), weight.astype(dtype)
    grid = as_support(support, dtype=dtype)
    index, fraction = _locate(location, grid, _is_even(support, grid))
    upper = weight * fraction
    zeros = jnp.zeros((*location.shape[:-1], grid.size), dtype)
    arrays = (zeros, index, weight - upper, upper)
    return jax.lax.platform_dependent(*arrays, cpu=_scatter, default=_sum_pairs)


def categorical_loss(
    logits: Float[Array, "*B K"],
    target: Float[Array, "*B K"],
    support: Float[Array, " K"],
    *,
    kind: str = "cross_entropy",
) -> Float[Array, "*B"]:
    r"""Returns the loss of a categorical law against a target that may be signed.

    With p the softmax of the logits, q the target and F their cumulative sums:

    - "cross_entropy": :math:`-\sum_i q_i \log p_i`, whose gradient is p - q wherever q has mass 1.
      A single signed target has no minimiser, its loss falls without bound; the EXPECTED gradient
      is that of the expected target, which is what counts where that one is a probability law.
    - "cramer": :math:`\sum_{i < K} (z_{i+1} - z_i) (F^p_i - F^q_i)^2`, the squared Cramer distance:
      bounded below and in expectation still minimised by the law nearest to the expected target.
    - "clipped": cross-entropy against the positive part of q, normalised. Bounded below, biased:
      clipping a signed target moves its mean, and the expectation of clipped targets is not the
      expected target.

    The target is stopped here, the support too; gradients flow to the logits.

    Args:
      logits: of the predicted law. [..., K].
      target: q, weights of total mass 1, of any sign: `categorical_multistep_target`. [..., K].
      support: z, increasing; only "cramer" reads it. [K].
      kind: "cross_entropy", "cramer" or "clipped".

    Returns:
      Losses: nats, or for "cramer" the unit of the support. [...].

    Raises:
      ValueError: the shapes do not fit, or there is no such kind.
      TypeError: an array is not floating point.

    References:
      Bellemare et al., A Distributional Perspective on Reinforcement Learning, 2017.
      https://arxiv.org/abs/1707.06887
      Rowland et al., An Analysis of Categorical Distributional Reinforcement Learning, 2018.
      https://arxiv.org/abs/1802.08163
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}.")
    logit, weight = _checks.floats(logits=logits, target=target)
    grid = on_support("logits", logit, support)
    weight, grid = _checks.stop(weight, grid)
    if kind == "cramer":
        difference = jnp.cumsum(jax.nn.softmax(logit, axis=-1) - weight, axis=-1)[..., :-1]
        gaps = jnp.broadcast_to(jnp.diff(grid), difference.shape)
        return jnp.sum(gaps * jnp.square(difference), axis=-1)
    if kind == "clipped":
        weight = jnp.maximum(weight, 0)
        mass = jnp.sum(weight, axis=-1, keepdims=True)
        weight = weight / jnp.where(mass > 0, mass, 1)
    log_probs = jax.nn.log_softmax(logit, axis=-1)
    # Where there is no target mass, a log-probability of -inf costs nothing: 0 times -inf is NaN.
    return -jnp.sum(jnp.where(weight != 0, weight * log_probs, 0), axis=-1)


def as_support(support: Any, *, dtype: Any) -> Float[Array, " K"]:
    """Returns a support in the dtype of what lies on it.

    Args:
      support: a vector, concrete or traced. [K].
      dtype: of the result.

    Returns:
      The support. [K].

    Raises:
      ValueError: it is no vector of at least 2 atoms, or known not to increase strictly.
      TypeError: it is not floating point.
    """
    grid = _checks.as_float("support", support)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"support must be a vector of at least 2 atoms, got shape {grid.shape}.")
    known = _known(support)
    if known is not None and not np.all(np.diff(known) > 0):
        raise ValueError(f"support must increase strictly, got {known}.")
    return grid.astype(dtype)


def on_support(name: str, law: Float[Array, "*B K"], support: Any) -> Float[Array, " K"]:
    """Returns the support of a law, checked against it.

    Args:
      name: the law's argument, for the error.
      law: weights or logits. [..., K].
      support: a vector, concrete or traced. [K].

    Returns:
      The support in the dtype of the law. [K].

    Raises:
      ValueError: the law has another number of atoms, or the support is none.
      TypeError: the support is not floating point.
    """
    grid = as_support(support, dtype=law.dtype)
    if law.ndim < 1 or law.shape[-1] != grid.size:
        raise ValueError(
            f"{name} must have the {grid.size} atoms of support on the last axis, got shape "
            f"{law.shape}."
        )
    return grid


def _known(support: Any) -> np.ndarray | None:
    """Returns the numbers of a support in float64, or None where they cannot be looked at."""
    try:
        if not getattr(support, "is_fully_addressable", True):
            return None
        return np.asarray(support).astype(np.float64)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return None


def _is_even(support: Any, grid: Float[Array, " K"]) -> bool | Array:
    """Returns whether all gaps are equal up to rounding: known now, or when the program runs."""
    known = _known(support)
    numpy, points = (jnp, grid) if known is None else (np, known)
    gap = (points[-1] - points[0]) / (points.size - 1)
    ideal = points[0] + gap * numpy.arange(points.size, dtype=points.dtype)
    off = numpy.abs(points - ideal).max()
    # Rounding of the atoms, but never enough of it to move mass that anybody would see.
    rounding = 8 * float(jnp.finfo(grid.dtype).eps) * numpy.abs(points).max()
    even = off <= numpy.minimum(rounding, 1e-3 * gap)
    return even if known is None else bool(even)


def _locate(
    location: Float[Array, "*B N"], grid: Float[Array, " K"], even: bool | Array
) -> tuple[Array, Float[Array, "*B N"]]:
    """Returns the atom of a grid at or below each location, and the way to the next in [0, 1]."""
    constants = _checks.stop(location, grid)
    if isinstance(even, bool):
        index, fraction = (_divide if even else _search)(*constants)
    else:
        index, fraction = jax.lax.cond(even, _divide, _search, *constants)
    return index, _with_slope(location, grid, index, fraction)


def _divide(
    location: Float[Array, "*B N"], grid: Float[Array, " K"]
) -> tuple[Array, Float[Array, "*B N"]]:
    """Locates on an even grid."""
    inverse_gap = (grid.size - 1) / (grid[-1] - grid[0])
    steps = jnp.clip((location - grid[0]) * inverse_gap, 0, grid.size - 1)
    # Clipped once more as an integer: what a NaN is cast to would be no place in memory.
    index = jnp.clip(steps.astype(jnp.int32), 0, grid.size - 2)
    return index, steps - index.astype(steps.dtype)


def _search(
    location: Float[Array, "*B N"], grid: Float[Array, " K"]
) -> tuple[Array, Float[Array, "*B N"]]:
    """Locates on any grid."""
    inside = jnp.clip(location, grid[0], grid[-1])
    # Unrolled bisection: 2 times as fast as the loop on a CPU, 17 times as fast as comparing all.
    index = jnp.searchsorted(grid, inside, side="right", method="scan_unrolled") - 1
    index = jnp.clip(index.astype(jnp.int32), 0, grid.size - 2)
    low, high = _neighbours(grid, index)
    gap = high - low
    return index, (inside - low) / jnp.where(gap > 0, gap, 1)


@jax.custom_jvp
def _with_slope(location, grid, index, fraction):
    """Returns the fraction, differentiable: the same slopes however it was found."""
    del location, grid, index
    return fraction


@_with_slope.defjvp
def _slope(primals, tangents):
    location, grid, index, fraction = primals
    moved, grid_moved = tangents[:2]
    low, high = _neighbours(grid, index)
    low_moved, high_moved = _neighbours(grid_moved, index)
    # Outside, an atom goes wherever the end goes.
    inside = (location >= grid[0]) & (location <= grid[-1])
    relative = moved - (1 - fraction) * low_moved - fraction * high_moved
    return fraction, jnp.where(inside, relative / (high - low), 0)


def _neighbours(values: Float[Array, " K"], index: Array) -> tuple[Array, Array]:
    """Returns the values at an index and at the next one."""
    low, high = (values.at[i].get(mode="promise_in_bounds") for i in (index, index + 1))
    return low, high


def _scatter(zeros, index, lower, upper):
    """Adds pairs of neighbours into place, one window of two numbers an atom.

    Measured on 2 cores at 51 atoms, batch 4096: 110 ns a sample, 2 ns an atom. Two scatters of one
    number each take 170, a scan over source atoms 240, a reduction over all pairs 6,000.
    """
    batch = tuple(range(index.ndim - 1))
    windows = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(index.ndim,),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(index.ndim - 1,),
        operand_batching_dims=batch,
        scatter_indices_batching_dims=batch,
    )
    return jax.lax.scatter_add(
        zeros,
        index[..., None],
        jnp.stack([lower, upper], axis=-1),
        windows,
        mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def _sum_pairs(zeros, index, lower, upper):
    """Sums over pairs of a source atom and a target atom: the same numbers, fused, no scatter."""
    pairs = (*index.shape, zeros.shape[-1])
    target = jax.lax.broadcasted_iota(jnp.int32, pairs, len(pairs) - 1)
    place = jnp.broadcast_to(index[..., None], pairs)
    low = jnp.where(target == place, lower[..., None], 0)
    high = jnp.where(target == place + 1, upper[..., None], 0)
    return zeros + jnp.sum(low + high, axis=-2)
