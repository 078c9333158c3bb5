"""Regularised equilibria against numbers, closed forms, and a bound on the error of any policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses
from bellmax.agents import tabular

DICE = np.array([[4.5, 5, 4], [4, 4.5, 5], [5, 4, 4.5]]) / 9
RPS = np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]])
CYC = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
P4 = np.array(
    [[0.5, 0.6, 0.7, 0.3], [0.4, 0.5, 0.65, 0.55], [0.3, 0.35, 0.5, 0.8], [0.7, 0.45, 0.2, 0.5]]
)
U3, MU3, MU4 = np.full(3, 1 / 3), np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.2, 0.1])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def kl(first, second):
    return np.sum(first * np.log(first / second))


def random_games(seed, count, num_actions, draw):
    """Antisymmetric games with independent entries, and references that are uneven."""
    rng = np.random.default_rng(seed)
    upper = np.triu(draw(rng, (count, num_actions, num_actions)), 1)
    game = 0.5 + upper - np.swapaxes(upper, 1, 2)
    return game, rng.dirichlet(np.ones(num_actions), count)


def error_bound(policy, preference, reference, tau):
    """Bounds |pi - pi*|_1 for any pi > 0, from its own residual; no solver is involved.

    With h = log(pi / mu), rho = h - P pi / tau and the same for pi*, where rho* is constant:
    KL(pi, pi*) + KL(pi*, pi) = <pi - pi*, h - h*> = <pi - pi*, rho>, because (pi - pi*)'P(pi - pi*)
    is 0. The left side is at least |pi - pi*|_1^2 (Pinsker, twice), and the right side at most
    |pi - pi*|_1 times half the spread of rho.
    """
    residual = np.log(policy / reference) - preference @ policy / tau
    return (residual.max() - residual.min()) / 2


# Residuals below 1e-15; computed in NumPy by damped fixed points, independently of this library.
EQUILIBRIA = [
    (DICE, U3, 0.37, U3, 0.0),
    (DICE, MU3, 0.1, (0.5103476847, 0.2583318787, 0.2313204366), 0.0054777730),
    (RPS, MU3, 1.0, (0.5108675583, 0.2615561887, 0.2275762530), 0.0045123090),
    (RPS, MU3, 0.1, (0.3753269575, 0.2774326283, 0.3472404143), 0.0622283641),
    (CYC, U3, 1.0, (0.3428943124, 0.3215073999, 0.3355982878), 0.0003558085),
    (CYC, U3, 0.1, (0.3302424027, 0.2846235486, 0.3851340487), 0.0075918996),
    (CYC, U3, 0.05, (0.3157360352, 0.2887339991, 0.3955299656), 0.0090713437),
    (CYC, MU3, 1.0, (0.5220037296, 0.2608603133, 0.2171359571), 0.0038632961),
    (CYC, MU3, 0.1, (0.4008888504, 0.2118222568, 0.3872888928), 0.0936537604),
    (P4, MU4, 1.0, (0.4192929538, 0.2975333310, 0.1815744058, 0.1015993095), 0.0013569499),
    (P4, MU4, 0.1, (0.4686650771, 0.2542486561, 0.0978985014, 0.1791877654), 0.0667537169),
]


@pytest.mark.parametrize(("game", "reference", "tau", "expected", "divergence"), EQUILIBRIA)
def test_known_equilibria(game, reference, tau, expected, divergence):
    found = tabular.regularised_nash(jnp.array(game), jnp.array(reference), tau=tau)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, atol=1e-10)
    np.testing.assert_allclose(kl(np.asarray(found), reference), divergence, atol=1e-10)
    gap = tabular.duality_gap(found, jnp.array(game), jnp.array(reference), tau=tau)
    np.testing.assert_allclose(gap, 0, atol=1e-14)
    np.testing.assert_array_less(error_bound(np.asarray(found), game, reference, tau), 1e-12)


def test_win_rates_at_the_equilibrium():
    for game, mu, expected in (
        (CYC, MU3, (0.46854223, 0.45583113, 0.55671998)),
        (P4, MU4, (0.50916701, 0.47677766, 0.42188602, 0.55165103)),
    ):
        found = tabular.regularised_nash(jnp.array(game), jnp.array(mu), tau=0.1)
        np.testing.assert_allclose(game @ found, expected, atol=5e-9)


def uniform(rng, shape):
    return rng.uniform(-0.5, 0.5, shape)


def tournament(rng, shape):
    return rng.integers(0, 2, shape) - 0.5


@jax.jit
def solve_all(games, references, temperatures):
    """Every game at every temperature. [N, T, A]."""

    def solve(game, reference, tau):
        return tabular.regularised_nash(game, reference, tau=tau)

    over_temperatures = jax.vmap(solve, (None, None, 0))
    return jax.vmap(over_temperatures, (0, 0, None))(games, references, temperatures)


@pytest.mark.parametrize("num_actions", [2, 10, 50])
@pytest.mark.parametrize("draw", [uniform, tournament])
def test_any_game_at_any_temperature(num_actions, draw):
    games, references = random_games(num_actions, 8, num_actions, draw)
    temperatures = np.array([0.005, 0.01, 0.03, 0.1, 1.0, 100.0])
    found = np.asarray(solve_all(games, references, temperatures))
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-12)
    for game, reference, policies in zip(games, references, found, strict=True):
        for tau, policy in zip(temperatures, policies, strict=True):
            assert error_bound(policy, game, reference, tau) < 1e-10


def test_agrees_with_slow_mirror_descent_in_numpy():
    (game,), (mu,) = random_games(7, 1, 6, uniform)
    tau, rate = 0.05, 0.2
    policy = mu
    for _ in range(20_000):
        logits = (1 - rate * tau) * np.log(policy) + rate * tau * np.log(mu) + rate * game @ policy
        policy = np.exp(logits - logits.max())
        policy /= policy.sum()
    found = tabular.regularised_nash(jnp.array(game), jnp.array(mu), tau=tau)
    np.testing.assert_allclose(found, policy, atol=1e-12)


def test_two_actions_in_closed_form():
    # P(1 over pi) - P(2 over pi) = p - 1/2 whoever pi is: odds (mu_1 / mu_2) exp((p - 1/2) / tau).
    for p, tau, mu in ((0.7, 0.1, 0.5), (0.35, 0.02, 0.9)):
        game = jnp.array([[0.5, p], [1 - p, 0.5]])
        odds = mu / (1 - mu) * np.exp((p - 0.5) / tau)
        expected = [odds / (1 + odds), 1 / (1 + odds)]
        reference = jnp.array([mu, 1 - mu])
        for mixture in (0.0, 0.3, 1.0):
            found = tabular.ipo_md_equilibrium(game, reference, tau=tau, mixture=mixture)
            np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("game", "nash"),
    [(RPS, U3), (CYC, np.array([0.3, 0.3, 0.4])), (P4, np.array([1, 4, 0, 2]) / 7)],
)
def test_low_temperature_leads_to_the_game_without_regularisation(game, nash):
    errors = []
    for tau in (1e-3, 1e-4):
        mu = jnp.array(MU3 if len(game) == 3 else MU4)
        errors.append(np.abs(tabular.regularised_nash(jnp.array(game), mu, tau=tau) - nash).max())
    assert errors[1] < 1e-3
    # Of order tau.
    assert 5 < errors[0] / errors[1] < 20


def test_high_temperature_leaves_the_reference():
    found = tabular.regularised_nash(jnp.array(P4), jnp.array(MU4), tau=1e9)
    np.testing.assert_allclose(found, MU4, atol=1e-9)


# Residuals below 5e-15: the policy, its mixture with the reference, and its duality gap.
MIXTURES = [
    (CYC, MU3, 0.0, (0.4008888504, 0.2118222568, 0.3872888928), None, 0.0),
    (
        CYC,
        MU3,
        0.125,
        (0.3991294360, 0.1925484673, 0.4083220967),
        (0.41571735, 0.20609387, 0.37818878),
        0.00123541,
    ),
    (
        CYC,
        MU3,
        0.25,
        (0.3994546160, 0.1694826400, 0.4310627440),
        (0.43389683, 0.20075558, 0.36534760),
        0.00564710,
    ),
    (
        CYC,
        MU3,
        0.5,
        (0.4155489532, 0.1154461509, 0.4690048958),
        (0.48072741, 0.19626965, 0.32300294),
        0.02558322,
    ),
    (CYC, MU3, 1.0, (0.6751277411, 0.0548211624, 0.2700510964), MU3, 0.13314817),
    (P4, MU4, 0.0, (0.4686650771, 0.2542486561, 0.0978985014, 0.1791877654), None, 0.0),
    (
        P4,
        MU4,
        0.125,
        (0.4815162720, 0.2499845805, 0.0915932150, 0.1769059326),
        (0.47430083, 0.25782558, 0.10180543, 0.16606816),
        0.00015078,
    ),
    (
        P4,
        MU4,
        0.25,
        (0.4959408847, 0.2463020845, 0.0856295993, 0.1721274315),
        (0.47720742, 0.26272484, 0.10748434, 0.15258341),
        0.00064521,
    ),
    (
        P4,
        MU4,
        0.5,
        (0.5284086555, 0.2421650441, 0.0757530909, 0.1536732095),
        (0.47088808, 0.27606992, 0.12607179, 0.12697021),
        0.00298410,
    ),
    (P4, MU4, 1.0, (0.5849990314, 0.2531363102, 0.0686116957, 0.0932529628), MU4, 0.01417052),
]


@pytest.mark.parametrize(("game", "mu", "mixture", "expected", "mixed", "gap"), MIXTURES)
def test_fixed_points_of_mixtures(game, mu, mixture, expected, mixed, gap):
    game, mu = jnp.array(game), jnp.array(mu)
    found = tabular.ipo_md_equilibrium(game, mu, tau=0.1, mixture=mixture)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    opponent = found ** (1 - mixture) * mu**mixture
    opponent = opponent / opponent.sum()
    np.testing.assert_allclose(opponent, expected if mixed is None else mixed, atol=5e-9)
    if mixture < 1:
        # The mixture is itself an equilibrium, of a higher temperature.
        warmer = tabular.regularised_nash(game, mu, tau=0.1 / (1 - mixture))
        np.testing.assert_allclose(opponent, warmer, atol=1e-13)
    np.testing.assert_allclose(tabular.duality_gap(found, game, mu, tau=0.1), gap, atol=5e-9)
    response = losses.regularised_best_response(opponent, game, mu, tau=0.1)
    np.testing.assert_allclose(found, response, atol=1e-13)


def test_gap_of_the_reference():
    for game, mu, expected in ((CYC, MU3, 0.05994124), (P4, MU4, 0.02397087)):
        mu = jnp.array(mu)
        np.testing.assert_allclose(
            tabular.duality_gap(mu, jnp.array(game), mu, tau=0.1), expected, atol=5e-9
        )


def test_an_action_that_the_reference_never_takes_stays_at_zero():
    reference = jnp.array([0.5, 0.0, 0.3, 0.2])
    found = tabular.regularised_nash(jnp.array(P4), reference, tau=0.02)
    kept = np.array([0, 2, 3])
    smaller = tabular.regularised_nash(jnp.array(P4[np.ix_(kept, kept)]), reference[kept], tau=0.02)
    assert found[1] == 0
    np.testing.assert_allclose(found[kept], smaller, atol=1e-12)


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_float32_reaches_float32_accuracy(tau):
    games, references = random_games(11, 4, 50, uniform)
    for game, reference in zip(games, references, strict=True):
        exact = tabular.regularised_nash(jnp.array(game), jnp.array(reference), tau=tau)
        found = tabular.regularised_nash(
            jnp.array(game, jnp.float32), jnp.array(reference, jnp.float32), tau=tau
        )
        assert found.dtype == jnp.float32
        # The game itself is rounded: 6e-8 in P over tau in the log-ratios.
        np.testing.assert_allclose(found, exact, atol=5e-7 + 1e-7 / tau)


def test_the_solver_takes_any_monotone_response():
    # The gradient of |r|^2 / 2 is r itself: r = A r has the root 0 alone; with a shift s it is
    # r = A (r + s), so r = (I - A)^-1 A s.
    game = jnp.array([[0.0, 3.0], [-3.0, 0.0]])
    shift = jnp.array([1.0, 2.0])
    found = tabular.monotone_fixed_point(lambda rewards: rewards + shift, game)
    # (I - A)^-1 = [[1, 3], [-3, 1]] / 10 and A s = (6, -3): (6 - 9, -18 - 3) / 10.
    np.testing.assert_allclose(found, [-0.3, -2.1], atol=1e-15)


@pytest.mark.parametrize(
    ("shape", "reference_shape", "word"),
    [((3, 2), (3,), "preference"), ((3,), (3,), "preference"), ((3, 3), (2,), "reference")],
)
def test_refuses_wrong_shapes(shape, reference_shape, word):
    with pytest.raises(ValueError, match=word):
        tabular.regularised_nash(jnp.ones(shape), jnp.ones(reference_shape), tau=0.1)


def test_refuses_wrong_numbers_and_dtypes():
    game, mu = jnp.array(CYC), jnp.array(MU3)
    with pytest.raises(ValueError, match="tau"):
        tabular.regularised_nash(game, mu, tau=0.0)
    with pytest.raises(ValueError, match="mixture"):
        tabular.ipo_md_equilibrium(game, mu, tau=0.1, mixture=1.5)
    with pytest.raises(TypeError, match="preference"):
        tabular.regularised_nash(jnp.ones((3, 3), jnp.int32), mu, tau=0.1)
