"""MTPO and its relatives against numbers, bounds, the one-turn solvers, and exact optima."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular

# A tree of two turns: y_1 leads to A or B, y_2 to the final states A0, A1, B0, B1.
FINAL = np.array(
    [[0.5, 0.8, 0.3, 0.6], [0.2, 0.5, 0.9, 0.4], [0.7, 0.1, 0.5, 0.8], [0.4, 0.6, 0.2, 0.5]]
)
REFERENCE = np.full((2, 4, 2), 0.5)
REFERENCE[0, 0], REFERENCE[1, 1] = (0.6, 0.4), (0.7, 0.3)
FOLLOW = {"DET": np.eye(2), "STOCH": np.array([[0.8, 0.2], [0.3, 0.7]])}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def tree(name):
    transition = np.zeros((2, 4, 2, 4))
    transition[:, :, :, 0] = 1.0  # Rows that are never reached.
    transition[0, 0, :, :2] = FOLLOW[name]
    transition[0, 0, :, 2:] = 0
    for state, y in np.ndindex(2, 2):
        transition[1, state, y] = np.eye(4)[2 * state + y]
    return jnp.array(transition), jnp.array(FINAL), jnp.array(REFERENCE)


def random_game(seed, horizon=3, states=4, actions=3):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.uniform(-0.5, 0.5, (states, states)), 1)
    transition = rng.dirichlet(np.ones(states), (horizon, states, actions))
    reference = rng.dirichlet(np.ones(actions), (horizon, states))
    return jnp.array(transition), jnp.array(0.5 + upper - upper.T), jnp.array(reference)


def turns(policy):
    """pi(y_1), pi(y_2 | A), pi(y_2 | B)."""
    return np.concatenate([policy[0, 0], policy[1, 0], policy[1, 1]])


def kl(game, target, policies):
    return np.array(
        jax.vmap(lambda policy: tabular.trajectory_kl(target, policy, game[0]))(policies)
    )


# Residuals below 1e-14, by damped fixed points in NumPy: first probabilities, and the final law.
EQUILIBRIA = [
    (
        ("DET", 0.1),
        (0.6768917372, 0.6153818422, 0.8537772315),
        (0.41654688, 0.26034485, 0.27586248, 0.04724578),
    ),
    (
        ("DET", 0.5),
        (0.6300166674, 0.5242363976, 0.7246639067),
        (0.33027767, 0.29973900, 0.26811357, 0.10186977),
    ),
    (
        ("STOCH", 0.1),
        (0.6711936662, 0.5542675249, 0.8293246759),
        (0.35229068, 0.28330615, 0.30220854, 0.06219463),
    ),
    (
        ("STOCH", 0.5),
        (0.6159554128, 0.5164712002, 0.7265002842),
        (0.31400298, 0.29397473, 0.28480431, 0.10721799),
    ),
]


@pytest.mark.parametrize(("case", "first", "law"), EQUILIBRIA)
def test_known_equilibria(case, first, law):
    game, alpha = tree(case[0]), case[1]
    found = tabular.multi_turn_equilibrium(*game, alpha=alpha)
    assert found.dtype == jnp.float64
    expected = [value for p in first for value in (p, 1 - p)]
    np.testing.assert_allclose(turns(found), expected, atol=3e-9)
    np.testing.assert_allclose(tabular.final_law(found, game[0]), law, atol=5e-9)
    np.testing.assert_allclose(
        tabular.multi_turn_duality_gap(found, *game, alpha=alpha), 0, atol=1e-14
    )


def fixed_point_residual(policy, game, alpha, start=0):
    q = tabular.preference_values(policy, policy, *game, initial_state=start, alpha=alpha)
    response = game[2] * jnp.exp(q / alpha)
    return np.abs(response / response.sum(axis=-1, keepdims=True) - policy).max()


def test_fixed_point_and_its_values():
    game = tree("DET")
    found = tabular.multi_turn_equilibrium(*game, alpha=0.1)
    assert fixed_point_residual(found, game, 0.1) < 1e-14
    q = tabular.preference_values(found, found, *game, alpha=0.1)
    np.testing.assert_allclose(q[0, 0], [0.5056276, 0.47222172], atol=5e-9)
    np.testing.assert_allclose(
        q[1, :2].ravel(), [0.5249688, 0.4779696, 0.48689833, 0.39517421], atol=5e-9
    )


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equilibrium_of_any_game(seed, alpha):
    game = random_game(seed)
    for start in (0, 2):
        found = tabular.multi_turn_equilibrium(*game, initial_state=start, alpha=alpha)
        assert fixed_point_residual(found, game, alpha, start) < 1e-11
        gap = tabular.multi_turn_duality_gap(found, *game, initial_state=start, alpha=alpha)
        np.testing.assert_allclose(gap, 0, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_a_deterministic_tree_is_a_game_over_sequences(alpha):
    def sequences(game):
        """Single-turn game: probabilities of sequences are products over turns."""
        mu = np.outer(REFERENCE[0, 0], [1, 1]) * REFERENCE[1, :2]
        return tabular.regularised_nash(game[1], jnp.array(mu.ravel()), tau=alpha)

    found = {
        name: tabular.final_law(
            tabular.multi_turn_equilibrium(*tree(name), alpha=alpha), tree(name)[0]
        )
        for name in FOLLOW
    }
    flat = sequences(tree("DET"))
    np.testing.assert_allclose(found["DET"], flat, atol=1e-13)
    assert np.abs(found["STOCH"] - flat).max() > 0.01


def test_first_steps():
    game = tree("DET")
    for iterates, second in (
        (tabular.mtpo_iterates, (0.63097493, 0.51888838, 0.72293494)),
        (tabular.mtpo_mixture_iterates, (0.63102471, 0.51870603, 0.72297656)),
    ):
        found = iterates(*game, alpha=0.1, num_steps=2, learning_rate=1.0)
        assert found.shape == (3, 2, 4, 2)
        np.testing.assert_allclose(found[0], REFERENCE, atol=1e-15)
        np.testing.assert_allclose(
            turns(found[1])[::2], [0.61667646, 0.50899903, 0.71244690], atol=5e-9
        )
        np.testing.assert_allclose(turns(found[2])[::2], second, atol=5e-9)


DIVERGENCES = {
    ("DET", "mtpo"): (1.713e-2, 2.183e-3, 6.912e-7, 7.744e-11),
    ("DET", "mixture"): (1.713e-2, 4.187e-4, 4.054e-6, 4.595e-8),
    ("STOCH", "mtpo"): (2.241e-3, 2.341e-5, 4.141e-9, 4.381e-13),
    ("STOCH", "mixture"): (2.241e-3, 4.712e-5, 3.803e-7, 3.605e-9),
}


@pytest.mark.parametrize(("name", "method"), DIVERGENCES)
def test_schedule_reaches_known_divergences_below_the_bound(name, method):
    game, alpha = tree(name), 0.1
    target = tabular.multi_turn_equilibrium(*game, alpha=alpha)
    iterates = tabular.mtpo_iterates if method == "mtpo" else tabular.mtpo_mixture_iterates
    found = kl(game, target, iterates(*game, alpha=alpha, num_steps=1000))
    np.testing.assert_allclose(
        found[[1, 10, 100, 1000]], DIVERGENCES[name, method], rtol=3e-4, atol=1e-15
    )
    # 32 H Q^2 / (alpha^2 (T + 1)), with Q at most max(4 alpha H log(1 / mu_min), 1) = 1 here.
    bound = max(4 * alpha * 2 * np.log(1 / 0.3), 1.0)
    steps = np.arange(1001)
    assert np.all(found <= 32 * 2 * bound**2 / (alpha**2 * (steps + 1)))


def test_one_turn_is_mirror_descent_and_nash_md():
    rng = np.random.default_rng(4)
    upper = np.triu(rng.uniform(-0.5, 0.5, (4, 4)), 1)
    preference, mu = jnp.array(0.5 + upper - upper.T), jnp.array(rng.dirichlet(np.ones(4)))
    transition = jnp.broadcast_to(jnp.eye(4), (1, 4, 4, 4))
    reference = jnp.broadcast_to(mu, (1, 4, 4))
    for rate in (None, 3.0):
        for multi, single in (
            (tabular.mtpo_iterates, tabular.mirror_descent_iterates),
            (tabular.mtpo_mixture_iterates, tabular.nash_md_iterates),
        ):
            found = multi(
                transition, preference, reference, alpha=0.1, num_steps=20, learning_rate=rate
            )
            expected = single(preference, mu, tau=0.1, num_steps=20, learning_rate=rate)
            np.testing.assert_allclose(found[:, 0, 0], expected, atol=1e-13)
    found = tabular.multi_turn_equilibrium(transition, preference, reference, alpha=0.1)
    np.testing.assert_allclose(
        found[0, 0], tabular.regularised_nash(preference, mu, tau=0.1), atol=1e-13
    )
    # With one turn, comparing turns is comparing conversations.
    per_turn = tabular.per_turn_equilibrium(transition, preference, reference, alpha=0.1)
    np.testing.assert_allclose(per_turn[0, 0], found[0, 0], atol=1e-13)


def test_last_policies_converge_on_a_dense_game():
    game, alpha = random_game(5), 0.2
    target = tabular.multi_turn_equilibrium(*game, 1, alpha=alpha)
    for solve in (tabular.mtpo, tabular.mtpo_mixture):
        found = solve(*game, 1, alpha=alpha, num_steps=3000)
        np.testing.assert_allclose(found, target, atol=1e-3)
    last = tabular.mtpo_iterates(*game, 1, alpha=alpha, num_steps=30)[-1]
    np.testing.assert_allclose(tabular.mtpo(*game, 1, alpha=alpha, num_steps=30), last, atol=1e-14)


def test_rlhf_is_the_best_of_all_deterministic_deviations():
    game, alpha = random_game(6, horizon=2, states=3, actions=2), 0.3
    rewards = jnp.array([1.0, -0.5, 0.2])
    found = tabular.multi_turn_rlhf(game[0], rewards, game[2], alpha=alpha)

    def objective(policy):
        divergence = tabular.trajectory_kl(policy, game[2], game[0])
        return tabular.final_law(policy, game[0]) @ rewards - alpha * divergence

    best = objective(found)
    # Concave in the flow of conversations: no step towards any deterministic policy gains.
    for choice in itertools.product(range(2), repeat=6):
        corner = jnp.eye(2)[jnp.array(choice)].reshape(2, 3, 2)
        assert objective(0.999 * found + 0.001 * corner) <= best + 1e-15
    iterates = tabular.multi_turn_rlhf_iterates(
        game[0], rewards, game[2], alpha=alpha, num_steps=500
    )
    np.testing.assert_allclose(iterates[-1], found, atol=1e-4)


def test_bradley_terry_preferences_in_one_turn_make_rlhf_and_equilibrium_agree_to_first_order():
    # Small rewards: P - 1/2 = (r_i - r_j) / 4, so the equilibrium's worth of a state is r / 4.
    transition, _, reference = random_game(8)
    rewards = jnp.array([0.3, -0.2, 0.1, -0.4]) * 1e-3
    preference = jax.nn.sigmoid(rewards[:, None] - rewards)
    nash = tabular.multi_turn_equilibrium(transition, preference, reference, alpha=1e-3)
    rlhf = tabular.multi_turn_rlhf(transition, rewards / 4, reference, alpha=1e-3)
    np.testing.assert_allclose(nash, rlhf, atol=1e-8)


def test_per_turn_policy_by_enumeration():
    transition, final, reference = random_game(9, horizon=2, states=3, actions=2)
    found = tabular.per_turn_equilibrium(transition, final, reference, alpha=0.2)
    # Last turn: actions lead to laws of final states. First turn: the reference acts afterwards.
    moves, mu = np.asarray(transition), np.asarray(reference)
    for state in range(3):
        last = moves[1, state]
        first = np.einsum("yx,xz,xzw->yw", moves[0, state], mu[1], moves[1])
        for turn, laws in ((1, last), (0, first)):
            game = jnp.array(laws @ np.asarray(final) @ laws.T)
            expected = tabular.regularised_nash(game, reference[turn, state], tau=0.2)
            np.testing.assert_allclose(found[turn, state], expected, atol=1e-13)


def test_many_starts_and_temperatures_at_once():
    game = random_game(10)

    def solve(start, alpha):
        return tabular.mtpo(*game, start, alpha=alpha, num_steps=20)

    starts, alphas = jnp.array([0, 3]), jnp.array([0.1, 0.3])
    found = jax.jit(jax.vmap(solve))(starts, alphas)
    for policy, start, alpha in zip(found, starts, alphas, strict=True):
        alone = tabular.mtpo(*game, int(start), alpha=float(alpha), num_steps=20)
        np.testing.assert_allclose(policy, alone, atol=1e-13)


def test_actions_outside_the_reference_stay_at_zero():
    transition, final, reference = tree("DET")
    reference = reference.at[1, 0].set(jnp.array([0.0, 1.0]))
    found = tabular.multi_turn_equilibrium(transition, final, reference, alpha=0.05)
    np.testing.assert_array_equal(found[1, 0], [0.0, 1.0])
    iterates = tabular.mtpo_iterates(transition, final, reference, alpha=0.05, num_steps=2000)
    assert np.all(np.isfinite(iterates))
    np.testing.assert_allclose(iterates[-1], found, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"learning_rate": 20.0}, "learning_rate"),
        ({"num_steps": -1}, "num_steps"),
        ({"final_preference": np.ones((3, 3))}, "final_preference"),
        ({"reference": np.ones((2, 4))}, "reference"),
    ],
)
def test_refuses_what_is_wrong(change, word):
    transition, final, reference = tree("DET")
    arguments = {"final_preference": final, "reference": reference, "alpha": 0.1, "num_steps": 2}
    for solve in (tabular.mtpo, tabular.mtpo_mixture_iterates):
        with pytest.raises(ValueError, match=word):
            solve(transition, **arguments | change)
    with pytest.raises(ValueError, match="final_rewards"):
        tabular.multi_turn_rlhf(transition, jnp.ones(3), reference, alpha=0.1)
