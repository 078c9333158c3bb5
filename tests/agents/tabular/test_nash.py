"""Nash-MD and mirror descent against numbers, the paper's bounds, and their own fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular

CYC = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
DICE = np.array([[4.5, 5, 4], [4, 4.5, 5], [5, 4, 4.5]]) / 9
P4 = np.array(
    [[0.5, 0.6, 0.7, 0.3], [0.4, 0.5, 0.65, 0.55], [0.3, 0.35, 0.5, 0.8], [0.7, 0.45, 0.2, 0.5]]
)
MU3, MU4 = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.2, 0.1])
TAU = 0.1


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["CYC", "P4"])
def game(request):
    return {"CYC": (CYC, MU3), "P4": (P4, MU4)}[request.param]


def divergences(target, policies):
    """KL(target, policy) of each policy, stable where it is tiny: sum of p f(q / p - 1)."""
    target, policies = np.asarray(target), np.asarray(policies)
    excess = policies / target - 1
    return np.sum(target * (excess - np.log1p(excess)), axis=-1)


def test_one_step_of_each():
    # Mixture weight eta tau = 1/2: the policies' geometric mean is (.47273387, .33427333,
    # .19299280), which is what Nash-MD plays against and steps from.
    arguments = jnp.array([0.6, 0.3, 0.1]), jnp.array(DICE), jnp.full(3, 1 / 3)
    found = tabular.nash_md_step(*arguments, tau=0.1, learning_rate=5)
    np.testing.assert_allclose(found, [0.49092006, 0.30881959, 0.20026034], atol=5e-9)
    found = tabular.mirror_descent_step(*arguments, tau=0.1, learning_rate=5)
    np.testing.assert_allclose(found, [0.49952475, 0.29080098, 0.20967426], atol=5e-9)


def test_the_step_solves_its_own_maximisation():
    # eta P(pi over pi_mu) - KL(pi, pi_mu) is linear plus entropy: its gradient is constant there.
    policy, game, mu = jnp.array([0.2, 0.5, 0.3]), jnp.array(CYC), jnp.array(MU3)
    rate = 3.0
    mixture = policy ** (1 - rate * TAU) * mu ** (rate * TAU)
    mixture = mixture / mixture.sum()

    def objective(pi):
        return rate * pi @ game @ mixture - jnp.sum(pi * jnp.log(pi / mixture))

    found = tabular.nash_md_step(policy, game, mu, tau=TAU, learning_rate=rate)
    slopes = jax.grad(objective)(found)
    np.testing.assert_allclose(slopes, slopes[0], atol=1e-13)


def test_schedule_reaches_known_divergences():
    found = tabular.nash_md_iterates(jnp.array(CYC), jnp.array(MU3), tau=TAU, num_steps=10_000)
    assert found.shape == (10_001, 3)
    np.testing.assert_allclose(found[0], MU3, atol=1e-15)
    np.testing.assert_allclose(found[1], [0.67512774, 0.05482116, 0.27005110], atol=5e-9)
    target = tabular.regularised_nash(jnp.array(CYC), jnp.array(MU3), tau=TAU)
    expected = {1: 2.170045e-1, 2: 1.551469e-1, 10: 2.933359e-3, 100: 2.988539e-5}
    expected |= {1000: 3.912763e-7, 10_000: 3.822776e-9}
    kls = divergences(target, found)
    np.testing.assert_allclose(kls[list(expected)], list(expected.values()), rtol=1e-6)

    target = tabular.regularised_nash(jnp.array(P4), jnp.array(MU4), tau=TAU)
    found = tabular.nash_md_iterates(jnp.array(P4), jnp.array(MU4), tau=TAU, num_steps=10_000)
    expected = {1: 4.903215e-2, 100: 1.715665e-5, 1000: 1.836942e-7, 10_000: 1.828170e-9}
    kls = divergences(target, found)
    np.testing.assert_allclose(kls[list(expected)], list(expected.values()), rtol=1e-6)


def test_theorem_and_its_one_step_inequality(game):
    preference, mu = map(jnp.array, game)
    num_steps = 10_000
    target = tabular.regularised_nash(preference, mu, tau=TAU)
    kls = divergences(
        target, tabular.nash_md_iterates(preference, mu, tau=TAU, num_steps=num_steps)
    )
    steps = np.arange(num_steps + 1)
    assert np.all(kls <= 8 / (TAU**2 * (steps + 1)))
    rates = 2 / (TAU * (steps[:-1] + 2))
    slack = (1 - rates * TAU) * kls[:-1] + 2 * rates**2 - kls[1:]
    # The inequality is nearest to equality at the last step, where 2 eta^2 is 8e-6.
    np.testing.assert_allclose(slack.min(), 7.997e-6, rtol=1e-3)


def test_a_constant_step_is_biased_as_the_mixture_says():
    game, mu = jnp.array(CYC), jnp.array(MU3)
    target = tabular.regularised_nash(game, mu, tau=TAU)
    found = tabular.nash_md(game, mu, tau=TAU, num_steps=2000, learning_rate=1.0)
    np.testing.assert_allclose(found, [0.3993559179, 0.1967063385, 0.4039377436], atol=1e-10)
    # The fixed point of mixture eta tau = 0.1, and its mixture is the equilibrium at tau / 0.9.
    fixed = tabular.ipo_md_equilibrium(game, mu, tau=TAU, mixture=0.1)
    np.testing.assert_allclose(found, fixed, atol=1e-14)
    mixture = found**0.9 * mu**0.1
    mixture = mixture / mixture.sum()
    np.testing.assert_allclose(mixture, [0.41250139, 0.20723015, 0.38026845], atol=5e-9)
    warmer = tabular.regularised_nash(game, mu, tau=TAU / 0.9)
    np.testing.assert_allclose(mixture, warmer, atol=1e-14)
    np.testing.assert_allclose(divergences(target, found), 9.173161e-4, rtol=1e-6)
    smaller = tabular.nash_md(game, mu, tau=TAU, num_steps=20_000, learning_rate=0.1)
    np.testing.assert_allclose(divergences(target, smaller), 8.002087e-6, rtol=1e-6)


def test_mirror_descent_with_a_constant_step_has_no_bias():
    game, mu = jnp.array(CYC), jnp.array(MU3)
    target = tabular.regularised_nash(game, mu, tau=TAU)
    found = tabular.mirror_descent(game, mu, tau=TAU, num_steps=2000, learning_rate=1.0)
    np.testing.assert_allclose(found, target, atol=1e-14)


@pytest.mark.parametrize("iterates", [tabular.nash_md_iterates, tabular.mirror_descent_iterates])
@pytest.mark.parametrize("learning_rate", [None, 2.0])
def test_iterates_are_the_steps(iterates, learning_rate):
    step = (
        tabular.nash_md_step
        if iterates is tabular.nash_md_iterates
        else tabular.mirror_descent_step
    )
    game, mu, start = jnp.array(P4), jnp.array(MU4), jnp.array([0.1, 0.2, 0.3, 0.4])
    found = iterates(game, mu, tau=TAU, num_steps=4, learning_rate=learning_rate, start=start)
    policy = start
    for t in range(4):
        np.testing.assert_allclose(found[t], policy, atol=1e-13)
        rate = 2 / (TAU * (t + 2)) if learning_rate is None else learning_rate
        policy = step(policy, game, mu, tau=TAU, learning_rate=rate)
    np.testing.assert_allclose(found[4], policy, atol=1e-13)


def test_step_sizes_may_differ_and_the_last_policy_is_the_last():
    game, mu = jnp.array(CYC), jnp.array(MU3)
    rates = 2 / (TAU * (jnp.arange(30) + 2))
    for last, iterates in (
        (tabular.nash_md, tabular.nash_md_iterates),
        (tabular.mirror_descent, tabular.mirror_descent_iterates),
    ):
        found = last(game, mu, tau=TAU, num_steps=30, learning_rate=rates)
        np.testing.assert_allclose(found, iterates(game, mu, tau=TAU, num_steps=30)[-1], atol=1e-14)
    np.testing.assert_allclose(tabular.nash_md(game, mu, tau=TAU, num_steps=0), mu, atol=1e-15)


def test_the_start_is_forgotten_at_the_first_scheduled_step():
    # eta_0 tau = 1: everything is reference.
    game, mu, start = jnp.array(CYC), jnp.array(MU3), jnp.array([0.01, 0.01, 0.98])
    found = tabular.nash_md_iterates(game, mu, tau=TAU, num_steps=3, start=start)
    np.testing.assert_allclose(
        found[1:], tabular.nash_md_iterates(game, mu, tau=TAU, num_steps=3)[1:], atol=1e-14
    )


def test_many_games_and_temperatures_at_once():
    games = jnp.stack([jnp.array(CYC), jnp.array(DICE)])
    taus = jnp.array([0.1, 0.5, 1.0])

    def solve(preference, tau):
        return tabular.nash_md(preference, jnp.array(MU3), tau=tau, num_steps=50)

    found = jax.jit(jax.vmap(jax.vmap(solve, (None, 0)), (0, None)))(games, taus)
    for row, preference in zip(found, games, strict=True):
        for policy, tau in zip(row, taus, strict=True):
            alone = tabular.nash_md(preference, jnp.array(MU3), tau=float(tau), num_steps=50)
            np.testing.assert_allclose(policy, alone, atol=1e-14)


def test_actions_outside_the_reference_and_extremes_stay_finite():
    mu = jnp.array([0.7, 0.0, 0.3])
    for solve in (tabular.nash_md, tabular.mirror_descent):
        found = solve(jnp.array(CYC), mu, tau=1e-3, num_steps=100)
        assert np.all(np.isfinite(found))
        assert found[1] == 0
    # A policy that has lost an action to underflow goes on, and finds it again.
    policy = jnp.array([1.0, 0.0, 0.0])
    found = tabular.nash_md_step(policy, jnp.array(CYC), jnp.array(MU3), tau=0.1, learning_rate=10)
    np.testing.assert_allclose(found, [0.67512774, 0.05482116, 0.27005110], atol=5e-9)


def test_dtypes():
    game, mu = jnp.array(CYC), jnp.array(MU3)
    single = tabular.nash_md(
        game.astype(jnp.float32), mu.astype(jnp.float32), tau=0.1, num_steps=300
    )
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, tabular.nash_md(game, mu, tau=0.1, num_steps=300), atol=3e-6)
    half = tabular.nash_md(game.astype(jnp.bfloat16), mu.astype(jnp.bfloat16), tau=0.1, num_steps=3)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tau": -0.1}, "tau"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": 11.0}, "at most 1 / tau = 10"),
        ({"learning_rate": np.ones(3)}, r"\(5,\)"),
        ({"num_steps": -1}, "num_steps"),
        ({"start": np.ones(2)}, "start"),
    ],
)
def test_refuses_what_is_wrong(change, word):
    arguments = {"tau": 0.1, "num_steps": 5, **change}
    for iterates in (tabular.nash_md_iterates, tabular.mirror_descent_iterates):
        with pytest.raises(ValueError, match=word):
            iterates(jnp.array(CYC), jnp.array(MU3), **arguments)
