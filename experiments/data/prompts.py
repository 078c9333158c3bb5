"""Batches of prompts for policies that complete them, from the prompts of preference pairs."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from bellmax.agents.agent import PromptBatch
from bellmax.experiments.data import pipeline


def prompt_batch(encoded: pipeline.EncodedPairs, batch: pipeline.BatchRows) -> PromptBatch:
    """Assembles the prompts of a batch, padded on the right.

    Args:
      encoded: the pairs.
      batch: which of them, and the length of the rows.

    Returns:
      The batch, as NumPy arrays; `index` is the row in `encoded`.
    """
    tokens = np.full((len(batch.rows), batch.length), encoded.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for place, row in enumerate(batch.rows):
        prompt = encoded.prompt_tokens(row)
        tokens[place, : prompt.size] = prompt
        mask[place, : prompt.size] = True
    # Typed as Any: the batch's arrays are NumPy until they are placed on devices.
    arrays: dict[str, Any] = {"index": batch.rows, "weight": batch.weight}
    return PromptBatch(**arrays, **{"tokens": tokens, "mask": mask})


def bucket_lengths(encoded: pipeline.EncodedPairs, lengths: Sequence[int]) -> tuple[int, ...]:
    """Returns lengths to which prompts are padded: those given below the longest, and the longest.

    Args:
      encoded: the pairs.
      lengths: lengths of rows of prompt and completion.

    Returns:
      Lengths, ascending; the last holds every prompt.
    """
    longest = int(encoded.prompt_lengths.max())
    return (*sorted(length for length in set(lengths) if length < longest), longest)


def make_prompt_iterator(
    encoded: pipeline.EncodedPairs,
    *,
    batch_size: int,
    bucket_lengths: Sequence[int],
    seed: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Makes the iterator: NumPy `PromptBatch`es of this process.

    Args:
      encoded: the pairs whose prompts are wanted; a prompt of several pairs comes as often.
      batch_size: prompts of a batch, over all processes.
      bucket_lengths: lengths to which prompts are padded; the longest holds every prompt.
      seed: seed of the shuffles, >= 0.
      num_steps: batches in all.
      process_index: this process, from 0.
      process_count: processes, each of which loads its slice of every batch.

    Returns:
      The iterator, with `get_state` and `set_state`.

    Raises:
      ValueError: an argument is out of its range.
    """
    plan = pipeline.BatchPlan(
        encoded.prompt_lengths, batch_size=batch_size, bucket_lengths=bucket_lengths, seed=seed
    )
    return pipeline.make_plan_iterator(
        plan,
        lambda batch: prompt_batch(encoded, batch),
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
    )
