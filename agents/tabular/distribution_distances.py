r"""Distances of laws on the line, by their cumulative functions.

.. math:: \ell_p(\eta, \nu) = \Big( \int | F_\eta(t) - F_\nu(t) |^p dt \Big)^{1/p}

p = 1 is the Wasserstein-1 distance, p = 2 the Cramer distance. Both are defined for signed weights
of equal total mass as well, where the other Wasserstein distances are not. A law is given by its
atoms and weights: K quantiles and n samples are atoms of weight 1 / K and 1 / n.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks, categorical


def wasserstein_distance(
    atoms: Float[Array, "*#B N"],
    weights: Float[Array, "*#B N"],
    other_atoms: Float[Array, "*#B M"],
    other_weights: Float[Array, "*#B M"],
) -> Float[Array, "*B"]:
    """Returns the Wasserstein-1 distance of two laws of equal mass, anywhere on the line.

    Args:
      atoms: where the mass of the first is, in any order. [..., N].
      weights: of any sign. [..., N].
      other_atoms: of the second; leading axes are broadcast. [..., M].
      other_weights: of the same total mass. [..., M].

    Returns:
      Distances, in the unit of the atoms. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.
    """
    gaps, difference = _differences(atoms, weights, other_atoms, other_weights)
    return jnp.sum(gaps * jnp.abs(difference), axis=-1)


def cramer_distance(
    atoms: Float[Array, "*#B N"],
    weights: Float[Array, "*#B N"],
    other_atoms: Float[Array, "*#B M"],
    other_weights: Float[Array, "*#B M"],
) -> Float[Array, "*B"]:
    """Returns the Cramer distance of two laws of equal mass, anywhere on the line: the root.

    Args:
      atoms: where the mass of the first is, in any order. [..., N].
      weights: of any sign. [..., N].
      other_atoms: of the second; leading axes are broadcast. [..., M].
      other_weights: of the same total mass. [..., M].

    Returns:
      Distances, in the root of the unit of the atoms. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.
    """
    gaps, difference = _differences(atoms, weights, other_atoms, other_weights)
    return jnp.sqrt(jnp.sum(gaps * jnp.square(difference), axis=-1))


def categorical_wasserstein(
    probs: Float[Array, "*B K"], other: Float[Array, "*B K"], support: Float[Array, " K"]
) -> Float[Array, "*B"]:
    """Returns the Wasserstein-1 distance of two laws on one support.

    Args:
      probs: weights, of any sign. [..., K].
      other: of the same total mass. [..., K].
      support: z, increasing. [K].

    Returns:
      Distances, in the unit of the support. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.
    """
    gaps, difference = _on_support(probs, other, support)
    return jnp.sum(gaps * jnp.abs(difference), axis=-1)


def categorical_cramer(
    probs: Float[Array, "*B K"], other: Float[Array, "*B K"], support: Float[Array, " K"]
) -> Float[Array, "*B"]:
    """Returns the Cramer distance of two laws on one support: the root.

    Args:
      probs: weights, of any sign. [..., K].
      other: of the same total mass. [..., K].
      support: z, increasing. [K].

    Returns:
      Distances, in the root of the unit of the support. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.
    """
    gaps, difference = _on_support(probs, other, support)
    return jnp.sqrt(jnp.sum(gaps * jnp.square(difference), axis=-1))


def _on_support(probs, other, support):
    first, second = (
        _checks.as_float(name, law) for name, law in (("probs", probs), ("other", other))
    )
    grid = categorical.on_support("probs", first, support)
    categorical.on_support("other", second, support)
    return jnp.diff(grid), jnp.cumsum(first - second, axis=-1)[..., :-1]


def _differences(atoms, weights, other_atoms, other_weights):
    """Returns the gaps between all atoms in order, and the difference of the two in each."""
    places, masses = _checks.floats(atoms=atoms, weights=weights)
    other_places, other_masses = _checks.floats(
        other_atoms=other_atoms, other_weights=other_weights
    )
    for name, array in (("atoms", places), ("other_atoms", other_places)):
        if array.ndim < 1 or array.shape[-1] < 1:
            raise ValueError(f"{name} must have an axis of atoms, got shape {array.shape}.")
    batch = jnp.broadcast_shapes(places.shape[:-1], other_places.shape[:-1])

    def joined(first, second):
        pair = [jnp.broadcast_to(part, (*batch, part.shape[-1])) for part in (first, second)]
        return jnp.concatenate(pair, axis=-1)

    everywhere = joined(places, other_places)
    order = jnp.argsort(everywhere, axis=-1)
    signed = jnp.take_along_axis(joined(masses, -other_masses), order, axis=-1)
    gaps = jnp.diff(jnp.take_along_axis(everywhere, order, axis=-1), axis=-1)
    return gaps, jnp.cumsum(signed, axis=-1)[..., :-1]
