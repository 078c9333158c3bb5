"""Majority votes: every tie rule against plain counting, and gradients over all tuples."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

TIES = ("lowest", "uniform")
# Compiled whole: operation by operation a scan of small arrays takes seconds.
added = jax.jit(losses.majority_advantages, static_argnames=("ties", "k"))
estimated = jax.jit(losses.majority_at_k, static_argnames=("ties", "k"))


def chance(answers, right, ties):
    """The probability that the vote finds what is right, by counting."""
    if not answers:
        return 0.0
    counts = collections.Counter(answers)
    tied = [answer for answer, votes in counts.items() if votes == max(counts.values())]
    if ties == "lowest":
        return float(min(tied) == right)
    return (right in tied) / len(tied)


def advantages(answers, right, ties, size):
    """The definition, in plain Python."""
    total = np.zeros(len(answers))
    subsets = list(itertools.combinations(range(len(answers)), size))
    for subset in subsets:
        whole = chance([answers[j] for j in subset], right, ties)
        for i in subset:
            total[i] += whole - chance([answers[j] for j in subset if j != i], right, ties)
    return total / len(subsets)


@pytest.mark.parametrize(
    ("answers", "lowest", "uniform"),
    [
        ((0, 0, 1), (0, 0, 0), (1 / 2, 1 / 2, 0)),
        ((0, 1, 1), (0, -1, -1), (0, -1 / 2, -1 / 2)),
        ((0, 1, 2), (1, 0, 0), (1 / 3, -1 / 6, -1 / 6)),
        ((0, 0, 1, 1), (1, 1, 0, 0), (1 / 2, 1 / 2, -1 / 2, -1 / 2)),
        # The smallest number wins and not the first sample: 0 leads with or without it.
        ((1, 0), (0, 1), (-1 / 2, 1 / 2)),
    ],
)
def test_a_vote_by_hand(answers, lowest, uniform):
    for ties, expected in (("lowest", lowest), ("uniform", uniform)):
        found = added(jnp.array(answers), jnp.array(0), ties=ties)
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("samples", [1, 3, 6])
def test_votes_are_their_definition(ties, samples):
    rng = np.random.default_rng(samples)
    # Negative and large numbers are answers like any other.
    answers = rng.choice([-5, 0, 1, 10_000], (20, samples))
    right = rng.choice([-5, 0, 1], 20)
    for size in sorted({1, samples // 2, samples} - {0}):
        expected = [advantages(list(a), r, ties, size) for a, r in zip(answers, right, strict=True)]
        found = added(jnp.asarray(answers), jnp.asarray(right), ties=ties, k=size)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        estimate = estimated(jnp.asarray(answers), jnp.asarray(right), k=size, ties=ties)
        expected = [
            np.mean([chance(list(s), r, ties) for s in itertools.combinations(a, size)])
            for a, r in zip(answers, right, strict=True)
        ]
        np.testing.assert_allclose(estimate, expected, atol=1e-6)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(("samples", "size"), [(2, 2), (3, 3), (4, 3), (4, 2)])
def test_gradient_and_estimate_are_unbiased(ties, samples, size):
    # Arms 0 and 2 give the same answer, so that ties are of answers and not of arms.
    given, right = np.array([7, 3, 7, 4]), 7
    with jax.enable_x64(True):
        logits = jnp.array([0.3, 0.1, -0.9, 0.2])
        law = np.asarray(jax.nn.softmax(logits))
        votes = np.array(list(itertools.product(range(4), repeat=size)))
        outcomes = np.array([chance(list(given[v]), right, ties) for v in votes])

        def objective(x):
            return jnp.prod(jax.nn.softmax(x)[votes], axis=-1) @ outcomes

        tuples = np.array(list(itertools.product(range(4), repeat=samples)))
        chances = np.prod(law[tuples], axis=-1)
        answers, rights = jnp.asarray(given[tuples]), jnp.full(len(tuples), right)
        weights = np.asarray(added(answers, rights, ties=ties, k=size))
        scores = np.eye(4)[tuples] - law
        found = chances @ np.sum(weights[..., None] * scores, axis=1)
        estimate = chances @ estimated(answers, rights, k=size, ties=ties)
        value, gradient = jax.value_and_grad(objective)(logits)
    np.testing.assert_allclose(found, gradient, atol=1e-14)
    np.testing.assert_allclose(estimate, value, atol=1e-14)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(("samples", "size"), [(64, 5), (64, 16), (40, 40)])
def test_one_answer_wins_with_probability_one(ties, samples, size):
    answers = np.random.default_rng(size).integers(0, 6, samples)
    rights = jnp.arange(6)
    votes = jnp.broadcast_to(jnp.asarray(answers), (6, samples))
    found = estimated(votes, rights, k=size, ties=ties)
    np.testing.assert_allclose(found.sum(), 1, rtol=2e-5)
    assert (np.asarray(found) >= 0).all()


@pytest.mark.parametrize("ties", TIES)
def test_order_of_samples_does_not_matter(ties):
    answers, order = np.array([4, 1, 1, 4, 2, 0]), np.array([3, 0, 5, 1, 4, 2])
    right = jnp.array(4)
    plain = added(jnp.asarray(answers), right, ties=ties)
    found = added(jnp.asarray(answers[order]), right, ties=ties)
    np.testing.assert_array_equal(found, np.asarray(plain)[order])
    # With this rule the numbers have no order either: 4 and 0 change names.
    if ties == "uniform":
        renamed = np.array([9, 1, 1, 9, 2, 30])
        found = added(jnp.asarray(renamed), jnp.array(9), ties=ties)
        np.testing.assert_array_equal(found, plain)


def test_nobody_is_right():
    answers = jnp.array([[1, 1, 2], [3, 3, 3]])
    for ties in TIES:
        found = added(answers, jnp.array([0, 0]), ties=ties)
        np.testing.assert_array_equal(found, np.zeros((2, 3)))
        found = estimated(answers, jnp.array([0, 0]), k=2, ties=ties)
        np.testing.assert_array_equal(found, np.zeros(2))


@pytest.mark.parametrize(
    ("arguments", "hyper", "named"),
    [
        ((jnp.zeros(3, jnp.int32), jnp.array(0)), {"ties": "first"}, "ties"),
        ((jnp.zeros(3, jnp.int32), jnp.zeros(3, jnp.int32)), {"ties": "lowest"}, "correct_answer"),
        ((jnp.zeros(3), jnp.array(0)), {"ties": "lowest"}, "answers"),
        ((jnp.array(0), jnp.array(0)), {"ties": "lowest"}, "answers"),
        ((jnp.zeros(3, jnp.int32), jnp.array(0)), {"ties": "lowest", "k": 4}, "k must be"),
        ((jnp.zeros(3, jnp.int32), jnp.array(0)), {"ties": "lowest", "k": 0}, "k must be"),
    ],
)
def test_errors_name_the_argument(arguments, hyper, named):
    with pytest.raises(Exception, match=named):
        losses.majority_advantages(*arguments, **hyper)
