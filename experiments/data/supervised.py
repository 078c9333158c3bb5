"""Batches for supervised fine-tuning, from the completions of preference pairs."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from bellmax.agents.agent import SupervisedBatch
from bellmax.experiments.data import pipeline
from bellmax.experiments.data.encoding import Side

# What a config may ask to imitate. Both sides where the pairs were drawn from the policy that is
# wanted as reference; the chosen ones where they are the only demonstrations.
SIDES: dict[str, tuple[Side, ...]] = {"chosen": ("chosen",), "both": ("chosen", "rejected")}


def make_supervised_iterator(
    encoded: pipeline.EncodedPairs,
    *,
    sides: Sequence[Side],
    batch_size: int,
    bucket_lengths: Sequence[int],
    seed: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Makes the iterator: NumPy `SupervisedBatch`es of this process.

    Args:
      encoded: the pairs.
      sides: which completions are imitated; with both, each is a row of its own.
      batch_size: completions of a batch, over all processes.
      bucket_lengths: lengths to which rows are padded.
      seed: seed of the shuffles, >= 0.
      num_steps: batches in all.
      process_index: this process, from 0.
      process_count: processes, each of which loads its slice of every batch.

    Returns:
      The iterator, with `get_state` and `set_state`; `index` is the pair's row times the number of
      sides, plus the side's place.

    Raises:
      ValueError: an argument is out of its range.
    """
    lengths = {"chosen": encoded.chosen_lengths, "rejected": encoded.rejected_lengths}
    row_lengths = np.stack([encoded.prompt_lengths + lengths[side] for side in sides], axis=1)
    plan = pipeline.BatchPlan(
        row_lengths.reshape(-1), batch_size=batch_size, bucket_lengths=bucket_lengths, seed=seed
    )

    def assemble(batch: pipeline.BatchRows) -> SupervisedBatch:
        rows = [
            encoded.padded(np.array([row // len(sides)]), sides[row % len(sides)], batch.length)
            for row in batch.rows
        ]
        # Typed as Any: the batch's arrays are NumPy until they are placed on devices.
        arrays: dict[str, Any] = {
            "tokens": np.concatenate([tokens for tokens, _ in rows]),
            "mask": np.concatenate([mask for _, mask in rows]),
            "index": batch.rows,
            "weight": batch.weight,
        }
        return SupervisedBatch(**arrays)

    return pipeline.make_plan_iterator(
        plan,
        assemble,
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
    )
