"""Objectives of k samples: exact gradients over all tuples, all subsets, and pass@k."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

LOGITS = np.array([0.3, -0.2, 0.5])
# Compiled whole, and pass@k once for all counts.
of_all = jax.jit(losses.k_sample_advantages, static_argnames="objective")
of_subsets = jax.jit(losses.subset_k_sample_advantages, static_argnames=("k", "objective"))
pass_at = jax.jit(losses.pass_at_k)


def second_best(rewards):
    """An order statistic, and the reward itself of one sample."""
    return jnp.sort(rewards, axis=-1)[..., max(rewards.shape[-1] - 2, 0)]


def anything(rewards):
    """No symmetric function: the order of the samples matters."""
    weights = jnp.arange(1, rewards.shape[-1] + 1, dtype=rewards.dtype)
    return jnp.tanh(rewards @ weights)


FUNCTIONS = {
    "mean": lambda rewards: rewards.mean(axis=-1),
    "max": lambda rewards: rewards.max(axis=-1),
    "product": lambda rewards: rewards.prod(axis=-1),
    "second_best": second_best,
    "anything": anything,
}


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ((1, 0, 0), (1, 0, 0)),
        ((1, 1, 0), (0, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        # By how much the best is ahead of the second.
        ((0.2, 0.9, 0.5), (0, 0.4, 0)),
        ((-3.0, -1.0), (0, 2.0)),
    ],
)
@pytest.mark.parametrize("objective", ["max", FUNCTIONS["max"]])
def test_best_of_k_by_hand(rewards, expected, objective):
    found = losses.k_sample_advantages(jnp.array(rewards, jnp.float32), objective=objective)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_mean_is_leave_one_out_over_k():
    rewards = jnp.array([[1.0, 0.0, 0.0, 0.5], [0.2, -0.3, 3.0, 0.2]])
    expected = losses.leave_one_out_advantages(rewards) / 4
    for objective in ("mean", FUNCTIONS["mean"]):
        found = losses.k_sample_advantages(rewards, objective=objective)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    found = losses.subset_k_sample_advantages(rewards, k=3, objective="mean")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("objective", ["mean", "max", FUNCTIONS["product"]])
def test_one_sample_has_no_baseline(objective):
    rewards = jnp.array([[0.3], [-2.0]])
    found = losses.k_sample_advantages(rewards, objective=objective)
    np.testing.assert_array_equal(found, rewards)
    pair = jnp.array([0.3, -2.0])
    found = losses.subset_k_sample_advantages(pair, k=1, objective=objective)
    np.testing.assert_array_equal(found, pair / 2)


def over_tuples(rewards, size, advantages, logits=LOGITS):
    """Mean and total variance of the sum over samples of A_i grad log pi(y_i)."""
    tuples = np.array(list(itertools.product(range(len(logits)), repeat=size)))
    law = np.exp(logits) / np.exp(logits).sum()
    chances = np.prod(law[tuples], axis=-1)
    weights = np.asarray(advantages(jnp.asarray(rewards)[tuples]))
    gradients = np.sum(weights[..., None] * (np.eye(len(law))[tuples] - law), axis=1)
    mean = chances @ gradients
    return mean, chances @ np.sum((gradients - mean) ** 2, axis=-1)


def exact(rewards, size, function):
    """Value and gradient of the expected function of `size` samples."""
    tuples = np.array(list(itertools.product(range(len(rewards)), repeat=size)))

    def value(logits):
        return jnp.prod(jax.nn.softmax(logits)[tuples], axis=-1) @ function(rewards[tuples])

    return jax.value_and_grad(value)(jnp.asarray(LOGITS))


@pytest.mark.parametrize(
    ("size", "gradient", "variance", "naive_variance"),
    [
        (2, (0.295490281, -0.098047288, -0.197442992), 0.161395, 0.453082),
        (3, (0.286500677, -0.095064428, -0.191436249), 0.160494, 0.967109),
    ],
)
def test_pass_at_k_gradient(size, gradient, variance, naive_variance):
    # Arm 0 of three is correct: 1 - (1 - p)^k, whose slope in its logit is k (1-p)^k p.
    p = np.exp(0.3) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(gradient[0], size * (1 - p) ** size * p, atol=1e-9)
    with jax.enable_x64(True):
        rewards = np.array([1.0, 0.0, 0.0])
        found = over_tuples(rewards, size, lambda r: of_all(r, objective="max"))
        naive = over_tuples(
            rewards, size, lambda r: jnp.broadcast_to(r.max(axis=-1, keepdims=True), r.shape)
        )
    np.testing.assert_allclose(found[0], gradient, atol=1e-9)
    np.testing.assert_allclose(naive[0], gradient, atol=1e-9)
    np.testing.assert_allclose([found[1], naive[1]], [variance, naive_variance], atol=1e-6)


def test_best_of_three_real_rewards():
    with jax.enable_x64(True):
        rewards = np.array([1.0, 0.5, 0.0])
        value, gradient = exact(jnp.asarray(rewards), 3, FUNCTIONS["max"])
        found, _ = over_tuples(rewards, 3, lambda r: of_all(r, objective="max"))
    np.testing.assert_allclose(value, 0.8246812512, atol=1e-10)
    np.testing.assert_allclose(gradient, [0.185986078, -0.021611677, -0.164374401], atol=1e-9)
    np.testing.assert_allclose(found, gradient, atol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_set_function_is_unbiased(name, size):
    with jax.enable_x64(True):
        rewards = np.array([1.0, -0.4, 0.7])
        objectives = [FUNCTIONS[name], *([name] if name in ("mean", "max") else [])]
        _, gradient = exact(jnp.asarray(rewards), size, FUNCTIONS[name])
        for objective in objectives:
            found, _ = over_tuples(
                rewards, size, lambda r, objective=objective: of_all(r, objective=objective)
            )
            np.testing.assert_allclose(found, gradient, atol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("samples", "size"), [(3, 2), (4, 1), (4, 2), (4, 3)])
def test_subsets_are_unbiased(name, samples, size):
    with jax.enable_x64(True):
        rewards = np.array([1.0, -0.4, 0.7])
        objectives = [FUNCTIONS[name], *([name] if name in ("mean", "max") else [])]
        _, gradient = exact(jnp.asarray(rewards), size, FUNCTIONS[name])
        for objective in objectives:
            found, _ = over_tuples(
                rewards,
                samples,
                lambda r, objective=objective: of_subsets(r, k=size, objective=objective),
            )
            np.testing.assert_allclose(found, gradient, atol=1e-14)


def test_subsets_have_less_variance_than_groups_apart():
    with jax.enable_x64(True):
        rewards = np.array([1.0, 0.0, 0.3])
        _, pairs = over_tuples(rewards, 2, lambda r: of_all(r, objective="max"))
        _, subsets = over_tuples(rewards, 4, lambda r: of_subsets(r, k=2))
    # Two pairs apart, averaged, have half the variance of one.
    assert subsets < 0.9 * pairs / 2


def by_enumeration(rewards, size):
    """The definition, in plain Python."""
    total = np.zeros(len(rewards))
    subsets = list(itertools.combinations(range(len(rewards)), size))
    for subset in subsets:
        best = max(rewards[j] for j in subset)
        for i in subset:
            rest = [rewards[j] for j in subset if j != i]
            total[i] += best - (max(rest) if rest else 0)
    return total / len(subsets)


@pytest.mark.parametrize("size", range(1, 7))
def test_best_of_subsets_is_its_definition_with_ties(size):
    rewards = np.array(
        [
            (1, 1, 0, 0, 0, 0),
            (0.3, -1.0, 2.0, 2.0, 0.5, 0.5),
            (5.0, 4.0, 3.0, 2.0, 1.0, 0.5),
            (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            (-1.0, -2.0, -2.0, -2.0, -9.0, -9.0),
        ]
    )
    expected = [by_enumeration(row, size) for row in rewards]
    with jax.enable_x64(True):
        found = of_subsets(jnp.asarray(rewards), k=size)
        function = of_subsets(jnp.asarray(rewards), k=size, objective=FUNCTIONS["max"])
        whole = of_all(jnp.asarray(rewards), objective="max")
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_allclose(function, expected, atol=1e-14)
    assert size < 6 or np.allclose(found, whole, rtol=0, atol=1e-14)


def test_binary_rewards_have_a_share_of_the_subsets():
    found = of_subsets(jnp.array([1.0, 1.0, 0.0, 0.0, 0.0]), k=3)
    np.testing.assert_allclose(found, [0.3, 0.3, 0, 0, 0], rtol=1e-6)
    for wins in range(1, 64):
        rewards = jnp.asarray(np.arange(64) < wins, jnp.float32)
        found = np.asarray(of_subsets(rewards, k=8))
        share = math.comb(64 - wins, 7) / math.comb(64, 8)
        np.testing.assert_allclose(found[0], share, rtol=1e-5, atol=1e-30)
        np.testing.assert_array_equal(found[wins:], 0)


def test_many_samples_stay_finite_and_accurate():
    # C(1024, 512) is beyond float64; its shares are not.
    rewards = np.random.default_rng(0).standard_normal((2, 1024))
    single = of_subsets(jnp.asarray(rewards, jnp.float32), k=512)
    with jax.enable_x64(True):
        double = of_subsets(jnp.asarray(rewards), k=512)
    assert np.isfinite(double).all()
    np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(np.argmax(double, axis=-1), np.argmax(rewards, axis=-1))


@pytest.mark.parametrize(("size", "optimum"), [(2, 0.6), (4, 0.533737), (8, 0.514477)])
def test_gradient_vanishes_at_the_optimum_of_hidden_types(size, optimum):
    # With probability .6 arm A solves the prompt, with .4 arm B does. The objective
    # .6 (1 - (1-p)^k) + .4 (1 - p^k) has its optimum where (1-p) / p = (2/3)^(1 / (k-1)).
    np.testing.assert_allclose(1 / (1 + (2 / 3) ** (1 / (size - 1))), optimum, atol=1e-6)
    with jax.enable_x64(True):

        def slope(p):
            logits = np.array([np.log(p / (1 - p)), 0.0])
            gradients = [
                over_tuples(
                    rewards,
                    size,
                    lambda r: of_all(r, objective="max"),
                    logits,
                )[0][0]
                for rewards in (np.array([1.0, 0.0]), np.array([0.0, 1.0]))
            ]
            return 0.6 * gradients[0] + 0.4 * gradients[1]

        exact_optimum = 1 / (1 + (2 / 3) ** (1 / (size - 1)))
        assert abs(slope(exact_optimum)) < 1e-14
        assert slope(optimum - 0.01) > 0 > slope(optimum + 0.01)


@pytest.mark.parametrize("objective", ["mean", "max", FUNCTIONS["product"]])
def test_no_gradient_passes(objective):
    rewards = jnp.array([0.3, 1.0, -0.5])

    def total(r):
        plain = losses.k_sample_advantages(r, objective=objective)
        return jnp.sum(plain + losses.subset_k_sample_advantages(r, k=2, objective=objective))

    np.testing.assert_array_equal(jax.grad(total)(rewards), np.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 3, 1), 0.3),
        ((10, 3, 2), 0.5333333333),
        ((10, 3, 5), 0.9166666667),
        ((10, 3, 8), 1),
        ((10, 3, 10), 1),
        ((200, 3, 100), 0.8768844221),
        ((10, 0, 10), 0),
        ((10, 10, 1), 1),
    ],
)
def test_pass_at_k_by_hand(arguments, expected):
    with jax.enable_x64(True):
        np.testing.assert_allclose(pass_at(*arguments), expected, atol=1e-10)
    found = pass_at(*arguments)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pass_at_k_of_all_counts_and_traced():
    triples = np.array(
        [(n, c, k) for n in range(1, 13) for c in range(n + 1) for k in range(1, n + 1)]
    )
    expected = [1 - math.comb(n - c, k) / math.comb(n, k) for n, c, k in triples]
    columns = jnp.asarray(triples.T)
    found = pass_at(*columns)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Certain and impossible are exact.
    np.testing.assert_array_equal(np.asarray(found) == 1, np.array(expected) == 1)
    np.testing.assert_array_equal(np.asarray(found) == 0, np.array(expected) == 0)
    mapped = jax.vmap(losses.pass_at_k)(*columns.astype(jnp.float32))
    np.testing.assert_allclose(mapped, expected, atol=1e-6)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_pass_at_k_is_unbiased(p):
    samples = 9
    with jax.enable_x64(True):
        counts = jnp.arange(samples + 1)
        chances = np.array(
            [math.comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
        )
        for k in range(1, samples + 1):
            found = chances @ pass_at(samples, counts, k)
            np.testing.assert_allclose(found, 1 - (1 - p) ** k, atol=1e-14)


def test_pass_at_k_of_rare_successes_keeps_its_digits():
    # c / n for k = 1, and nearly k c / n.
    np.testing.assert_allclose(pass_at(1_000_000, 3, 1), 3e-6, rtol=1e-5)
    exact_share = 1 - math.comb(999_997, 50) / math.comb(1_000_000, 50)
    np.testing.assert_allclose(pass_at(1_000_000, 3, 50), exact_share, rtol=1e-5)


def test_pass_at_k_beyond_the_samples_is_nan():
    found = pass_at(jnp.array([4, 4, 3, 4]), jnp.array([2, 5, 0, -1]), 4)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, True])
    np.testing.assert_array_equal(found[0], 1)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((10, 3, 11), ValueError, "k must be"),
        ((10, 3, 0), ValueError, "k must be"),
        ((10, 11, 1), ValueError, "num_correct"),
        ((10, -1, 1), ValueError, "num_correct"),
        ((jnp.array([3, 3]), jnp.array([[1], [1]]), 1), ValueError, "num_samples and num_correct"),
        ((10, jnp.array([True]), 1), TypeError, "num_correct"),
    ],
)
def test_pass_at_k_errors(arguments, error, named):
    with pytest.raises(error, match=named):
        losses.pass_at_k(*arguments)


@pytest.mark.parametrize(
    ("function", "hyper", "named"),
    [
        ("k_sample_advantages", {"objective": "median"}, "median"),
        ("k_sample_advantages", {"objective": lambda r: r}, "objective must return one number"),
        ("subset_k_sample_advantages", {"k": 0}, "k must be"),
        ("subset_k_sample_advantages", {"k": 31}, "k must be"),
        ("subset_k_sample_advantages", {"k": True}, "k must be"),
        ("subset_k_sample_advantages", {"k": 2, "objective": "pass"}, "pass"),
        ("subset_k_sample_advantages", {"k": 15, "objective": FUNCTIONS["max"]}, "155117520"),
    ],
)
def test_errors_name_the_argument(function, hyper, named):
    with pytest.raises(ValueError, match=named):
        getattr(losses, function)(jnp.zeros(30), **hyper)
