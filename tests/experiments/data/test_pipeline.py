"""The training iterator: restorable at any step, shared among processes, and shapes that repeat."""

import json
from typing import Any

import numpy as np
import pytest

from bellmax.experiments.data import pipeline, tokenizers
from bellmax.experiments.data.records import PreferenceRecord

BUCKETS = (16, 32, 48)
TOKENIZER = tokenizers.ByteTokenizer()


def make_encoded(num_rows=50, seed=0):
    generator = np.random.default_rng(seed)

    def text(longest):
        return "".join(generator.choice(list("ab 雪"), generator.integers(1, longest)))

    rows = [
        PreferenceRecord("p" + text(8), "x" + text(16), "y" + text(16)) for _ in range(num_rows)
    ]
    return pipeline.tokenise(rows, TOKENIZER, max_length=48)


def make_iterator(encoded, **kwargs) -> Any:
    arguments = {"batch_size": 8, "bucket_lengths": BUCKETS, "seed": 3, "num_epochs": 2}
    return pipeline.make_iterator(encoded, **arguments | kwargs)


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for name, values in batch._asdict().items():
            np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)


def test_batches_hold_the_rows_of_their_index():
    encoded = make_encoded()
    for batch in make_iterator(encoded):
        assert batch.chosen_tokens.shape == batch.rejected_tokens.shape == batch.chosen_mask.shape
        assert batch.chosen_reference_log_probs is None
        assert batch.index.dtype == np.int32
        for place, row in enumerate(batch.index):
            for tokens, mask, completion in (
                (batch.chosen_tokens, batch.chosen_mask, encoded.chosen_tokens(row)),
                (batch.rejected_tokens, batch.rejected_mask, encoded.rejected_tokens(row)),
            ):
                np.testing.assert_array_equal(tokens[place][mask[place] == 1], completion)
                start = int(np.argmax(mask[place]))
                np.testing.assert_array_equal(tokens[place, :start], encoded.prompt_tokens(row))


def test_every_row_once_an_epoch():
    encoded = make_encoded()
    batches = list(make_iterator(encoded, num_epochs=3))
    seen = np.concatenate([batch.index[batch.weight == 1] for batch in batches])
    np.testing.assert_array_equal(np.bincount(seen), np.full(50, 3))
    shapes = {batch.chosen_tokens.shape for batch in batches}
    plan = pipeline.BatchPlan(encoded.lengths, batch_size=8, bucket_lengths=BUCKETS)
    assert shapes == {(8, length) for length in plan.bucket_counts}


@pytest.mark.parametrize("step", [0, 1, 7, 13])
def test_a_restored_iterator_continues_the_same_stream(step):
    encoded = make_encoded()
    iterator = make_iterator(encoded)
    for _ in range(step):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    remaining = list(iterator)
    assert remaining
    fresh = make_iterator(make_encoded())
    fresh.set_state(state)
    assert_same(list(fresh), remaining)
    # Going back works as well, and so does an iterator that was already running.
    iterator.set_state(state)
    assert_same([next(iterator)], remaining[:1])


def test_a_far_step_replays_nothing():
    encoded, assembled = make_encoded(), []
    plan = pipeline.BatchPlan(encoded.lengths, batch_size=8, bucket_lengths=BUCKETS)

    def assemble(batch):
        assembled.append(batch)
        return pipeline.preference_batch(encoded, batch)

    iterator = pipeline.make_plan_iterator(plan, assemble, num_steps=2_000_000, prefetch=4)
    iterator.set_state({"next_index": 1_234_567})
    assert_same([next(iterator)], [pipeline.preference_batch(encoded, plan[1_234_567])])
    assert len(assembled) < 20


def test_processes_partition_each_batch():
    encoded = make_encoded()
    whole = list(make_iterator(encoded))
    parts = [list(make_iterator(encoded, process_index=i, process_count=4)) for i in range(4)]
    for step, batch in enumerate(whole):
        for name, values in batch._asdict().items():
            if values is not None:
                joined = np.concatenate([getattr(part[step], name) for part in parts])
                np.testing.assert_array_equal(joined, values, err_msg=name)
    assert all(len(part) == len(whole) for part in parts)


def test_evaluation_is_one_ordered_pass():
    encoded = make_encoded()
    batches: Any = pipeline.evaluation_batches(encoded, batch_size=8, bucket_lengths=BUCKETS)
    seen = np.concatenate([batch.index[batch.weight == 1] for batch in batches])
    np.testing.assert_array_equal(np.sort(seen), np.arange(50))
    # A second pass is the same.
    assert_same(batches, list(batches))
    assert_same(batches[1:3], [batches[1], batches[2]])
    one_bucket: Any = pipeline.evaluation_batches(encoded, batch_size=8, bucket_lengths=(48,))
    assert len(one_bucket) == 7
    np.testing.assert_array_equal(np.concatenate([b.index for b in one_bucket])[:50], np.arange(50))
    np.testing.assert_array_equal(one_bucket[-1].weight, [1, 1, 0, 0, 0, 0, 0, 0])


def test_reference_log_probs_follow_their_rows():
    encoded = make_encoded()
    references = np.arange(50) / 7, -np.arange(50) / 3
    for batch in make_iterator(encoded, reference_log_probs=references, num_epochs=1):
        np.testing.assert_allclose(batch.chosen_reference_log_probs, batch.index / 7, rtol=1e-6)
        np.testing.assert_allclose(batch.rejected_reference_log_probs, -batch.index / 3, rtol=1e-6)
        assert batch.chosen_reference_log_probs.dtype == np.float32


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_steps": 3}, "exactly one of num_steps and num_epochs"),
        ({"num_epochs": None}, "exactly one of num_steps and num_epochs"),
        ({"num_epochs": 0}, "num_steps must be at least 1"),
        ({"process_count": 3}, "batch_size must be a multiple of 3"),
        ({"process_index": 2, "process_count": 2}, "process_index"),
        ({"bucket_lengths": (8,)}, "bucket_lengths must hold the longest row"),
        ({"reference_log_probs": (np.zeros(50), np.zeros(49))}, "reference_log_probs"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_iterator(make_encoded(), **kwargs)
