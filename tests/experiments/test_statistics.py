"""Interquartile means and bootstrap intervals: by hand, against SciPy, and by their coverage."""

import numpy as np
import pytest

from bellmax.experiments import statistics


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 5.0, 2.0], 8 / 3),  # A quarter of three is no whole score: nothing is cut.
        ([9.0, 1.0, 2.0, 4.0], 3.0),
        ([-100.0, 1.0, 2.0, 3.0, 1000.0], 2.0),
        ([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 99.0, 99.0], 2.5),
    ],
)
def test_the_middle_half_by_hand(scores, expected):
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(np.array(scores))
    assert statistics.interquartile_mean(shuffled) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (10, 4), (17,)])
def test_the_middle_half_is_scipys_trimmed_mean(shape):
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(1).normal(size=shape)
    expected = stats.trim_mean(scores, 0.25, axis=None)
    assert statistics.interquartile_mean(scores) == pytest.approx(expected, rel=1e-12)


def test_seeds_that_agree_leave_no_doubt():
    same = np.tile([1.0, 4.0, 7.0, 10.0], (6, 1))
    assert statistics.bootstrap(same, num_samples=50) == (5.5, 5.5, 5.5)
    assert statistics.bootstrap_difference(same, same[:2] - 3, num_samples=50) == (3.0, 3.0, 3.0)
    # One seed says nothing of the spread, and a resample is the seed itself.
    assert statistics.bootstrap(np.array([[2.0]]), num_samples=50) == (2.0, 2.0, 2.0)


def test_tasks_are_resampled_apart():
    # Two tasks of two seeds each: a mean of four takes five values, with chances 1, 4, 6, 4, 1 in
    # 16. Whole rows would take three.
    scores, means = np.array([[0.0, 0.0], [1.0, 1.0]]), []

    def statistic(values):
        means.append(float(values.mean()))
        return means[-1]

    statistics.bootstrap(scores, statistic, num_samples=4000)
    values, counts = np.unique(means[:4000], return_counts=True)
    np.testing.assert_array_equal(values, [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(counts / 4000, np.array([1, 4, 6, 4, 1]) / 16, atol=0.03)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, held, gained = np.random.default_rng(2), 0, 0
    for _ in range(150):
        scores, other = rng.normal(size=(30, 1)), rng.normal(1.0, size=(30, 1))
        found = statistics.bootstrap(scores, np.mean, level=0.9, num_samples=200)
        held += found.low <= 0 <= found.high
        found = statistics.bootstrap_difference(other, scores, np.mean, level=0.9, num_samples=200)
        gained += found.low <= 1 <= found.high
    # Percentile intervals of 30 seeds are a little narrow; 4 standard errors are 0.1.
    assert held / 150 == pytest.approx(0.89, abs=0.1)
    assert gained / 150 == pytest.approx(0.89, abs=0.1)


def test_wider_levels_give_wider_intervals_and_seeds_repeat():
    scores = np.random.default_rng(3).normal(size=(8, 3))
    narrow, wide = (
        statistics.bootstrap(scores, level=level, num_samples=300) for level in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert statistics.bootstrap(scores, level=0.5, num_samples=300) == narrow
    assert statistics.bootstrap(scores, level=0.5, num_samples=300, seed=1) != narrow


MATRIX = np.ones((2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.interquartile_mean(np.array([])), "scores must not be empty"),
        (lambda: statistics.bootstrap(np.ones(3)), r"scores must be \[seeds, tasks\]"),
        (lambda: statistics.bootstrap(np.ones((0, 3))), r"scores must be \[seeds, tasks\]"),
        (lambda: statistics.bootstrap(MATRIX, level=1.0), r"level must be in \(0, 1\), got 1.0"),
        (
            lambda: statistics.bootstrap_difference(MATRIX, np.ones((2, 3))),
            r"must be \[seeds, tasks\], got \(2, 2\) and \(2, 3\)",
        ),
        (lambda: statistics.bootstrap_difference(MATRIX, np.ones((0, 2))), "must not be empty"),
        (lambda: statistics.bootstrap_difference(MATRIX, MATRIX, level=0.0), "level must be in"),
    ],
)
def test_scores_and_levels_that_are_none_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_interval_of_a_mean_by_hand():
    # Mean 2, deviation 1, three seeds: 4.3027 / sqrt(3) = 2.4842.
    low, high = statistics.mean_interval(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose([low, high], [2 - 2.4842, 2 + 2.4842], atol=1e-4)
    low, high = statistics.mean_interval(np.array([[0.9, 1.0]]))
    np.testing.assert_array_equal(low, [-np.inf, -np.inf])
    np.testing.assert_array_equal(high, [np.inf, np.inf])


def test_an_interval_of_no_seeds_is_refused():
    with pytest.raises(ValueError, match=r"values must be \[seeds"):
        statistics.mean_interval(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="level"):
        statistics.mean_interval(np.zeros(2), level=1.0)
