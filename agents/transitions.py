"""What agents that learn from transitions share: rows that do not count, and noise for each row."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import updates
from bellmax.agents.agent import TransitionBatch


class Rows(NamedTuple):
    """A batch made ready for networks.

    Attributes:
      batch: with 0 everywhere in rows of weight 0, which may have held anything.
      weight: of each row. [B].
      going_on: 0 where the transition ended the episode by itself, 1 elsewhere. [B].
      places: of the rows in the whole batch, over all devices. [B].
      numbers: of the rows in their data set; their places where the batch does not say. [B].
    """

    batch: TransitionBatch
    weight: Float[Array, " B"]
    going_on: Float[Array, " B"]
    places: Int[Array, " B"]
    numbers: Int[Array, " B"]


def rows(batch: TransitionBatch, axis_name: str | None = None) -> Rows:
    """Returns the rows of a batch, those of weight 0 as zeros.

    Args:
      batch: transitions.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The rows.
    """
    size = batch.observations.shape[0]
    weight = updates.row_weights(batch.weight, size)
    cleaned: TransitionBatch = updates.where_counted(batch, weight)
    going_on = jnp.ones(size)
    if cleaned.terminated is not None:
        going_on = 1 - jnp.asarray(cleaned.terminated, jnp.float32)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
    places = first + jnp.arange(size)
    return Rows(cleaned, weight, going_on, places, places if batch.index is None else batch.index)


def noise(key: PRNGKeyArray, numbers: Int[Array, " B"], size: int) -> Float[Array, "B D"]:
    """Draws N(0, I) for each row from the key and the row's number: alike on any layout of devices.

    Args:
      key: randomness, the same on every device; consumed.
      numbers: of the rows.
      size: numbers D a row.

    Returns:
      Noise. [B, D].
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
    return jax.vmap(lambda row_key: jax.random.normal(row_key, (size,)))(keys)
