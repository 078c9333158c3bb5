"""Multi-step targets: the specification, sums of errors, enumerated trajectories, signs, ends."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

# Specification A6: three states, two actions, nine atoms.
SUPPORT = np.linspace(-4.0, 4.0, 9)
PROBS = np.array(
    [
        [[0, 0, 0, 0.5, 0.5, 0, 0, 0, 0], [0, 0, 0, 0, 0.25, 0.5, 0.25, 0, 0]],
        [[0, 0, 0.2, 0.3, 0.5, 0, 0, 0, 0], [0, 0, 0, 0, 0.1, 0.1, 0.8, 0, 0]],
        [[0, 0, 0, 1.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.5, 0.5, 0, 0]],
    ]
)
POLICY = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
ACTIONS, REWARDS, DISCOUNTS = np.array([1, 0]), np.array([1, 0.5, -0.25]), np.full(3, 0.9)
RULES = {
    "one step": losses.one_step_traces,
    "q_lambda": functools.partial(losses.q_lambda_traces, trace_decay=0.9),
    "td_lambda": functools.partial(losses.td_lambda_traces, trace_decay=1.0),
    "retrace": functools.partial(losses.retrace_traces, trace_decay=1.0),
    "tree backup": functools.partial(losses.tree_backup_traces, trace_decay=1.0),
    "importance": functools.partial(losses.importance_traces, trace_decay=1.0),
}
KINDS = {
    "categorical": (losses.categorical_multistep_target, (np.linspace(-2, 2, 7),)),
    "quantile": (losses.quantile_multistep_target, ()),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@functools.cache
def compiled(function):
    return jax.jit(function)


def call(function, *arrays):
    """A function of arrays in float64."""
    with jax.enable_x64(True):
        results = compiled(function)(*map(jnp.asarray, arrays))
        return jax.tree.map(np.asarray, results)


def target(*arrays):
    return call(losses.categorical_multistep_target, *arrays)


def hat(atoms, weights, support):
    """The hat functions as they are defined, all pairs."""
    inside = np.clip(atoms, support[0], support[-1])
    share = np.clip(
        1 - np.abs(inside[:, None] - support[None]) / (support[1] - support[0]), 0, None
    )
    return weights @ share


def sum_of_errors(first, laws, policy, actions, rewards, discounts, traces):
    """eta(x_0, a_0) + sum of c_{1:t} D_{0:t}, in atoms and weights: nothing telescoped.

    `first` is eta(x_0, a_0), which has to cancel; `laws[t][a]` (atoms, weights) of x_{t + 1}.
    """
    atoms, weights = [first[0]], [first[1]]
    gain, scale, product, current = 0.0, 1.0, 1.0, first
    for t, reward in enumerate(rewards):
        if t:
            product *= traces[t - 1]
            current = laws[t - 1][actions[t - 1]]
        atoms.append(gain + scale * current[0])
        weights.append(-product * current[1])
        gain, scale = gain + scale * reward, scale * discounts[t]
        for prob, law in zip(policy[t], laws[t], strict=True):
            atoms.append(gain + scale * law[0])
            weights.append(product * prob * law[1])
    return np.concatenate(atoms), np.concatenate(weights)


def trajectories(count, seed=0, *, steps=5, actions=3, atoms=7, ends=0.2):
    """Random laws, policies, behaviours, actions, rewards and discounts of many trajectories."""
    rng = np.random.default_rng(seed)
    discounts = np.where(rng.uniform(size=(count, steps)) < ends, 0, 0.9)
    behaviour = rng.dirichlet(np.ones(actions), (count, steps - 1))
    return {
        "laws": rng.dirichlet(np.ones(atoms), (count, steps, actions)),
        "policy": rng.dirichlet(np.ones(actions), (count, steps)),
        "behaviour": behaviour,
        "actions": np.array(
            [[rng.choice(actions, p=law) for law in row] for row in behaviour], int
        ).reshape(count, steps - 1),
        "rewards": rng.standard_normal((count, steps)),
        "discounts": discounts,
    }


def padded(case, row):
    """Rewards and discounts of a row; after an end 0, as padding has it."""
    ends = case["discounts"][row] == 0
    over = np.cumsum(ends) - ends > 0
    return (np.where(over, 0, case[name][row]) for name in ("rewards", "discounts"))


def traces_of(rule, case):
    taken = [
        np.take_along_axis(case[name][:, : case["actions"].shape[1]], case["actions"][..., None], 2)
        for name in ("policy", "behaviour")
    ]
    return call(rule, *(array[..., 0] for array in taken))


def inputs(case):
    return case["laws"], case["policy"], case["actions"], case["rewards"], case["discounts"]


@pytest.mark.parametrize(
    ("traces", "expected", "mean"),
    [
        ((0, 0), (0, 0, 0, 0, 0.405, 0.525, 0.05, 0.02, 0), 0.685),
        (
            (0.5, 0.5),
            (0, 0, 0, -0.0051, 0.4240875, 0.39323125, -0.1067125, 0.27209375, 0.0224),
            1.0907875,
        ),
        (
            (1, 1),
            (0, 0, 0, -0.0272, 0.42655, 0.160525, -0.21705, 0.612375, 0.0448),
            1.76995,
        ),
        # Retrace at lambda 1, .1 / .5 and .2 / .5.
        (
            (0.2, 0.4),
            (0, 0, 0, -0.00136, 0.4133, 0.47633, -0.01454, 0.11731, 0.00896),
            0.83638,
        ),
        # Tree backup.
        (
            (0.1, 0.2),
            (0, 0, 0, 0, 0.409815, 0.5047025, 0.015875, 0.0651275, 0.00448),
            0.749755,
        ),
    ],
)
def test_target_of_the_specification(traces, expected, mean):
    arrays = (PROBS, POLICY, ACTIONS, REWARDS, DISCOUNTS, np.array(traces, float))
    found = target(*arrays, SUPPORT)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_allclose(found @ SUPPORT, mean, atol=1e-13)
    returns = call(losses.off_policy_returns, PROBS @ SUPPORT, *arrays[1:])
    np.testing.assert_allclose(returns[0], mean, atol=1e-13)


def test_termination_of_the_specification():
    arrays = (PROBS, POLICY, ACTIONS, np.array([1, 0.5, 0]), np.array([0.9, 0, 0.9]))
    found = target(*arrays, np.full(2, 0.7), SUPPORT)
    np.testing.assert_allclose(found, [0, 0, 0, 0, 0.405, 0.7, 0.015, -0.12, 0], atol=1e-14)
    np.testing.assert_allclose(found.sum(), 1, atol=1e-14)


@every_rule
def test_mean_is_the_scalar_return_and_the_mass_is_one(rule):
    case = trajectories(64)
    support = np.linspace(-30, 30, 7)
    # No mass at the ends, so that what moves stays inside.
    case["laws"][..., [0, -1]] = 0
    case["laws"] /= case["laws"].sum(-1, keepdims=True)
    traces = traces_of(rule, case)
    found = target(*inputs(case), traces, support)
    values = case["laws"] @ support
    returns = call(losses.off_policy_returns, values, *inputs(case)[1:], traces)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-10)
    np.testing.assert_allclose(found @ support, returns[:, 0], atol=1e-9)


@every_rule
@pytest.mark.parametrize("ends", [0.0, 0.3])
def test_target_is_the_direct_sum_of_errors(rule, ends):
    case = trajectories(8, seed=1, ends=ends)
    support = np.linspace(-2, 2, 7)
    traces = traces_of(rule, case)
    found = target(*inputs(case), traces, support)
    rng = np.random.default_rng(2)
    for row in range(8):
        rewards, discounts = padded(case, row)
        laws = [[(support, law) for law in state] for state in case["laws"][row]]
        first = (support, rng.dirichlet(np.ones(7)))
        policy, actions = case["policy"][row], case["actions"][row]
        direct = sum_of_errors(first, laws, policy, actions, rewards, discounts, traces[row])
        np.testing.assert_allclose(found[row], hat(*direct, support), atol=1e-11)


@pytest.mark.parametrize("ends", [0.0, 0.3])
def test_quantile_target_is_the_direct_sum_of_errors(ends):
    case = trajectories(8, seed=3, ends=ends)
    quantiles = np.random.default_rng(4).standard_normal((8, 5, 3, 6))
    traces = traces_of(RULES["q_lambda"], case)
    found = call(losses.quantile_multistep_target, quantiles, *inputs(case)[1:], traces)
    assert found.targets.shape == found.weights.shape == (8, 5 * 3 * 6)
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-12)
    means = (found.targets * found.weights).sum(-1)
    returns = call(losses.off_policy_returns, quantiles.mean(-1), *inputs(case)[1:], traces)
    np.testing.assert_allclose(means, returns[:, 0], atol=1e-11)
    grid = np.linspace(-6, 6, 31)
    equal = np.full(6, 1 / 6)
    for row in range(8):
        rewards, discounts = padded(case, row)
        laws = [[(atoms, equal) for atoms in state] for state in quantiles[row]]
        policy, actions = case["policy"][row], case["actions"][row]
        direct = sum_of_errors(
            (np.zeros(6), equal), laws, policy, actions, rewards, discounts, traces[row]
        )
        ours = hat(found.targets[row], found.weights[row], grid)
        np.testing.assert_allclose(ours, hat(*direct, grid), atol=1e-11)


def backup(laws, transition, reward, discount, policy):
    """T_policy on laws {(x, a): (atoms, weights)}: atoms multiply, nothing is projected."""
    states, actions = reward.shape
    result = {}
    for x, a in itertools.product(range(states), range(actions)):
        parts = [
            (
                reward[x, a] + discount * laws[y, b][0],
                transition[x, a, y] * policy[y, b] * laws[y, b][1],
            )
            for y, b in itertools.product(range(states), range(actions))
        ]
        atoms, weights = zip(*parts, strict=True)
        result[x, a] = (np.concatenate(atoms), np.concatenate(weights))
    return result


# Specification A7.
TRANSITION = np.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
REWARD, GAMMA = np.array([[1, 0], [-1, 0.5]]), 0.9
TARGET_POLICY, BEHAVIOUR = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.5, 0.5], [0.3, 0.7]])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_expectation_over_all_trajectories_is_the_operator(steps):
    # E of the target = sum over t < T of lambda^t T_mu^t (T_pi - lambda T_mu) eta, the last term
    # without its second part: Q(lambda)'s operator, cut after T steps.
    decay, support = 0.7, np.linspace(-10, 10, 21)
    rng = np.random.default_rng(5)
    estimate = rng.dirichlet(np.ones(21), (2, 2))
    laws = {key: (support, estimate[key]) for key in itertools.product(range(2), range(2))}
    model = (TRANSITION, REWARD, GAMMA)
    expected = {key: np.zeros(21) for key in laws}
    for t in range(steps):
        parts = [(1.0, backup(laws, *model, TARGET_POLICY))]
        if t < steps - 1:
            parts.append((-decay, backup(laws, *model, BEHAVIOUR)))
        for coefficient, moved in parts:
            for _ in range(t):
                moved = backup(moved, *model, BEHAVIOUR)
            for key, (atoms, weights) in moved.items():
                expected[key] += decay**t * coefficient * hat(atoms, weights, support)

    rows, chances, starts = [], [], []
    for start in laws:
        for path in itertools.product(range(2), repeat=2 * steps - 1):
            # x_1, a_1, x_2, a_2, ..., x_T.
            states, actions = path[::2], path[1::2]
            chance, pair, rewards = 1.0, start, []
            for t, state in enumerate(states):
                rewards.append(REWARD[pair])
                chance *= TRANSITION[(*pair, state)]
                if t < steps - 1:
                    chance *= BEHAVIOUR[state, actions[t]]
                    pair = (state, actions[t])
            rows.append((estimate[list(states)], TARGET_POLICY[list(states)], actions, rewards))
            chances.append(chance)
            starts.append(start)
    probs, policy, actions, rewards = (np.array(arrays) for arrays in zip(*rows, strict=True))
    actions = actions.astype(int).reshape(len(rows), steps - 1)
    discounts, traces = np.full(rewards.shape, GAMMA), np.full(actions.shape, decay)
    single = target(probs, policy, actions, rewards, discounts, traces, support)
    for key in laws:
        chosen = np.array([start == key for start in starts])
        weights = np.array(chances)[chosen]
        np.testing.assert_allclose(weights.sum(), 1)
        np.testing.assert_allclose(weights @ single[chosen], expected[key], atol=1e-12)


def least_weights(rule, *, policy=None):
    case = trajectories(400, seed=6)
    if policy is not None:
        case["policy"] = policy(case)
    return target(*inputs(case), traces_of(rule, case), np.linspace(-2, 2, 7)).min()


@pytest.mark.parametrize("name", ["one step", "tree backup"])
def test_some_rules_only_make_probability_laws(name):
    assert least_weights(RULES[name]) >= -1e-15


@pytest.mark.parametrize("name", ["q_lambda", "td_lambda", "retrace", "importance"])
def test_other_rules_make_signed_targets(name):
    assert least_weights(RULES[name]) < -0.01


def test_the_action_taken_as_policy_makes_probability_laws():
    # Sarsa(lambda): weights (1 - lambda) of what was done.
    def taken(case):
        count, steps = case["rewards"].shape
        last = np.zeros((count, 1), int)
        return np.eye(3)[np.concatenate([case["actions"], last], axis=1)].reshape(count, steps, 3)

    assert least_weights(RULES["q_lambda"], policy=taken) >= -1e-15


@pytest.mark.parametrize(
    ("name", "mixture", "signed"),
    [
        # E over a ~ mu of pi - c 1[a] is pi - lambda mu for Q(lambda): below 0 where lambda mu
        # exceeds pi; never with pi mixed as alpha pi + (1 - alpha) mu if 1 - alpha >= lambda.
        ("q_lambda", 1.0, True),
        ("q_lambda", 0.1, False),
        # mu min(1, pi / mu) = min(mu, pi) never exceeds pi, and mu pi even less.
        ("retrace", 1.0, False),
        ("tree backup", 1.0, False),
        ("importance", 1.0, False),
    ],
)
def test_signs_of_expected_targets(name, mixture, signed):
    # Two steps, one state after the other: the mean over a_1 of the target, for many laws.
    rng = np.random.default_rng(7)
    count, actions = 300, 3
    behaviour = rng.dirichlet(np.ones(actions), count)
    policy = rng.dirichlet(np.ones(actions), (count, 2))
    policy[:, 0] = mixture * policy[:, 0] + (1 - mixture) * behaviour
    # A law of one atom each, so that nothing hides a negative weight; gamma 1, no rewards.
    laws = np.zeros((count, 2, actions, 7))
    laws[:, 0] = np.eye(7)[[0, 2, 4]]
    laws[:, 1, :, 6] = 1
    expected = np.zeros((count, 7))
    for action in range(actions):
        traces = call(RULES[name], policy[:, :1, action], behaviour[:, None, action])
        single = target(
            laws,
            policy,
            np.full((count, 1), action),
            np.zeros((count, 2)),
            np.ones((count, 2)),
            traces,
            np.linspace(-3, 3, 7),
        )
        expected += behaviour[:, action, None] * single
    assert (expected.min() < -0.01) == signed
    if not signed:
        assert expected.min() >= -1e-14


def test_one_step_needs_no_actions_and_is_c51():
    # gamma 0 at the end: all mass at the reward, split between the atoms beside it.
    probs, policy = PROBS[:1], np.array([[0.0, 1.0]])
    nothing = np.zeros(0)
    arrays = (probs, policy, nothing.astype(int))
    found = target(*arrays, np.array([0.25]), np.array([0.0]), nothing, SUPPORT)
    np.testing.assert_allclose(found, 0.75 * np.eye(9)[4] + 0.25 * np.eye(9)[5], atol=1e-14)
    found = target(*arrays, np.array([0.25]), np.array([0.5]), nothing, SUPPORT)
    np.testing.assert_allclose(found, hat(0.25 + 0.5 * SUPPORT, probs[0, 1], SUPPORT), atol=1e-14)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_an_end_or_a_cut_may_hold_anything(kind, end, poison):
    case = trajectories(2, seed=8, ends=0)
    traces = np.full((2, 4), 0.8)
    arrays = [*(array.copy() for array in inputs(case)), traces]
    arrays[4 if end else 5][:, 2] = 0
    function, rest = KINDS[kind]
    expected = call(function, *arrays, *rest)
    # At a cut the next state is still bootstrapped from, after an end it is not.
    first = 2 if end else 3
    arrays[0][:, first:], arrays[1][:, first:] = poison, poison
    arrays[3][:, 3:], arrays[4][:, 3:] = poison, poison
    arrays[5][:, 2 if end else 3 :] = poison
    found = call(function, *arrays, *rest)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_action_that_never_counts_may_hold_any_law(kind):
    case = trajectories(1, seed=9, ends=0)
    case["policy"][0, :, 0], case["actions"][0] = 0, 1
    arrays = [*inputs(case), np.full((1, 4), 0.8)]
    function, rest = KINDS[kind]
    expected = call(function, *arrays, *rest)
    arrays[0] = arrays[0].copy()
    arrays[0][:, :, 0] = np.nan
    found = call(function, *arrays, *rest)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_two_laws_a_state_are_enough_for_a_greedy_policy():
    # Greedy and taken, policy (1, 0), next actions 1: as the docstring has it.
    case = trajectories(4, seed=10, ends=0.2)
    quantiles = np.random.default_rng(11).standard_normal((4, 5, 3, 6))
    best = quantiles.mean(-1).argmax(-1)
    traces = np.full((4, 4), 0.8)
    whole = call(
        losses.quantile_multistep_target, quantiles, np.eye(3)[best], *inputs(case)[2:], traces
    )
    taken = np.concatenate([case["actions"], np.zeros((4, 1), int)], axis=1)
    two = np.stack([best, taken], axis=-1)[..., None]
    short = call(
        losses.quantile_multistep_target,
        np.take_along_axis(quantiles, two, axis=2),
        np.broadcast_to(np.array([1.0, 0.0]), (4, 5, 2)),
        np.ones((4, 4), int),
        *inputs(case)[3:],
        traces,
    )
    grid = np.linspace(-6, 6, 31)
    for row in range(4):
        laws = [hat(law.targets[row], law.weights[row], grid) for law in (whole, short)]
        np.testing.assert_allclose(*laws, atol=1e-12)


@pytest.mark.parametrize(
    ("position", "shape", "named"),
    [
        (0, (3, 2), "next_probs"),
        (0, (3, 2, 8), "atoms of support"),
        (1, (3, 3), "next_probs"),
        (2, (3,), "next_actions"),
        (3, (2,), "rewards"),
        (5, (2, 1), "traces"),
    ],
)
def test_wrong_shapes_are_named(position, shape, named):
    arrays = [PROBS, POLICY, ACTIONS, REWARDS, DISCOUNTS, np.ones(2), SUPPORT]
    arrays = [jnp.asarray(array, jnp.int32 if i == 2 else None) for i, array in enumerate(arrays)]
    arrays[position] = jnp.zeros(shape, arrays[position].dtype)
    jaxtyping = pytest.importorskip("jaxtyping")
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)) as raised:
        losses.categorical_multistep_target(*arrays)
    if raised.type is ValueError:
        assert named in str(raised.value)
