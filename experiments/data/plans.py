"""Which rows make up which batch: a pure function of the seed and the step."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class BatchRows(NamedTuple):
    """The rows of one batch.

    Attributes:
      rows: row numbers; a padding row repeats the first row of the batch. [B].
      weight: 1 for a row, 0 for a padding row. [B].
      length: tokens to which every row is padded: the bucket of the batch.
    """

    rows: Int[np.ndarray, " B"]
    weight: Float[np.ndarray, " B"]
    length: int


class BatchPlan:
    """A random-access sequence of batches, one epoch after another without end.

    A row belongs to the smallest bucket that holds it, so that batches have as many shapes as there
    are buckets in use. In each epoch the rows of a bucket are shuffled and cut into batches, the
    last of which is filled with rows of weight 0; then the batches of all buckets are shuffled.
    Every row has weight 1 exactly once an epoch, and `plan[step]` depends on nothing but the
    arguments here and the step: the position of a run in its data is one number, and going to any
    step replays nothing.

    Args:
      lengths: tokens of each row. [N], N >= 1.
      batch_size: rows of a batch, over all processes.
      bucket_lengths: lengths to which rows are padded, in any order.
      seed: seed of all shuffles, >= 0.
      shuffle: False keeps the rows in order within a bucket, and the buckets one after another.

    Attributes:
      batch_size: as given.
      steps_per_epoch: batches of an epoch.
      bucket_counts: rows of each bucket in use, by its length, the shortest first.

    Raises:
      ValueError: there is no row, `batch_size` or a bucket is below 1, `seed` is negative, or a row
        fits no bucket.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, " N"],
        *,
        batch_size: int,
        bucket_lengths: Sequence[int],
        seed: int = 0,
        shuffle: bool = True,
    ):
        buckets = np.unique(np.asarray(bucket_lengths, np.int64))
        if lengths.ndim != 1 or lengths.size == 0:
            raise ValueError(f"lengths must be [N] with N at least 1, got shape {lengths.shape}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if buckets.size == 0 or buckets[0] < 1:
            raise ValueError(f"bucket_lengths must be lengths from 1, got {bucket_lengths}.")
        if lengths.max() > buckets[-1]:
            raise ValueError(
                f"bucket_lengths must hold the longest row, which has {lengths.max()} tokens; got "
                f"{tuple(bucket_lengths)}."
            )
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        self.batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        bucket_of_row = np.searchsorted(buckets, lengths)
        self._rows_of_bucket = {
            int(buckets[bucket]): np.flatnonzero(bucket_of_row == bucket)
            for bucket in np.unique(bucket_of_row)
        }
        self.bucket_counts = {length: rows.size for length, rows in self._rows_of_bucket.items()}
        self.steps_per_epoch = sum(-(-n // batch_size) for n in self.bucket_counts.values())
        # Two epochs are kept, since prefetching threads read across their boundary.
        self._cached_epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def __getitem__(self, step: int) -> BatchRows:
        """Returns the batch of a step.

        Raises:
          IndexError: `step` is negative.
        """
        if step < 0:
            raise IndexError(f"step must be at least 0, got {step}.")
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._cached_epoch(epoch)[position]

    def epoch(self, number: int) -> tuple[BatchRows, ...]:
        """Returns the batches of an epoch, counted from 0, in the order of its steps."""
        return self._cached_epoch(number)

    def _plan_epoch(self, number: int) -> tuple[BatchRows, ...]:
        generator = np.random.default_rng((self._seed, number))
        batches = []
        for length, rows in self._rows_of_bucket.items():
            order = generator.permutation(rows) if self._shuffle else rows
            for start in range(0, order.size, self.batch_size):
                part = order[start : start + self.batch_size]
                filled = np.full(self.batch_size, part[0], np.int32)
                filled[: part.size] = part
                weight = (np.arange(self.batch_size) < part.size).astype(np.float32)
                batches.append(BatchRows(filled, weight, length))
        order = generator.permutation(len(batches)) if self._shuffle else range(len(batches))
        return tuple(batches[i] for i in order)
