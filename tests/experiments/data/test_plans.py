"""The plan of batches: every row once an epoch, and steps from nothing but seed and number."""

import numpy as np
import pytest

from bellmax.experiments.data import plans

BUCKETS = (8, 16, 32)


def make_plan(seed=0, num_rows=101, batch_size=8, **kwargs):
    lengths = np.random.default_rng(seed).integers(1, 33, num_rows)
    return lengths, plans.BatchPlan(
        lengths, batch_size=batch_size, bucket_lengths=BUCKETS, seed=seed, **kwargs
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_every_row_once_an_epoch_in_its_bucket(seed, shuffle):
    lengths, plan = make_plan(seed, shuffle=shuffle)
    for epoch in range(3):
        seen = []
        for position in range(plan.steps_per_epoch):
            batch = plan[epoch * plan.steps_per_epoch + position]
            assert batch.rows.shape == batch.weight.shape == (8,)
            fits = [min(b for b in BUCKETS if b >= length) for length in lengths[batch.rows]]
            assert set(fits) == {batch.length}
            seen += list(batch.rows[batch.weight == 1])
            assert set(batch.weight) <= {0.0, 1.0}
        assert sorted(seen) == list(range(101))


def test_buckets_are_filled_but_for_their_last_batch():
    lengths, plan = make_plan()
    counts = {b: int(np.sum((lengths <= b) & (lengths > b // 2 * (b > 8)))) for b in BUCKETS}
    assert plan.bucket_counts == counts
    assert plan.steps_per_epoch == sum(int(np.ceil(count / 8)) for count in counts.values())
    for length, count in counts.items():
        filled = sorted(batch.weight.sum() for batch in plan.epoch(0) if batch.length == length)
        assert sum(filled) == count
        assert filled[1:] == [8] * (len(filled) - 1)


def test_a_step_needs_no_history():
    _, plan = make_plan()
    _, fresh = make_plan()
    steps = list(range(5 * plan.steps_per_epoch))
    in_order = {step: plan[step] for step in steps}
    for step in np.random.default_rng(0).permutation(steps):
        for field, expected in zip(fresh[int(step)], in_order[step], strict=True):
            np.testing.assert_array_equal(field, expected)


def test_epochs_and_seeds_differ():
    def order(plan, epoch):
        return [tuple(batch.rows) for batch in plan.epoch(epoch)]

    lengths, plan = make_plan()
    other = plans.BatchPlan(lengths, batch_size=8, bucket_lengths=BUCKETS, seed=1)
    assert order(plan, 0) != order(plan, 1)
    assert order(plan, 0) != order(other, 0)
    assert len({batch.length for batch in plan.epoch(0)[:4]}) > 1, "buckets should alternate"


def test_without_shuffle_rows_keep_their_order():
    _, plan = make_plan(shuffle=False)
    for length in BUCKETS:
        batches = [batch for batch in plan.epoch(0) if batch.length == length]
        rows = np.concatenate([batch.rows[batch.weight == 1] for batch in batches])
        np.testing.assert_array_equal(rows, np.sort(rows))
    assert [batch.length for batch in plan.epoch(0)] == sorted(b.length for b in plan.epoch(1))


def test_each_place_is_equally_likely():
    # Row 0 of 12 equal rows lands in each of the 3 batches a third of the time.
    plan = plans.BatchPlan(np.full(12, 4), batch_size=4, bucket_lengths=(4,), seed=0)
    places = [
        next(i for i, batch in enumerate(plan.epoch(epoch)) if 0 in batch.rows)
        for epoch in range(3000)
    ]
    counts = np.bincount(places, minlength=3)
    # Chi-squared with 2 degrees of freedom: 18.4 is its 1e-4 quantile.
    assert np.sum((counts - 1000) ** 2 / 1000) < 18.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.array([], int)}, "lengths"),
        ({"lengths": np.array([33])}, "bucket_lengths must hold the longest row"),
        ({"batch_size": 0}, "batch_size"),
        ({"bucket_lengths": ()}, "bucket_lengths"),
        ({"bucket_lengths": (0, 64)}, "bucket_lengths"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = {"lengths": np.array([3]), "batch_size": 2, "bucket_lengths": BUCKETS, "seed": 0}
    with pytest.raises(ValueError, match=message):
        plans.BatchPlan(**good | change)
    with pytest.raises(IndexError):
        plans.BatchPlan(**good)[-1]
