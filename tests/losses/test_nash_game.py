"""The regularised preference game: known equilibria, best responses, gaps and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

DICE = [[1 / 2, 5 / 9, 4 / 9], [4 / 9, 1 / 2, 5 / 9], [5 / 9, 4 / 9, 1 / 2]]
SCISSORS = [[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]
CYCLE = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]
FOUR = [[0.5, 0.6, 0.7, 0.3], [0.4, 0.5, 0.65, 0.55], [0.3, 0.35, 0.5, 0.8], [0.7, 0.45, 0.2, 0.5]]
UNIFORM, MU3, MU4 = [1 / 3, 1 / 3, 1 / 3], [0.5, 0.3, 0.2], [0.4, 0.3, 0.2, 0.1]

# Specification B.4: solutions of pi = normalised mu exp(P pi / tau), to a residual below 1e-15.
EQUILIBRIA = [
    (DICE, UNIFORM, 0.1, UNIFORM),
    (DICE, MU3, 0.1, [0.5103476847, 0.2583318787, 0.2313204366]),
    (SCISSORS, MU3, 1.0, [0.5108675583, 0.2615561887, 0.2275762530]),
    (SCISSORS, MU3, 0.1, [0.3753269575, 0.2774326283, 0.3472404143]),
    (CYCLE, UNIFORM, 1.0, [0.3428943124, 0.3215073999, 0.3355982878]),
    (CYCLE, UNIFORM, 0.05, [0.3157360352, 0.2887339991, 0.3955299656]),
    (CYCLE, MU3, 0.1, [0.4008888504, 0.2118222568, 0.3872888928]),
    (FOUR, MU4, 1.0, [0.4192929538, 0.2975333310, 0.1815744058, 0.1015993095]),
    (FOUR, MU4, 0.1, [0.4686650771, 0.2542486561, 0.0978985014, 0.1791877654]),
]
# Specification C.4: the gap at tau = .1 of the policies where Nash-MD-PG comes to rest.
GAPS = [
    (CYCLE, MU3, [0.3991294360, 0.1925484673, 0.4083220967], 0.00123541),
    (CYCLE, MU3, [0.3994546160, 0.1694826400, 0.4310627440], 0.00564710),
    (CYCLE, MU3, [0.4155489532, 0.1154461509, 0.4690048958], 0.02558322),
    (CYCLE, MU3, [0.6751277411, 0.0548211624, 0.2700510964], 0.13314817),
    (CYCLE, MU3, MU3, 0.05994124),
    (FOUR, MU4, [0.4815162720, 0.2499845805, 0.0915932150, 0.1769059326], 0.00015078),
    (FOUR, MU4, [0.4959408847, 0.2463020845, 0.0856295993, 0.1721274315], 0.00064521),
    (FOUR, MU4, [0.5284086555, 0.2421650441, 0.0757530909, 0.1536732095], 0.00298410),
    (FOUR, MU4, [0.5849990314, 0.2531363102, 0.0686116957, 0.0932529628], 0.01417052),
    (FOUR, MU4, MU4, 0.02397087),
]

GAP, RESPONSE, SCORE = map(
    jax.jit,
    (losses.duality_gap, losses.regularised_best_response, losses.regularised_preference),
)


def doubles(*arrays):
    return tuple(jnp.asarray(array, jnp.float64) for array in arrays)


def random_game(size, seed):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.uniform(size=(size, size)), 1)
    game = upper + np.tril(1 - upper.T, -1) + np.eye(size) / 2
    return game, rng.dirichlet(np.ones(size), 3)


@pytest.mark.parametrize(("game", "reference", "tau", "policy"), EQUILIBRIA)
def test_an_equilibrium_answers_itself_and_has_no_gap(game, reference, tau, policy):
    with jax.enable_x64(True):
        game, reference, policy = doubles(game, reference, policy)
        # Ten digits of probabilities do not add up to 1, which the gap would see.
        policy = policy / policy.sum()
        response = RESPONSE(policy, game, reference, tau=tau)
        gap = GAP(policy, game, reference, tau=tau)
    np.testing.assert_allclose(response, policy, atol=1e-9)
    np.testing.assert_allclose(gap, 0, atol=1e-12)


@pytest.mark.parametrize(("game", "reference", "policy", "expected"), GAPS)
def test_gaps(game, reference, policy, expected):
    with jax.enable_x64(True):
        arrays = doubles(policy, game, reference)
        found = GAP(*arrays, tau=0.1)
    np.testing.assert_allclose(found, expected, atol=6e-9)


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_players_that_agree_draw(tau):
    game, (policy, opponent, reference) = random_game(5, 0)
    with jax.enable_x64(True):
        policy, opponent, game, reference = doubles(policy, opponent, game, reference)
        draw = SCORE(policy, policy, game, reference, tau=tau)
        one = SCORE(policy, opponent, game, reference, tau=tau)
        other = SCORE(opponent, policy, game, reference, tau=tau)
    np.testing.assert_allclose(draw, 0.5, rtol=1e-12)
    np.testing.assert_allclose(one + other, 1, rtol=1e-12)


def test_score_by_hand():
    # .6 * .5 + .4 * .3 against the second action alone, plus tau (log 2 - KL((.6, .4), (.5, .5))).
    game, half = jnp.array([[0.5, 0.5], [0.5, 0.3]]), jnp.array([0.5, 0.5])
    policy, opponent = jnp.array([0.6, 0.4]), jnp.array([0.0, 1.0])
    found = losses.regularised_preference(policy, opponent, game, half, tau=0.1)
    divergence = 0.6 * np.log(1.2) + 0.4 * np.log(0.8)
    np.testing.assert_allclose(found, 0.42 + 0.1 * (np.log(2) - divergence), rtol=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
def test_gap_is_what_the_best_players_reach(tau):
    game, (policy, _, reference) = random_game(4, 1)
    rivals = np.concatenate([np.random.default_rng(2).dirichlet(np.ones(4), 200), np.eye(4)])
    with jax.enable_x64(True):
        policy, game, reference, rivals = doubles(policy, game, reference, rivals)
        gap = GAP(policy, game, reference, tau=tau)
        best = RESPONSE(policy, game, reference, tau=tau)

        def score(rival):
            return SCORE(rival, policy, game, reference, tau=tau)

        # The other player's best is the same law, for the game is symmetric.
        np.testing.assert_allclose(2 * (score(best) - 0.5), gap, atol=1e-12)
        assert np.max(jax.vmap(score)(rivals)) <= score(best) + 1e-12


def test_gap_needs_no_symmetry():
    # Matching pennies with a payoff of the first player only: max 0.7, min 0.3 against (.3, .7).
    game = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    policy = jnp.array([0.3, 0.7])
    found = losses.duality_gap(policy, game, jnp.array([0.5, 0.5]), tau=0.0)
    np.testing.assert_allclose(found, 0.4, rtol=1e-6)


@pytest.mark.parametrize(
    ("game", "policy"),
    [(CYCLE, [0.3, 0.3, 0.4]), (FOUR, [1 / 7, 4 / 7, 0, 2 / 7]), (SCISSORS, UNIFORM)],
)
def test_the_plain_game(game, policy):
    with jax.enable_x64(True):
        game, policy = doubles(game, policy)
        reference = jnp.full(policy.shape, 1 / policy.size)
        gap = GAP(policy, game, reference, tau=0.0)
        np.testing.assert_allclose(gap, 0, atol=1e-12)
        # The first action alone loses to the one that beats it most.
        alone = GAP(jnp.eye(policy.size)[0], game, reference, tau=0.0)
        np.testing.assert_allclose(alone, 2 * (game[:, 0].max() - 0.5), atol=1e-12)


def test_tau_of_zero_is_the_limit():
    game, (policy, _, reference) = random_game(4, 3)
    reference = reference.copy()
    # The action that wins most is closed by the reference: the next best is the limit.
    reference[np.argmax(game @ policy)] = 0
    reference = reference / reference.sum()
    with jax.enable_x64(True):
        policy, game, reference = doubles(policy * (reference > 0), game, reference)
        policy = policy / policy.sum()
        for function in (losses.duality_gap, losses.regularised_best_response):
            traced = jax.jit(lambda tau, f=function: f(policy, game, reference, tau=tau))
            np.testing.assert_allclose(traced(1e-7), traced(0.0), atol=1e-5)


def test_best_response_without_regularisation_shares_ties():
    game = jnp.array(SCISSORS)
    found = losses.regularised_best_response(jnp.array(UNIFORM), game, jnp.array(MU3), tau=0.0)
    np.testing.assert_allclose(found, MU3, rtol=1e-6)
    found = losses.regularised_best_response(jnp.eye(3)[0], game, jnp.array(MU3), tau=0.0)
    np.testing.assert_array_equal(found, [0, 0, 1])


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_impossible_actions_give_no_nan(tau):
    game = jnp.array(CYCLE)
    first, second, reference = jnp.array([[0.7, 0.3, 0], [0, 1, 0], [0.6, 0.4, 0]])

    def check(function, *arrays):
        total = jax.value_and_grad(
            lambda tau, *a: jnp.sum(function(*a, tau=tau)), argnums=range(len(arrays) + 1)
        )
        value, slopes = jax.jit(total)(tau, *arrays)
        assert np.isfinite(value)
        assert all(np.isfinite(slope).all() for slope in slopes)

    check(losses.regularised_preference, first, second, game, reference)
    check(losses.regularised_best_response, first, game, reference)
    check(losses.duality_gap, first, game, reference)
    # The third action is no part of the game at all: so is a game of two.
    cut = (first[:2], game[:2, :2], reference[:2])
    np.testing.assert_allclose(
        losses.duality_gap(first, game, reference, tau=tau),
        losses.duality_gap(*cut, tau=tau),
        rtol=1e-6,
    )


def test_players_outside_the_reference():
    inside, outside, reference = jnp.array([[0.5, 0.5, 0], [0, 0.2, 0.8], [0.6, 0.4, 0]])
    game = jnp.array(CYCLE)

    def score(first, second, tau):
        total = jax.jit(
            jax.value_and_grad(
                lambda *laws: losses.regularised_preference(
                    laws[0], laws[1], game, reference, tau=tau
                ),
                argnums=(0, 1),
            )
        )
        value, slopes = total(first, second)
        assert all(np.isfinite(slope).all() for slope in slopes)
        return value

    assert score(outside, inside, 0.1) == -np.inf
    assert score(inside, outside, 0.1) == np.inf
    np.testing.assert_allclose(score(outside, outside, 0.1), 0.5, rtol=1e-6)
    np.testing.assert_allclose(score(outside, inside, 0.0), outside @ game @ inside, rtol=1e-6)
    assert losses.duality_gap(outside, game, reference, tau=0.1) == np.inf
    assert np.isfinite(losses.duality_gap(outside, game, reference, tau=0.0))


def test_small_tau_does_not_overflow():
    game, policy = jnp.array(CYCLE), jnp.array(MU3)
    gap, slope = jax.value_and_grad(lambda tau: losses.duality_gap(policy, game, policy, tau=tau))(
        1e-6
    )
    np.testing.assert_allclose(gap, losses.duality_gap(policy, game, policy, tau=0.0), atol=1e-5)
    assert np.isfinite(slope)


def test_tau_of_each_row():
    policies, games = jnp.array([MU3, UNIFORM]), jnp.array([CYCLE, DICE])
    taus = jnp.array([0.0, 0.1])
    found = losses.duality_gap(policies, games, policies[::-1], tau=taus)
    for row in range(2):
        one = losses.duality_gap(policies[row], games[row], policies[1 - row], tau=float(taus[row]))
        np.testing.assert_allclose(found[row], one, rtol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "tau", "named"),
    [
        (((3,), (3, 2), (3,)), 0.1, "preference"),
        (((2, 3), (3, 3), (2, 3)), 0.1, "preference"),
        (((3,), (3, 3), (3,)), -0.1, "tau"),
        (((3,), (3, 3), (3,)), jnp.ones(3), "tau"),
    ],
)
def test_refused(shapes, tau, named):
    for function in (losses.duality_gap, losses.regularised_best_response):
        with pytest.raises(Exception, match=named):
            function(*map(jnp.ones, shapes), tau=tau)
