"""From encoded pairs to batches: Grain iterators for training, ordered passes for evaluation."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import grain
import numpy as np
from jaxtyping import Float

from bellmax.agents.agent import PreferenceBatch
from bellmax.experiments.data.encoding import EncodedPairs, EncodingStatistics, tokenise
from bellmax.experiments.data.plans import BatchPlan, BatchRows

# The whole chain is at hand under this module's name.
__all__ = [
    "BatchPlan",
    "BatchRows",
    "EncodedPairs",
    "EncodingStatistics",
    "ReferenceLogProbs",
    "evaluation_batches",
    "local_rows",
    "make_iterator",
    "make_plan_iterator",
    "preference_batch",
    "tokenise",
]

# Log-probabilities of all chosen and of all rejected completions, by row. [N] each.
ReferenceLogProbs = tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]


def preference_batch(
    encoded: EncodedPairs,
    batch: BatchRows,
    reference_log_probs: ReferenceLogProbs | None = None,
) -> PreferenceBatch:
    """Assembles the pairs of a batch.

    Args:
      encoded: the pairs.
      batch: which of them.
      reference_log_probs: log-probabilities of the chosen and the rejected completion of every
        pair under the reference, in nats; None to leave them to the agent. [N] each.

    Returns:
      The batch, as NumPy arrays; `index` is the row in `encoded`.
    """
    # Typed as Any: the batch's arrays are NumPy until they are placed on devices.
    arrays: dict[str, Any] = {"index": batch.rows, "weight": batch.weight}
    for place, side in enumerate(("chosen", "rejected")):
        tokens, mask = encoded.padded(batch.rows, side, batch.length)
        arrays |= {f"{side}_tokens": tokens, f"{side}_mask": mask}
        if reference_log_probs is not None:
            values = np.asarray(reference_log_probs[place], np.float32)
            arrays[f"{side}_reference_log_probs"] = values[batch.rows]
    return PreferenceBatch(**arrays)


def local_rows(batch: BatchRows, *, process_index: int, process_count: int) -> BatchRows:
    """Returns the contiguous slice of a global batch that a process loads.

    Args:
      batch: the rows of all processes.
      process_index: this process, from 0.
      process_count: processes.

    Returns:
      The rows of this process; every process has as many.

    Raises:
      ValueError: `process_count` does not divide the batch, or there is no such process.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be from 0 to {process_count - 1}, got {process_index}."
        )
    size = batch.rows.size
    if size % process_count:
        raise ValueError(f"batch_size must be a multiple of {process_count} processes, got {size}.")
    share = size // process_count
    here = slice(process_index * share, (process_index + 1) * share)
    return BatchRows(batch.rows[here], batch.weight[here], batch.length)


class _Steps:
    """Batches by step, assembled when asked for: what Grain calls a random-access source."""

    def __init__(self, plan: BatchPlan, assemble: Callable[[BatchRows], Any], num_steps: int):
        self._plan, self._assemble, self._num_steps = plan, assemble, num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, index: int) -> Any:
        return self._assemble(self._plan[index])


