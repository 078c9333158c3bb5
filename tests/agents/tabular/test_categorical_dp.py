"""Categorical fixed points against closed forms, known numbers, sweeps, and the value function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular

TWO = np.array([[0.6, 0.4], [0.2, 0.8]])
PAYS = np.array([1.0, 0.0])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def solve(num_atoms, discount=0.9, **options):
    support = jnp.linspace(0, 1 / (1 - discount), num_atoms)
    return tabular.categorical_fixed_point(
        jnp.array(TWO), jnp.array(PAYS), discount, support, **options
    )


def random_chain(seed, size):
    rng = np.random.default_rng(seed)
    return jnp.array(rng.dirichlet(np.full(size, 0.3), size)), jnp.array(rng.random(size))


def corridor(size):
    """Mixes slowly and is far from normal."""
    places = np.arange(size)
    table = np.zeros((size, size))
    table[places, np.minimum(places + 1, size - 1)] += 0.9
    table[places, np.maximum(places - 1, 0)] += 0.1
    return jnp.array(table), jnp.array(places == size - 1, float)


def two_classes(size):
    """Two closed halves that are paid differently: no average state speaks for both."""
    table, reward = random_chain(3, size)
    half = np.arange(size) < size // 2
    table = np.where(half[:, None] == half, table, 0)
    return jnp.array(table / table.sum(1, keepdims=True)), reward * half


CHAINS = {
    "random": lambda: random_chain(0, 5),
    "corridor": lambda: corridor(5),
    "ring": lambda: (jnp.array(np.roll(np.eye(5), 1, axis=1)), random_chain(1, 5)[1]),
    "two_classes": lambda: two_classes(5),
}


@pytest.mark.parametrize(("reward", "expected"), [(0.5, (0.0, 1.0, 0.0)), (0.25, (0.5, 0.5, 0.0))])
def test_one_state_by_hand(reward, expected):
    # The return is reward / (1 - 1/2). At 0.5 it is the atom 1. At 0.25 it is 0.5, which moves to
    # 0.25 + {0, 0.5, 1}: p = (0.5, 0.5, 0) goes to 0.25 and 0.75, half each, and back to itself.
    one = jnp.ones((1, 1))
    found = tabular.categorical_fixed_point(one, jnp.array([reward]), 0.5, jnp.arange(3.0))
    np.testing.assert_allclose(found, [expected], atol=1e-15)


def test_two_states_on_five_atoms():
    expected = [
        (0.110681115, 0.312177503, 0.340557276, 0.189628483, 0.046955624),
        (0.295149639, 0.383126935, 0.234133127, 0.076754386, 0.010835913),
    ]
    found = solve(5)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(found @ np.linspace(0, 10, 5), [4.375, 2.8125], atol=1e-13)


def test_two_states_on_eleven_atoms():
    expected = [
        "0 .037185355 .148741419 .332480818 .546843451 .739769821 .877574371 .955310271 "
        ".988625656 .998468838 1",
        ".070652174 .237986270 .461098398 .675461031 .836233006 .932696191 .978631041 "
        ".995288733 .999453157 1 1",
    ]
    found = np.asarray(solve(11))
    numbers = np.array([row.split() for row in expected], float)
    np.testing.assert_allclose(np.cumsum(found, axis=1), numbers, atol=1e-9)
    # Projecting adds variance: the exact ones solve v = gamma^2 (P v + Var P V).
    atoms = np.linspace(0, 10, 11)
    variances = found @ atoms**2 - (found @ atoms) ** 2
    np.testing.assert_allclose(variances, [3.102022059, 2.843520221], atol=1e-8)
    values = np.linalg.solve(np.eye(2) - 0.9 * TWO, PAYS)
    exact = np.linalg.solve(np.eye(2) - 0.81 * TWO, 0.81 * (TWO @ values**2 - (TWO @ values) ** 2))
    np.testing.assert_allclose(exact, [2.098864256, 1.864835964], atol=1e-9)
    assert np.all(variances > exact)


def test_sweeps_lead_to_the_fixed_point():
    support = jnp.linspace(0, 10, 5)
    probs = jnp.zeros((2, 5)).at[:, 0].set(1)
    fixed = solve(5)
    step = jax.jit(
        lambda p: tabular.categorical_dp_step(p, jnp.array(TWO), jnp.array(PAYS), 0.9, support)
    )
    errors, distances = [], []
    for _ in range(2000):
        distances.append(float(tabular.categorical_wasserstein(probs, fixed, support).max()))
        probs = step(probs)
        errors.append(float(jnp.abs(probs - fixed).max()))
    np.testing.assert_allclose(errors[29], 0.0230021, atol=1e-7)
    assert errors[-1] < 1e-14
    ratios = np.array(distances[1:100]) / np.array(distances[:99])
    assert ratios.max() <= 0.9 + 1e-9
    np.testing.assert_allclose(np.sum(probs, axis=1), 1, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_atoms", "error"),
    [
        (11, 0.336462),
        pytest.param(31, 0.088440, marks=pytest.mark.slow),
        (101, 0.025186),
        pytest.param(301, 0.008422, marks=pytest.mark.slow),
    ],
)
def test_bias_falls_with_the_number_of_atoms(num_atoms, error):
    fine = solve(2001)
    assert (
        float(
            tabular.categorical_error_bound(
                fine, jnp.array(TWO), jnp.array(PAYS), 0.9, jnp.linspace(0, 10, 2001)
            )
        )
        < 1e-9
    )
    found = tabular.wasserstein_distance(
        jnp.broadcast_to(jnp.linspace(0, 10, num_atoms), (2, num_atoms)),
        solve(num_atoms),
        jnp.broadcast_to(jnp.linspace(0, 10, 2001), (2, 2001)),
        fine,
    )
    np.testing.assert_allclose(jnp.max(found), error, atol=2e-6)
    assert error <= 1 / (0.1 * np.sqrt(num_atoms - 1))


@pytest.mark.parametrize("name", CHAINS)
def test_sweeps_and_elimination_agree(name):
    transition, reward = CHAINS[name]()
    support = jnp.linspace(0, 20, 9)
    direct = tabular.categorical_fixed_point(transition, reward, 0.95, support)
    swept = tabular.categorical_fixed_point(transition, reward, 0.95, support, max_dense=0)
    np.testing.assert_allclose(swept, direct, atol=1e-11)
    bound = tabular.categorical_error_bound(swept, transition, reward, 0.95, support)
    assert float(bound) < 1e-10
    values = np.linalg.solve(np.eye(5) - 0.95 * np.asarray(transition), reward)
    np.testing.assert_allclose(swept @ support, values, atol=1e-10)
    np.testing.assert_allclose(jnp.sum(swept, axis=1), 1, rtol=1e-12)
    assert float(swept.min()) > -1e-12


def test_uneven_support_and_clipped_atoms():
    # Outside the support mass goes to the ends: no mean any more, but a fixed point all the same.
    transition, reward = random_chain(5, 5)
    support = jnp.array([-1.0, 0.0, 0.3, 1.1, 2.0, 2.5, 2.6, 3.0, 4.0])
    found = tabular.categorical_fixed_point(transition, reward, 0.9, support)
    swept = tabular.categorical_fixed_point(transition, reward, 0.9, support, max_dense=0)
    moved = tabular.categorical_dp_step(found, transition, reward, 0.9, support)
    np.testing.assert_allclose(moved, found, atol=1e-14)
    np.testing.assert_allclose(swept, found, atol=1e-12)


def test_matrices_are_the_sweep():
    transition, reward = random_chain(2, 5)
    support = jnp.linspace(0, 10, 9)
    matrices, last = map(np.asarray, tabular.categorical_cdf_matrix(reward, 0.9, support))
    assert matrices.min() >= -1e-15
    nonzero = (matrices > 1e-12).sum(axis=(1, 2)) / 8
    assert nonzero.max() <= 2
    probs = np.random.default_rng(0).dirichlet(np.ones(9), 5)
    mixed = np.cumsum(np.asarray(transition) @ probs, axis=1)[:, :-1]
    expected = np.einsum("xij,xj->xi", matrices, mixed) + last
    moved = tabular.categorical_dp_step(jnp.array(probs), transition, reward, 0.9, support)
    np.testing.assert_allclose(np.cumsum(moved, axis=1)[:, :-1], expected, atol=1e-14)


@pytest.mark.parametrize("max_dense", [0, pytest.param(2000, marks=pytest.mark.slow)])
def test_gradients_by_finite_differences(max_dense):
    transition, reward = random_chain(7, 5)
    direction = jnp.array(np.random.default_rng(1).normal(size=(5, 9)))

    support = jnp.linspace(0, 10, 9)

    @jax.jit
    def score(transition, reward, discount):
        probs = tabular.categorical_fixed_point(
            transition, reward, discount, support, max_dense=max_dense
        )
        return jnp.sum(direction * probs)

    at = (transition, reward, jnp.array(0.873))
    gradients = jax.jit(jax.grad(score, argnums=(0, 1, 2)))(*at)
    rng = np.random.default_rng(2)
    for place, gradient in enumerate(gradients):
        move = rng.normal(size=gradient.shape) * 1e-6
        ends = [
            score(*(a + s * move if i == place else a for i, a in enumerate(at))) for s in (1, -1)
        ]
        np.testing.assert_allclose(jnp.sum(gradient * move), (ends[0] - ends[1]) / 2, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("max_dense", [0, 2000])
def test_forward_derivatives_are_the_reverse_ones(max_dense):
    transition, reward = random_chain(7, 5)
    support = jnp.linspace(0, 10, 9)

    def score(discount):
        probs = tabular.categorical_fixed_point(
            transition, reward, discount, support, max_dense=max_dense
        )
        return jnp.sum(jnp.sin(9 * probs))

    forward = jax.jvp(score, (jnp.array(0.873),), (jnp.ones(()),))[1]
    np.testing.assert_allclose(forward, jax.grad(score)(jnp.array(0.873)), rtol=1e-9)


def test_jit_and_vmap_over_all_that_is_an_array():
    chains = [random_chain(seed, 5) for seed in (1, 2)]
    tables, rewards = (jnp.stack(parts) for parts in zip(*chains, strict=True))
    discounts = jnp.array([0.5, 0.9])
    support = jnp.linspace(0, 10, 9)

    def one(table, reward, discount, limit=0):
        return tabular.categorical_fixed_point(table, reward, discount, support, max_dense=limit)

    many = jax.jit(jax.vmap(one))(tables, rewards, discounts)
    for i in range(2):
        expected = one(tables[i], rewards[i], discounts[i], limit=2000)
        np.testing.assert_allclose(many[i], expected, atol=1e-12)


def test_single_precision_says_how_exact_it_is():
    with jax.enable_x64(False):
        transition, reward = random_chain(0, 5)
        support = jnp.linspace(0, 100, 9)
        probs = tabular.categorical_fixed_point(transition, reward, 0.99, support, max_dense=0)
        assert probs.dtype == jnp.float32
        bound = tabular.categorical_error_bound(probs, transition, reward, 0.99, support)
        wrong = probs.at[0, 0].add(jnp.nan)
        worse = tabular.categorical_error_bound(wrong, transition, reward, 0.99, support)
    assert 0 <= float(bound) < 0.02
    assert np.isnan(worse)


def test_error_bound_is_one():
    support = jnp.linspace(0, 10, 11)
    fixed = solve(11)
    rng = np.random.default_rng(0)
    for _ in range(5):
        probs = jnp.array(rng.dirichlet(np.ones(11), 2))
        bound = tabular.categorical_error_bound(
            probs, jnp.array(TWO), jnp.array(PAYS), 0.9, support
        )
        assert tabular.categorical_wasserstein(probs, fixed, support).max() <= bound


def test_pairs_are_a_chain_of_pairs():
    rng = np.random.default_rng(4)
    transition = jnp.array(rng.dirichlet(np.ones(3), (3, 2)))
    reward = jnp.array(rng.random((3, 2)))
    policy = jnp.array(rng.dirichlet(np.ones(2), 3))
    support = jnp.linspace(0, 10, 9)
    chain = (transition[:, :, :, None] * policy).reshape(6, 6)
    expected = tabular.categorical_fixed_point(chain, reward.ravel(), 0.9, support)
    found = tabular.categorical_action_fixed_point(
        transition, reward, policy, 0.9, support, max_dense=0
    )
    np.testing.assert_allclose(found.reshape(6, 9), expected, atol=1e-12)
    probs = jnp.array(rng.dirichlet(np.ones(9), (3, 2)))
    moved = tabular.categorical_action_dp_step(probs, transition, reward, policy, 0.9, support)
    flat = tabular.categorical_dp_step(probs.reshape(6, 9), chain, reward.ravel(), 0.9, support)
    np.testing.assert_allclose(moved.reshape(6, 9), flat, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "corridor"])
def test_a_thousand_states_and_201_atoms(kind):
    transition, reward = random_chain(0, 1000) if kind == "random" else corridor(1000)
    support = jnp.linspace(0, 100, 201)
    probs = tabular.categorical_fixed_point(transition, reward, 0.99, support)
    bound = tabular.categorical_error_bound(probs, transition, reward, 0.99, support)
    assert float(bound) < 1e-8
    values = np.linalg.solve(np.eye(1000) - 0.99 * np.asarray(transition), reward)
    np.testing.assert_allclose(probs @ support, values, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (
            lambda z: tabular.categorical_fixed_point(jnp.ones((2, 3)), jnp.ones(2), 0.9, z),
            "transi",
        ),
        (lambda z: tabular.categorical_fixed_point(jnp.eye(2), jnp.ones(3), 0.9, z), "reward"),
        (lambda z: tabular.categorical_fixed_point(jnp.eye(2), jnp.ones(2), 1.9, z), "discount"),
        (lambda z: tabular.categorical_fixed_point(jnp.eye(2), jnp.ones(2), 0.9, -z), "increase"),
        (
            lambda z: tabular.categorical_dp_step(
                jnp.ones((2, 4)), jnp.eye(2), jnp.ones(2), 0.9, z
            ),
            "probs",
        ),
        (
            lambda z: tabular.categorical_action_fixed_point(
                jnp.ones((2, 1, 2)) / 2, jnp.ones((2, 1)), jnp.ones((1, 2)), 0.9, z
            ),
            "policy",
        ),
    ],
)
def test_refuses_what_is_wrong(call, word):
    with pytest.raises(ValueError, match=word):
        call(jnp.arange(3.0))
