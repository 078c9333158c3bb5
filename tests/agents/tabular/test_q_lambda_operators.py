"""Operators of many steps: known radii and distances, tight divergence, enumerated trajectories."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses
from bellmax.agents import tabular

TRANSITION = np.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
REWARD = np.array([[1.0, 0.0], [-1.0, 0.5]])
POLICY = np.array([[0.9, 0.1], [0.2, 0.8]])
UNIFORM = np.full((2, 2), 0.5)
GRID = np.linspace(-10, 10, 41)

# Two states; action 0 stays, 1 swaps.
MOVES = np.stack([np.eye(2), np.eye(2)[::-1]], axis=1)
STAY, SWAP = np.array([[1.0, 0.0]] * 2), np.array([[0.0, 1.0]] * 2)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def setting(policy=POLICY, behaviour=UNIFORM, transition=TRANSITION, reward=REWARD):
    return jnp.array(transition), jnp.array(reward), jnp.array(policy), jnp.array(behaviour)


@functools.cache
def matrix(trace_decay):
    with jax.enable_x64(True):
        return tabular.multistep_dp_matrix(
            *setting(), 0.9, jnp.array(GRID), traces=jnp.full((2, 2), trace_decay)
        )


KNOWN = [
    # 30 plain sweeps in NumPy give 0.143140 as well.
    (0.0, 0.900000, 1.348875, 0.143140),
    (0.25, 0.870968, None, None),
    (0.5, 0.818182, 1.058430, 0.009451),
    (0.75, 0.692308, 0.732062, 8.69e-5),
    (0.9, 0.593642, 0.650709, 4.56e-6),
    (1.0, 0.642237, None, None),
]


@pytest.fixture(scope="module")
def fixed():
    with jax.enable_x64(True):
        transition, reward, policy, _ = setting()
        return tabular.categorical_action_fixed_point(
            transition, reward, policy, 0.9, jnp.array(GRID)
        )


def test_the_fixed_point_has_the_action_values(fixed):
    np.testing.assert_allclose(
        (fixed @ GRID).ravel(), (7.214917606, 5.941717259, 5.105637467, 6.824197745), atol=1e-8
    )


@pytest.mark.parametrize(("trace_decay", "radius", "after_5", "after_30"), KNOWN)
def test_known_radii_and_distances(fixed, trace_decay, radius, after_5, after_30):
    found = matrix(trace_decay)
    np.testing.assert_allclose(tabular.spectral_radius(found), radius, atol=1e-6)
    error = np.full(fixed.shape, 1 / 41) - np.asarray(fixed)
    values = np.cumsum(error, axis=-1)[..., :-1].ravel()

    def distance(values):
        return np.sqrt(0.5 * np.square(values.reshape(4, 40)).sum(axis=1)).max()

    np.testing.assert_allclose(distance(values), 1.903502, atol=1e-6)
    for count, expected in ((5, after_5), (25, after_30)):
        for _ in range(count):
            values = np.asarray(found) @ values
        if expected is not None:
            np.testing.assert_allclose(
                distance(values), expected, rtol=1e-3 if expected < 1e-3 else 1e-4
            )


@pytest.mark.parametrize("trace_decay", [0.0, 0.5, 1.0])
def test_matrix_free_is_the_matrix(fixed, trace_decay):
    probs = jnp.array(np.random.default_rng(0).dirichlet(np.ones(41), (2, 2)))
    traces = jnp.full((2, 2), trace_decay)
    error = np.cumsum(probs - fixed, axis=-1)[..., :-1].ravel()
    expected = np.asarray(fixed) + np.diff(
        (np.asarray(matrix(trace_decay)) @ error).reshape(2, 2, 40), axis=-1, prepend=0, append=0
    )
    for max_dense in (0, 2000):
        found = tabular.multistep_dp_step(
            probs, *setting(), 0.9, jnp.array(GRID), traces=traces, max_dense=max_dense
        )
        np.testing.assert_allclose(found, expected, atol=1e-11)
        np.testing.assert_allclose(np.sum(found, axis=-1), 1, rtol=1e-11)
    by_name = tabular.q_lambda_dp_step(
        probs, *setting(), 0.9, jnp.array(GRID), trace_decay=trace_decay
    )
    np.testing.assert_allclose(by_name, expected, atol=1e-11)


@pytest.mark.parametrize("rule", ["q_lambda", "retrace", "tree_backup", "importance"])
def test_all_traces_share_the_fixed_point(fixed, rule):
    traces = {
        "q_lambda": np.full((2, 2), 0.9),
        "retrace": np.minimum(1, POLICY / UNIFORM),
        "tree_backup": POLICY,
        "importance": 0.8 * POLICY / UNIFORM,
    }[rule]
    moved = tabular.multistep_dp_step(
        fixed, *setting(), 0.9, jnp.array(GRID), traces=jnp.array(traces)
    )
    np.testing.assert_allclose(moved, fixed, atol=1e-12)


def test_on_policy_it_is_the_mixture_of_all_numbers_of_steps():
    # TD(lambda): (1 - lambda) sum_t lambda^t T^(t + 1), by sweeps.
    _, reward, policy, _ = setting()
    probs = jnp.array(np.random.default_rng(1).dirichlet(np.ones(41), (2, 2)))
    grid = jnp.array(GRID)
    transition = jnp.array(TRANSITION)
    expected, moved = np.zeros(probs.shape), probs
    for t in range(120):
        moved = tabular.categorical_action_dp_step(moved, transition, reward, policy, 0.9, grid)
        expected += 0.3 * 0.7**t * np.asarray(moved)
    found = tabular.q_lambda_dp_step(
        probs, transition, reward, policy, policy, 0.9, grid, trace_decay=0.7
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


TIGHT = [(0.5, 0.2, 0.666667), (0.5, 0.5, 1.0), (0.5, 0.8, 1.5), (0.5, 1.0, 2.0)]
TIGHT += [(0.9, 0.2, 1.317073), (0.9, 0.5, 2.454545), (0.9, 0.8, 5.785714), (0.9, 1.0, 18.0)]


def radius(discount, trace_decay, policy, behaviour):
    reach = 1 / (1 - discount)
    return tabular.spectral_radius(
        tabular.multistep_dp_matrix(
            *setting(policy, behaviour, MOVES, np.array([[1.0, 0.0], [0.0, 0.5]])),
            discount,
            jnp.linspace(0, reach, 41),
            traces=jnp.full((2, 2), trace_decay),
        )
    )


@pytest.mark.parametrize(("discount", "trace_decay", "expected"), TIGHT)
def test_the_bound_is_tight_where_one_stays_and_the_other_swaps(discount, trace_decay, expected):
    modulus = tabular.q_lambda_modulus(
        jnp.array(SWAP), jnp.array(STAY), discount, trace_decay=trace_decay, order=1
    )
    np.testing.assert_allclose(modulus, expected, atol=1e-6)
    found = radius(discount, trace_decay, SWAP, STAY)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_thresholds():
    swap, stay = jnp.array(SWAP), jnp.array(STAY)
    for discount, expected in ((0.5, 0.5), (0.9, 0.055556)):
        found = tabular.q_lambda_threshold(swap, stay, discount, order=1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        for factor, diverges in ((0.98, False), (1.02, True)):
            assert (radius(discount, float(found) * factor, SWAP, STAY) > 1) == diverges
    for order in (1, 2):
        limit = tabular.q_lambda_threshold(jnp.array(POLICY), jnp.array(UNIFORM), 0.9, order=order)
        at = tabular.q_lambda_modulus(
            jnp.array(POLICY), jnp.array(UNIFORM), 0.9, trace_decay=limit, order=order
        )
        np.testing.assert_allclose(at, 1, rtol=1e-12)
    assert np.isinf(tabular.q_lambda_threshold(swap, swap, 0.9))
    np.testing.assert_allclose(tabular.policy_distance(swap, stay), 2)


def test_iterates_grow_above_the_threshold_and_shrink_below():
    arguments = setting(SWAP, STAY, MOVES, np.array([[1.0, 0.0], [0.0, 0.5]]))
    support = jnp.linspace(0, 2, 41)
    target = tabular.categorical_action_fixed_point(*arguments[:3], 0.5, support)
    for trace_decay, grows in ((0.4, False), (0.6, True)):
        probs = jnp.full((2, 2, 41), 1 / 41)
        distances = []
        for _ in range(60):
            probs = tabular.q_lambda_dp_step(
                probs, *arguments, 0.5, support, trace_decay=trace_decay
            )
            distances.append(tabular.categorical_cramer(probs, target, support).max())
        np.testing.assert_allclose(jnp.sum(probs, axis=-1), 1, atol=1e-3 if grows else 1e-12)
        assert (distances[-1] > 10) if grows else (distances[-1] < 1e-3)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("trace_decay", [0.0, 0.3, 0.9])
def test_differences_shrink_by_the_modulus_at_least(order, trace_decay):
    rng = np.random.default_rng(3)
    transition = rng.dirichlet(np.ones(2), (2, 2))
    reward = rng.normal(size=(2, 2))
    policy, behaviour = rng.dirichlet(np.ones(2), (2, 2))
    arguments = setting(policy, behaviour, transition, reward)
    modulus = tabular.q_lambda_modulus(*arguments[2:], 0.8, trace_decay=trace_decay, order=order)
    distance = tabular.categorical_wasserstein if order == 1 else tabular.categorical_cramer

    def step(probs):
        return tabular.q_lambda_dp_step(
            probs, *arguments, 0.8, jnp.array(GRID), trace_decay=trace_decay
        )

    for _ in range(5):
        laws = [jnp.array(rng.dirichlet(np.full(41, 0.1), (2, 2))) for _ in range(2)]
        before = distance(laws[0], laws[1], jnp.array(GRID)).max()
        after = distance(step(laws[0]), step(laws[1]), jnp.array(GRID)).max()
        assert after <= modulus * before + 1e-12


# At discount 1/2, rewards that are multiples of half a gap keep all atoms on the support or on the
# middle between two of its points: then projecting at every step and once are the same, since
# (z_i - r) / gamma is a point of the support for every i.
CLOSED_REWARD = np.array([[1.0, -0.5], [0.0, 1.5]])
CLOSED_GRID = np.arange(-4.0, 5.0)


def expected_target(probs, policy, behaviour, traces, num_steps, start):
    """Sums targets over all trajectories of a pair, times their probabilities."""
    state, action = start
    names = list(itertools.product(range(2), range(2)))
    chances, columns = [], {"states": [], "actions": []}
    for path in itertools.product(names, repeat=num_steps):
        chance, at = 1.0, (state, action)
        for following in path:
            chance *= TRANSITION[at][following[0]] * behaviour[following]
            at = following
        chances.append(chance)
        columns["states"].append([place for place, _ in path])
        columns["actions"].append([taken for _, taken in path])
    states, actions = (np.array(columns[key]) for key in ("states", "actions"))
    before = np.concatenate([np.full((len(states), 1), state), states[:, :-1]], axis=1)
    taken = np.concatenate([np.full((len(states), 1), action), actions[:, :-1]], axis=1)
    targets = losses.categorical_multistep_target(
        jnp.array(probs[states]),
        jnp.array(policy[states]),
        jnp.array(actions[:, :-1]),
        jnp.array(CLOSED_REWARD[before, taken]),
        jnp.full(before.shape, 0.5),
        jnp.array(traces[states, actions][:, :-1]),
        jnp.array(CLOSED_GRID),
    )
    return np.array(chances) @ np.asarray(targets)


@pytest.mark.parametrize("num_steps", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", ["q_lambda", "retrace"])
def test_the_operator_is_the_expectation_of_sampled_targets(num_steps, rule):
    rng = np.random.default_rng(num_steps)
    behaviour = rng.dirichlet(np.ones(2), 2)
    traces = np.full((2, 2), 0.9) if rule == "q_lambda" else np.minimum(1, POLICY / behaviour)
    probs = rng.dirichlet(np.ones(9), (2, 2))
    found = tabular.multistep_dp_step(
        jnp.array(probs),
        *setting(POLICY, behaviour, TRANSITION, CLOSED_REWARD),
        0.5,
        jnp.array(CLOSED_GRID),
        traces=jnp.array(traces),
        num_steps=num_steps,
    )
    for start in itertools.product(range(2), range(2)):
        expected = expected_target(probs, POLICY, behaviour, traces, num_steps, start)
        np.testing.assert_allclose(found[start], expected, atol=1e-12)


def test_long_trajectories_lead_to_the_operator_without_an_end():
    probs = jnp.array(np.random.default_rng(0).dirichlet(np.ones(41), (2, 2)))
    arguments = (probs, *setting(), 0.9, jnp.array(GRID))
    endless = tabular.q_lambda_dp_step(*arguments, trace_decay=0.6)
    found = tabular.q_lambda_dp_step(*arguments, trace_decay=0.6, num_steps=20)
    # Like (lambda gamma)^T = 0.54^20 = 4e-6.
    assert 1e-10 < np.abs(found - endless).max() < 4e-6


@pytest.mark.slow
def test_gradients_pass_through_the_matrix_free_inverse():
    probs = jnp.array(np.random.default_rng(0).dirichlet(np.ones(9), (2, 2)))

    @jax.jit
    def score(trace_decay, discount):
        found = tabular.multistep_dp_step(
            probs,
            *setting(reward=np.array([[0.93, 0.17], [-0.71, 0.52]])),
            discount,
            jnp.linspace(-10, 10, 9),
            traces=jnp.full((2, 2), 1.0) * trace_decay,
            max_dense=0,
        )
        return jnp.sum(jnp.sin(3 * found))

    at = (0.71, 0.877)
    gradients = jax.jit(jax.grad(score, argnums=(0, 1)))(*at)
    for place, gradient in enumerate(gradients):
        ends = [score(*(a + s * 1e-6 * (i == place) for i, a in enumerate(at))) for s in (1, -1)]
        np.testing.assert_allclose(gradient, (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"traces": np.ones(2)}, "traces"),
        ({"traces": UNIFORM, "num_steps": 0}, "num_steps"),
    ],
)
def test_refuses_what_is_wrong(options, word):
    with pytest.raises(ValueError, match=word):
        tabular.multistep_dp_step(
            jnp.ones((2, 2, 41)) / 41, *setting(), 0.9, jnp.array(GRID), **options
        )


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda p: tabular.q_lambda_modulus(p, p, 0.9, trace_decay=0.5, order=3), "order"),
        (lambda p: tabular.q_lambda_modulus(p, p, 0.9, trace_decay=1.5), "trace_decay"),
        (lambda p: tabular.q_lambda_threshold(p, p, 1.0), "discount"),
        (lambda p: tabular.policy_distance(p, p[:1]), "policy"),
        (lambda p: tabular.spectral_radius(p[:1]), "matrix"),
    ],
)
def test_numbers_out_of_range(call, word):
    with pytest.raises(ValueError, match=word):
        call(jnp.array(POLICY))
