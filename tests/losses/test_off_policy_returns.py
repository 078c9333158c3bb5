"""Retrace, Q(lambda) and tree backup: the specification, loops, rlax, ends inside a trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

# Specification H8, whose numbers are errors: the return less the estimate of the action taken.
# Values and laws of the four next states; what was done at the first three.
VALUES = np.array([[0.2, 0.6], [0.3, 0.3], [0.0, 0.4], [0.7, 0.1]])
POLICY = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.4, 0.6]])
ACTIONS, BEHAVIOUR = np.array([1, 0, 1]), np.array([0.5, 0.5, 0.25])
ESTIMATES = np.array([0.5, 0.6, 0.3, 0.4])
REWARDS, DISCOUNTS = np.array([1.0, 0.0, -1.0, 2.0]), np.full(4, 0.9)


def by_hand(values, policy, actions, rewards, discounts, traces):
    """The recursion as it is printed, backwards in a loop."""
    steps = len(rewards)
    found = np.zeros(steps)
    for t in reversed(range(steps)):
        bootstrap = policy[t] @ values[t]
        if t < steps - 1:
            bootstrap += traces[t] * (found[t + 1] - values[t, actions[t]])
        found[t] = rewards[t] + discounts[t] * bootstrap
    return found


def trajectory(seed, steps=6, actions=3):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((steps, actions)),
        rng.dirichlet(np.ones(actions), steps),
        rng.integers(0, actions, steps - 1),
        rng.standard_normal(steps),
        rng.uniform(0.3, 1, steps) * (rng.uniform(size=steps) > 0.2),
        rng.uniform(0, 1.5, steps - 1),
    )


def in_float64(function, *arrays, **hyper):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(lambda *a: function(*a, **hyper))(*map(jnp.asarray, arrays)))


@pytest.mark.parametrize(
    ("trace_decay", "expected"),
    [
        (0.0, [0.716, -0.33, -1.12, 1.906]),
        (0.9, [0.684787564, -0.192669360, 0.423860000, 1.906]),
        (1.0, [0.695181920, -0.115656000, 0.595400000, 1.906]),
    ],
)
def test_retrace_of_the_specification(trace_decay, expected):
    found = in_float64(
        losses.retrace_returns,
        *(VALUES, POLICY, ACTIONS, REWARDS, DISCOUNTS, BEHAVIOUR),
        trace_decay=trace_decay,
    )
    np.testing.assert_allclose(found - ESTIMATES, expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_any_traces_by_a_loop(seed):
    arrays = trajectory(seed)
    found = in_float64(losses.off_policy_returns, *arrays)
    np.testing.assert_allclose(found, by_hand(*arrays), atol=1e-12)


def test_batches_are_rows():
    rows = [trajectory(seed) for seed in range(4)]
    stacked = [
        np.stack(arrays).reshape(2, 2, *arrays[0].shape) for arrays in zip(*rows, strict=True)
    ]
    found = in_float64(losses.off_policy_returns, *stacked)
    expected = np.stack([by_hand(*row) for row in rows]).reshape(2, 2, -1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_named_rules_are_their_traces():
    values, policy, actions, rewards, discounts, _ = trajectory(1)
    behaviour = np.random.default_rng(9).uniform(0.1, 1, 5)
    taken = policy[np.arange(5), actions]
    arrays = (values, policy, actions, rewards, discounts)
    found = in_float64(losses.q_lambda_returns, *arrays, trace_decay=0.7)
    np.testing.assert_allclose(found, by_hand(*arrays, np.full(5, 0.7)), atol=1e-12)
    found = in_float64(losses.retrace_returns, *arrays, behaviour, trace_decay=0.7)
    expected = by_hand(*arrays, 0.7 * np.minimum(1, taken / behaviour))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_following_what_was_done_to_the_end_is_the_discounted_sum():
    # One-hot policy of the actions taken and lambda 1: values cancel, all but the last.
    values, _, actions, rewards, discounts, _ = trajectory(2)
    discounts = np.full(6, 0.9)
    policy = np.eye(3)[np.append(actions, 1)]
    found = in_float64(
        losses.q_lambda_returns, values, policy, actions, rewards, discounts, trace_decay=1.0
    )
    powers = 0.9 ** np.arange(7)
    np.testing.assert_allclose(found[0], powers @ np.append(rewards, values[-1, 1]), atol=1e-12)


def test_true_values_are_a_fixed_point_of_every_rule():
    # Two states, moves and rewards certain: Q of the policy by a linear solve.
    rng = np.random.default_rng(3)
    following, reward = np.array([[0, 1], [1, 0]]), rng.standard_normal((2, 2))
    policy = np.array([[0.9, 0.1], [0.2, 0.8]])
    onward = np.zeros((4, 4))
    for state in range(2):
        for action in range(2):
            onward[2 * state + action, 2 * following[state, action] + np.arange(2)] = policy[
                following[state, action]
            ]
    values = np.linalg.solve(np.eye(4) - 0.9 * onward, reward.ravel()).reshape(2, 2)
    states, actions = [0], rng.integers(0, 2, 6)
    for action in actions:
        states.append(following[states[-1], action])
    rewards = reward[states[:-1], actions]
    for trace in (0.0, 0.6, 1.0):
        found = in_float64(
            losses.off_policy_returns,
            *(values[states[1:]], policy[states[1:]], actions[1:], rewards),
            *(np.full(6, 0.9), np.full(5, trace)),
        )
        np.testing.assert_allclose(found, values[states[:-1], actions], atol=1e-12)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_follows_an_end_or_a_cut_may_hold_anything(poison):
    values, policy, actions, rewards, discounts, traces = trajectory(4)
    discounts = np.full(6, 0.9)
    for end in (True, False):
        ended, cut = discounts.copy(), traces.copy()
        if end:
            ended[2] = 0
        else:
            cut[2] = 0
        arrays = [values, policy, actions, rewards, ended, cut]
        expected = in_float64(losses.off_policy_returns, *arrays)
        # At a cut the next state is still bootstrapped from, after an end it is not.
        first = 2 if end else 3
        dirty = [array.astype(float).copy() for array in arrays]
        dirty[2] = dirty[2].astype(int)
        for position in (0, 1):
            dirty[position][first:] = poison
        dirty[3][3:], dirty[4][3:], dirty[5][first:] = poison, poison, poison
        found = in_float64(losses.off_policy_returns, *dirty)
        np.testing.assert_array_equal(found[:3], expected[:3])


def test_an_action_that_never_counts_may_hold_any_value():
    values, policy, actions, rewards, discounts, traces = trajectory(5)
    policy[1] = [0, 0.5, 0.5]
    actions[1] = 2
    arrays = (policy, actions, rewards, discounts, traces)
    expected = in_float64(losses.off_policy_returns, values, *arrays)
    values[1, 0] = np.nan
    np.testing.assert_array_equal(in_float64(losses.off_policy_returns, values, *arrays), expected)


def test_one_step_needs_no_actions():
    found = losses.q_lambda_returns(
        jnp.array([[1.0, 3.0]]),
        jnp.array([[0.25, 0.75]]),
        jnp.zeros(0, jnp.int32),
        jnp.array([0.5]),
        jnp.array([0.9]),
        trace_decay=0.8,
    )
    np.testing.assert_allclose(found, [0.5 + 0.9 * 2.5], rtol=1e-6)


def test_equals_rlax():
    rlax = pytest.importorskip("rlax")
    values, policy, actions, rewards, discounts, traces = trajectory(6)
    single = [jnp.asarray(x, jnp.float32) for x in (values, rewards, discounts, traces, policy)]
    values, rewards, discounts, traces, policy = single
    # Theirs takes an action and a trace of the last state too, and does not read them.
    padded = jnp.append(jnp.asarray(actions), 0)
    expected = jax.jit(rlax.general_off_policy_returns_from_action_values)(
        values, padded, rewards, discounts, jnp.append(traces, 0.0), policy
    )
    found = losses.off_policy_returns(
        values, policy, jnp.asarray(actions), rewards, discounts, traces
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    behaviour = jnp.array([0.5, 0.2, 0.9, 0.4, 0.3, 0.6])
    before, first = jnp.arange(18.0).reshape(6, 3), jnp.array([0, 2, 1, 1, 0, 2])
    errors = jax.jit(lambda *a: rlax.retrace(*a, 0.8, eps=0.0))(
        before, values, first, padded, rewards, discounts, policy, behaviour
    )
    found = losses.retrace_returns(
        values,
        policy,
        jnp.asarray(actions),
        rewards,
        discounts,
        behaviour[:-1],
        trace_decay=0.8,
    )
    np.testing.assert_allclose(found - before[jnp.arange(6), first], errors, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("position", "shape", "named"),
    [
        (0, (4, 3), "next_action_values"),
        (1, (3, 2), "policy"),
        (2, (4,), "next_actions"),
        (3, (), "rewards"),
        (3, (3,), "rewards"),
        (4, (4, 1), "discounts"),
        (5, (4,), "behaviour_probs"),
    ],
)
def test_wrong_shapes_are_named(position, shape, named):
    arrays = [VALUES, POLICY, ACTIONS, REWARDS, DISCOUNTS, BEHAVIOUR]
    arrays = [jnp.asarray(array, jnp.int32 if i == 2 else None) for i, array in enumerate(arrays)]
    arrays[position] = jnp.zeros(shape, arrays[position].dtype)
    jaxtyping = pytest.importorskip("jaxtyping")
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)) as raised:
        losses.retrace_returns(*arrays, trace_decay=0.8)
    if raised.type is ValueError:
        assert named in str(raised.value)


def test_no_steps_are_refused():
    empty = jnp.zeros((0, 2))
    with pytest.raises(ValueError, match="at least one step"):
        losses.off_policy_returns(
            empty, empty, jnp.zeros(0, jnp.int32), jnp.zeros(0), jnp.zeros(0), jnp.zeros(0)
        )