def make_plan_iterator(
    plan: BatchPlan,
    assemble: Callable[[BatchRows], Any],
    *,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch: int = 8,
) -> grain.DatasetIterator:
    """Makes a Grain iterator over the steps of any plan.

    Its `get_state()` is a small dictionary that JSON can hold, and `set_state(state)` goes there at
    once, however far it is.

    Args:
      plan: the rows of each step, the same on every process.
      assemble: makes a batch of arrays from the rows that this process loads; runs in threads.
      num_steps: steps after which the iterator ends.
      process_index: this process, from 0.
      process_count: processes, each of which loads its slice of every batch.
      num_threads: threads that assemble batches ahead; the order does not depend on them.
      prefetch: batches held ready.

    Returns:
      The iterator.

    Raises:
      ValueError: `num_steps` is below 1, `process_count` does not divide the batch size, or there
        is no such process.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")

    def assemble_local(batch: BatchRows) -> Any:
        return assemble(local_rows(batch, process_index=process_index, process_count=process_count))

    # A wrong layout raises here and not in a prefetching thread.
    local_rows(plan[0], process_index=process_index, process_count=process_count)
    steps = grain.MapDataset.source(_Steps(plan, assemble_local, num_steps))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(steps.to_iter_dataset(options))


def make_iterator(
    encoded: EncodedPairs,
    *,
    batch_size: int,
    bucket_lengths: Sequence[int],
    seed: int,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    reference_log_probs: ReferenceLogProbs | None = None,
) -> grain.DatasetIterator:
    """Makes the training iterator: NumPy `PreferenceBatch`es of this process, in `BatchPlan` order.

    Args:
      encoded: the pairs, the same on every process.
      batch_size: pairs of a batch, over all processes.
      bucket_lengths: lengths to which pairs are padded; the longest holds every pair.
      seed: seed of the shuffles, >= 0.
      num_steps: batches in all; either this or `num_epochs`.
      num_epochs: passes over the pairs; either this or `num_steps`.
      shuffle: whether rows and batches are shuffled in each epoch.
      process_index: this process, from 0.
      process_count: processes, each of which loads its slice of every batch.
      reference_log_probs: see `preference_batch`.

    Returns:
      The iterator, with `get_state` and `set_state`.

    Raises:
      ValueError: an argument is out of its range, or not exactly one of `num_steps` and
        `num_epochs` is given.
    """
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(
            f"exactly one of num_steps and num_epochs must be given, got {num_steps} and "
            f"{num_epochs}."
        )
    plan = BatchPlan(
        encoded.lengths,
        batch_size=batch_size,
        bucket_lengths=bucket_lengths,
        seed=seed,
        shuffle=shuffle,
    )
    references = _as_references(encoded, reference_log_probs)
    if num_epochs is not None:
        num_steps = num_epochs * plan.steps_per_epoch
    assert num_steps is not None
    return make_plan_iterator(
        plan,
        lambda batch: preference_batch(encoded, batch, references),
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
    )


def _as_references(
    encoded: EncodedPairs, reference_log_probs: ReferenceLogProbs | None
) -> ReferenceLogProbs | None:
    if reference_log_probs is None:
        return None
    # Once to the host, if they are still on a device.
    chosen, rejected = (np.asarray(values, np.float32) for values in reference_log_probs)
    if not chosen.shape == rejected.shape == (len(encoded),):
        raise ValueError(
            f"reference_log_probs must be two arrays of shape ({len(encoded)},), got "
            f"{chosen.shape} and {rejected.shape}."
        )
    return chosen, rejected


class _Batches(Sequence[PreferenceBatch]):
    """Batches of a pass, assembled when asked for: a large set is never padded all at once."""

    def __init__(self, rows: Sequence[BatchRows], assemble: Callable[[BatchRows], PreferenceBatch]):
        self._rows, self._assemble = rows, assemble

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PreferenceBatch: ...

    @overload
    def __getitem__(self, index: slice) -> "_Batches": ...

    def __getitem__(self, index: int | slice) -> "PreferenceBatch | _Batches":
        if isinstance(index, slice):
            return _Batches(self._rows[index], self._assemble)
        return self._assemble(self._rows[index])


def evaluation_batches(
    encoded: EncodedPairs,
    *,
    batch_size: int,
    bucket_lengths: Sequence[int],
    process_index: int = 0,
    process_count: int = 1,
    reference_log_probs: ReferenceLogProbs | None = None,
) -> Sequence[PreferenceBatch]:
    """Returns one ordered pass over the pairs, each exactly once with weight 1.

    The buckets come one after another, the shortest first; within one, the pairs keep their order,
    and its last batch is filled with rows of weight 0.

    Args:
      encoded: the pairs.
      batch_size: pairs of a batch, over all processes.
      bucket_lengths: lengths to which pairs are padded; the longest holds every pair.
      process_index: this process, from 0.
      process_count: processes, each of which loads its slice of every batch.
      reference_log_probs: see `preference_batch`.

    Returns:
      The batches of this process, assembled when asked for.

    Raises:
      ValueError: an argument is out of its range.
    """
    plan = BatchPlan(
        encoded.lengths, batch_size=batch_size, bucket_lengths=bucket_lengths, shuffle=False
    )
    references = _as_references(encoded, reference_log_probs)
    rows = [
        local_rows(batch, process_index=process_index, process_count=process_count)
        for batch in plan.epoch(0)
    ]
    return _Batches(rows, lambda batch: preference_batch(encoded, batch, references))
