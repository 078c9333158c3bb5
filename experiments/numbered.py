"""Runs whose data are made in the step: rows are numbers, and randomness comes from names."""

import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray


class Rows(NamedTuple):
    """A step's rows before anything is drawn for them.

    Attributes:
      index: their global numbers, which with the step's key decide their randomness. [B].
    """

    # Fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Any


def local_rows(batch_size: int) -> Rows:
    """Returns the rows of a batch that this process hands over.

    Args:
      batch_size: rows over all processes.
    """
    share = batch_size // jax.process_count()
    first = jax.process_index() * share
    return Rows(np.arange(first, first + share, dtype=np.int32))


def named_key(seed: int, name: str) -> PRNGKeyArray:
    """Returns the root key of what has a name: it is drawn alike alone and among others.

    Args:
      seed: the run's.
      name: of a stage, a method or an environment.

    Returns:
      The key; step n of a stage uses `fold_in` of it and n.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
