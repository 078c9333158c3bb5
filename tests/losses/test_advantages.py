"""Advantages of a group: numbers, and expectations over all groups that can be sampled."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

REWARDS = jnp.array([1.0, 0.0, 0.0, 0.5])
EQUALISING = ("leave_one_out_advantages", "centred_advantages", "group_advantages")


@pytest.mark.parametrize(
    ("function", "hyper", "expected"),
    [
        # The mean is 3/8; the others' means are 1/6, 1/2, 1/2 and 1/3.
        ("leave_one_out_advantages", {}, [5 / 6, -0.5, -0.5, 1 / 6]),
        ("centred_advantages", {}, [0.625, -0.375, -0.375, 0.125]),
        # The variance is .171875 over 4 and .229167 over 3; 1e-4 is added to its root.
        ("group_advantages", {}, [1.507193174, -0.904315905, -0.904315905, 0.301438635]),
        ("group_advantages", {"ddof": 1}, [1.305309749, -0.783185850, -0.783185850, 0.261061950]),
        # Without epsilon: .625 / sqrt(.171875) and so on.
        (
            "group_advantages",
            {"epsilon": 0.0},
            [1.507556723, -0.904534034, -0.904534034, 0.3015113],
        ),
    ],
)
def test_group_by_hand(function, hyper, expected):
    with jax.enable_x64(True):
        rewards = jnp.asarray(REWARDS, jnp.float64)
        found = getattr(losses, function)(rewards, **hyper)
    np.testing.assert_allclose(found, expected, atol=2e-8)


def test_greedy_baseline_by_hand():
    rewards, greedy = jnp.array([[1.0, 9.0], [-8.0, 0.5]]), jnp.array([0.5, 0.0])
    found = losses.greedy_baseline_advantages(rewards, greedy)
    np.testing.assert_array_equal(found, [[0.5, 8.5], [-8.0, 0.5]])
    found = losses.greedy_baseline_advantages(rewards, greedy, clip=5.0)
    np.testing.assert_array_equal(found, [[0.5, 5.0], [-5.0, 0.5]])
    found = jax.jit(lambda c: losses.greedy_baseline_advantages(rewards, greedy, clip=c))(
        jnp.array([2.0, 5.0])
    )
    np.testing.assert_array_equal(found, [[0.5, 2.0], [-5.0, 0.5]])


def over_groups(logits, rewards, size, advantages):
    """Mean and total variance of the policy gradient over all groups that a law can sample."""
    groups = np.array(list(itertools.product(range(len(rewards)), repeat=size)))
    law = np.asarray(jax.nn.softmax(logits))
    chances = np.prod(law[groups], axis=-1)
    weights = np.asarray(advantages(jnp.asarray(rewards)[groups]))
    # The gradient of log pi(y) in the logits is the indicator of y less the law.
    scores = np.eye(len(rewards))[groups] - law
    gradients = np.mean(weights[..., None] * scores, axis=1)
    mean = chances @ gradients
    return mean, chances @ np.sum((gradients - mean) ** 2, axis=-1)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_leave_one_out_is_unbiased_and_the_mean_of_all_shrinks(size):
    with jax.enable_x64(True):
        logits, rewards = jnp.array([0.3, -0.2, 0.5]), jnp.array([1.0, 0.8, -3.0])
        exact = np.asarray(jax.grad(lambda x: jax.nn.softmax(x) @ rewards)(logits))
        found, _ = over_groups(logits, rewards, size, losses.leave_one_out_advantages)
        shrunk, _ = over_groups(logits, rewards, size, losses.centred_advantages)
        scaled, _ = over_groups(logits, rewards, size, losses.group_advantages)
    np.testing.assert_allclose(found, exact, atol=1e-15)
    np.testing.assert_allclose(shrunk, (1 - 1 / size) * exact, atol=1e-15)
    # Not even the direction is left.
    cosine = scaled @ exact / np.linalg.norm(scaled) / np.linalg.norm(exact)
    assert size == 2 or cosine < 1 - 1e-3


def test_greedy_baseline_is_unbiased_with_less_variance():
    # p = (.6, .3, .1), r = (.2, 1, .5): the gradient is p (r - p.r), and the greedy arm is the
    # first, whose .2 replaces no baseline at all.
    with jax.enable_x64(True):
        logits, rewards = jnp.log(jnp.array([0.6, 0.3, 0.1])), jnp.array([0.2, 1.0, 0.5])

        def remax(values):
            return losses.greedy_baseline_advantages(values, jnp.full(values.shape[:-1], 0.2))

        plain = over_groups(logits, rewards, 1, lambda values: values)
        found = over_groups(logits, rewards, 1, remax)
    for mean, variance, expected in ((*plain, 0.244206), (*found, 0.124926)):
        np.testing.assert_allclose(mean, [-0.162, 0.159, 0.003], atol=1e-12)
        np.testing.assert_allclose(variance, expected, atol=1e-9)


@pytest.mark.parametrize("name", EQUALISING)
@pytest.mark.parametrize("value", [0.1, 1e6 / 3, -7.7])
def test_equal_rewards_teach_nothing(name, value):
    # The mean of equal numbers need not be that number, and here it is divided by a deviation.
    hyper = {"epsilon": 0.0} if name == "group_advantages" else {}
    for samples in range(2, 12):
        rewards = jnp.full((samples,), value)
        found = jax.jit(lambda r: getattr(losses, name)(r, **hyper))(rewards)
        np.testing.assert_array_equal(found, np.zeros(samples))


@pytest.mark.parametrize("name", EQUALISING)
def test_a_constant_in_the_rewards_changes_nothing(name):
    rewards = jnp.array([[1.0, 0.0, 0.0, 0.5], [0.25, 0.75, 1.0, -2.0]])
    shift = jnp.array([[4096.0], [-1024.0]])
    function = getattr(losses, name)
    found = function(rewards + shift)
    np.testing.assert_allclose(found, function(rewards), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 0, atol=1e-6)


def test_epsilon_of_each_prompt_may_be_traced():
    rewards = jnp.stack([REWARDS, 2 * REWARDS])
    found = jax.jit(lambda e: losses.group_advantages(rewards, epsilon=e))(jnp.array([0.1, 0.2]))
    # Twice the rewards and twice the epsilon.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    np.testing.assert_allclose(found[0], (REWARDS - 0.375) / (np.std(REWARDS) + 0.1), rtol=1e-5)


def test_groups_of_one():
    one = jnp.array([[3.0], [-2.0]])
    with pytest.raises(ValueError, match=r"rewards must hold at least 2 samples .* \(2, 1\)"):
        losses.leave_one_out_advantages(one)
    with pytest.raises(ValueError, match="ddof 1"):
        losses.group_advantages(one, ddof=1)
    for function in (losses.group_advantages, losses.centred_advantages, losses.scaled_advantages):
        np.testing.assert_array_equal(function(one), np.zeros((2, 1)))
    found = losses.greedy_baseline_advantages(one, jnp.array([1.0, 1.0]))
    np.testing.assert_array_equal(found, [[2.0], [-3.0]])


def test_scaled_advantages_keep_their_mean():
    # Mean 1 and variance 8/3 over 3, 4 over 2.
    values = jnp.array([3.0, 1.0, -1.0])
    found = losses.scaled_advantages(values, clip=None, epsilon=0.0)
    np.testing.assert_allclose(found, values / np.sqrt(8 / 3), rtol=1e-6)
    found = losses.scaled_advantages(values, clip=None, ddof=1, epsilon=0.0)
    np.testing.assert_allclose(found, [1.5, 0.5, -0.5], rtol=1e-6)
    found = losses.scaled_advantages(values, ddof=1, epsilon=0.0)
    np.testing.assert_allclose(found, [1.0, 0.5, -0.5], rtol=1e-6)
    found = losses.scaled_advantages(values, clip=None, scale=jnp.float32(10.0), epsilon=0.0)
    np.testing.assert_allclose(found, [0.3, 0.1, -0.1], rtol=1e-6)


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
def test_masked_advantages_may_hold_anything(poison):
    values = jnp.array([[3.0, poison, 1.0, -1.0], [poison, 2.0, poison, poison]])
    mask = jnp.isfinite(values)
    found = jax.jit(lambda m: losses.scaled_advantages(values, clip=None, mask=m))(mask)
    expected = losses.scaled_advantages(jnp.array([3.0, 1.0, -1.0]), clip=None)
    np.testing.assert_allclose(found[0], np.insert(expected, 1, 0), rtol=1e-6)
    # One alone has no spread.
    np.testing.assert_array_equal(found[1], np.zeros(4))


@pytest.mark.parametrize(
    ("function", "arguments", "hyper", "named"),
    [
        ("leave_one_out_advantages", (jnp.float32(1.0),), {}, "rewards"),
        ("group_advantages", (REWARDS,), {"epsilon": -1.0}, "epsilon"),
        ("group_advantages", (REWARDS,), {"ddof": 4}, "rewards"),
        ("group_advantages", (REWARDS,), {"ddof": -1}, "ddof"),
        ("greedy_baseline_advantages", (REWARDS, REWARDS), {}, "greedy_rewards"),
        ("greedy_baseline_advantages", (REWARDS, REWARDS[0]), {"clip": 0.0}, "clip"),
        ("scaled_advantages", (REWARDS,), {"scale": 0.0}, "scale"),
        ("scaled_advantages", (REWARDS,), {"mask": jnp.ones(3)}, "mask"),
    ],
)
def test_errors_name_the_argument(function, arguments, hyper, named):
    with pytest.raises(Exception, match=named):
        getattr(losses, function)(*arguments, **hyper)
