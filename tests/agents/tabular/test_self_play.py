"""Exact steps of DNO, INPO, SPPO, online IPO and APO against numbers and their own losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from bellmax import losses
from bellmax.agents import tabular

CYC = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
DICE = np.array([[4.5, 5, 4], [4, 4.5, 5], [5, 4, 4.5]]) / 9
U3, MU3 = np.full(3, 1 / 3), np.array([0.5, 0.3, 0.2])
START = np.array([0.6, 0.3, 0.1])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def divergences(target, policies):
    excess = np.asarray(policies) / np.asarray(target) - 1
    return np.sum(np.asarray(target) * (excess - np.log1p(excess)), axis=-1)


def over_pairs(values, law):
    """Mean of a matrix over independent pairs of a law."""
    return jnp.asarray(law) @ values @ jnp.asarray(law)


def pairs(vector):
    return jnp.broadcast_arrays(vector[:, None], vector[None, :])


def test_dno_step_minimises_dnos_loss():
    found = tabular.dno_step(jnp.array(MU3), jnp.array(CYC), eta=0.5)
    np.testing.assert_allclose(found, [0.55487983, 0.22316824, 0.22195193], atol=5e-9)
    wins = jnp.array(CYC @ MU3)
    np.testing.assert_allclose(wins, [0.56, 0.36, 0.56], atol=1e-15)

    def loss(logits):
        ratios = jax.nn.log_softmax(logits) - jnp.log(MU3)
        return over_pairs(losses.dno_loss(*pairs(ratios), *pairs(wins), eta=0.5), MU3)

    value, slopes = jax.value_and_grad(loss)(jnp.log(found))
    np.testing.assert_allclose(value, 0.69105763, atol=5e-9)
    np.testing.assert_allclose(slopes, 0, atol=1e-14)
    np.testing.assert_allclose(loss(jnp.log(MU3)), np.log(2), atol=1e-14)


def test_dno_step_improves_by_its_bound():
    found = np.asarray(tabular.dno_step(jnp.array(MU3), jnp.array(CYC), eta=0.5))
    improvement = found @ CYC @ MU3
    np.testing.assert_allclose(improvement, 0.51536635, atol=5e-9)
    bound = 0.5 + 0.5 * np.sum(found * np.log(found / MU3))
    np.testing.assert_allclose(bound, 0.50743808, atol=5e-9)


def test_dno_averages_converge_and_the_last_policy_spirals():
    found = np.asarray(
        tabular.dno_iterates(jnp.array(CYC), jnp.array(U3), eta=10.0, num_steps=20_000)
    )
    np.testing.assert_allclose(
        found[:100].mean(axis=0), [0.35626743, 0.27888351, 0.36484906], atol=5e-9
    )
    np.testing.assert_allclose(
        found[:1000].mean(axis=0), [0.29938082, 0.30050349, 0.40011569], atol=5e-9
    )
    np.testing.assert_allclose(found[-1], [0.815, 0.159, 0.026], atol=5e-4)


def test_inpo_step_minimises_inpos_loss():
    previous, eta, tau = jnp.array([0.2, 0.5, 0.3]), 1.0, 0.1
    found = tabular.inpo_step(previous, jnp.array(CYC), jnp.array(MU3), tau=tau, eta=eta)
    np.testing.assert_allclose(found, [0.24769113, 0.4857828, 0.26652607], atol=5e-9)
    reference_pairs, previous_pairs = pairs(jnp.log(MU3)), pairs(jnp.log(previous))

    def hard(logits):
        values = losses.inpo_loss(
            *pairs(jax.nn.log_softmax(logits)),
            *reference_pairs,
            *previous_pairs,
            eta=eta,
            tau=tau,
            preferences=jnp.array(CYC),
        )
        return over_pairs(values, previous)

    def ideal(policy):
        log_policy = np.log(policy)
        h = log_policy - tau / eta * np.log(MU3) - (eta - tau) / eta * np.log(previous)
        target = CYC @ np.asarray(previous) / eta
        error = (h[:, None] - h) - (target[:, None] - target)
        return previous @ error**2 @ previous

    np.testing.assert_allclose(jax.grad(hard)(jnp.log(found)), 0, atol=1e-14)
    np.testing.assert_allclose(ideal(np.asarray(found)), 0, atol=1e-28)
    # The two losses differ by a number that no policy changes.
    for policy in (MU3, START, np.asarray(found)):
        difference = hard(jnp.log(policy)) - ideal(policy)
        np.testing.assert_allclose(difference, 0.2402, atol=5e-5)


def test_inpo_schedule_and_constant_step_converge():
    game, mu, tau = jnp.array(CYC), jnp.array(MU3), 0.1
    target = tabular.regularised_nash(game, mu, tau=tau)
    kls = divergences(target, tabular.inpo_iterates(game, mu, tau=tau, num_steps=10_000))
    expected = {1: 2.170045e-1, 10: 2.858049e-2, 100: 1.131692e-5, 1000: 1.297509e-9}
    # The expected numbers are differences of logarithms, which round at 1e-14.
    np.testing.assert_allclose(kls[list(expected)], list(expected.values()), rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(kls[10_000], 1.3e-13, rtol=0.05)
    steady = tabular.inpo_iterates(game, mu, tau=tau, num_steps=500, eta=1.0)
    np.testing.assert_allclose(steady[-1], target, atol=1e-8)


def test_equivalent_steps():
    policy, game, mu = jnp.array(START), jnp.array(CYC), jnp.array(MU3)
    inpo = tabular.inpo_step(policy, game, mu, tau=0.1, eta=0.8)
    mirror = tabular.mirror_descent_step(policy, game, mu, tau=0.1, learning_rate=1.25)
    np.testing.assert_allclose(inpo, mirror, atol=1e-14)
    dno = tabular.dno_step(policy, game, eta=0.8)
    # Without a pull the reference has no say, whatever it is.
    almost = tabular.inpo_step(policy, game, mu, tau=1e-14, eta=0.8)
    np.testing.assert_allclose(dno, almost, atol=1e-12)
    np.testing.assert_allclose(dno, tabular.sppo_step(policy, game, eta=1.25), atol=1e-14)
    # eta = tau forgets the policy but for its role as opponent.
    drop = tabular.inpo_step(policy, game, mu, tau=0.1, eta=0.1)
    response = losses.regularised_best_response(policy, game, mu, tau=0.1)
    np.testing.assert_allclose(drop, response, atol=1e-14)


def test_sppo_regression_is_biased_by_its_normaliser():
    game, mu, eta = jnp.array(CYC), jnp.array(MU3), 2.0
    step = tabular.sppo_step(mu, game, eta=eta)
    np.testing.assert_allclose(step, [0.55487983, 0.22316824, 0.22195193], atol=5e-9)
    normaliser = np.log(MU3 @ np.exp(eta * CYC @ MU3))
    np.testing.assert_allclose(normaliser, 1.01585654, atol=5e-9)
    found = tabular.sppo_regression_step(mu, game, eta=eta)
    np.testing.assert_allclose(found, [0.55418846, 0.22413616, 0.22167538], atol=5e-9)

    def loss(policy):
        ratios = jnp.log(policy / mu)
        return mu @ losses.sppo_completion_loss(ratios, game @ mu, eta=eta)

    np.testing.assert_allclose(loss(found), 2.446395e-4, rtol=1e-6)
    np.testing.assert_allclose(loss(step), 2.514298e-4, rtol=1e-6)


@pytest.mark.parametrize("eta", [1e-3, 1.0, 20.0, 1000.0])
def test_sppo_regression_step_is_the_minimiser(eta):
    rng = np.random.default_rng(3)
    upper = np.triu(rng.uniform(-0.5, 0.5, (5, 5)), 1)
    game, policy = jnp.array(0.5 + upper - upper.T), jnp.array(rng.dirichlet(np.ones(5)))
    found = tabular.sppo_regression_step(policy, game, eta=eta)
    np.testing.assert_allclose(found.sum(), 1, atol=1e-12)

    def loss(logits):
        ratios = jax.nn.log_softmax(logits) - jnp.log(policy)
        return policy @ losses.sppo_completion_loss(ratios, game @ policy, eta=eta)

    start = jnp.log(found)
    np.testing.assert_allclose(jax.grad(loss)(start), 0, atol=1e-9 * eta**2)
    best = scipy.optimize.minimize(loss, np.log(policy), jac=jax.grad(loss), tol=1e-12)
    assert loss(start) <= best.fun * (1 + 1e-6) + 1e-14


def test_sppo_step_of_a_tie_stays():
    tie = jnp.full((3, 3), 0.5)
    np.testing.assert_allclose(
        tabular.sppo_regression_step(jnp.array(START), tie, eta=5.0), START, atol=1e-14
    )


# Gradients of IPO-MD's loss at the policy (.2, .5, .3), CYC, MU3, tau = .1.
GRADIENTS = {
    0.0: (-1.76806794, 0.43406285, 1.33400509),
    0.25: (-2.09874899, 1.10206737, 0.99668162),
    0.5: (-2.37743044, 1.73442208, 0.64300836),
    1.0: (-2.58497215, 2.56155634, 0.02341581),
}


@pytest.mark.parametrize("mixture", GRADIENTS)
def test_online_ipo_follows_the_gradient(mixture):
    policy, rate = jnp.array([0.2, 0.5, 0.3]), 0.01
    found = tabular.online_ipo_iterates(
        jnp.array(CYC),
        jnp.array(MU3),
        tau=0.1,
        num_steps=1,
        learning_rate=rate,
        mixture=mixture,
        start=policy,
    )
    moved = np.log(found[1] / found[0])
    # A gradient in softmax logits sums to 0, and logits are known up to a constant.
    np.testing.assert_allclose(-(moved - moved.mean()) / rate, GRADIENTS[mixture], atol=1e-7)


def test_online_ipo_reaches_the_equilibrium():
    def descend(game, reference, **changes):
        arguments = {"tau": 0.1, "num_steps": 1000, "learning_rate": 0.02}
        return tabular.online_ipo_iterates(
            jnp.array(game), jnp.array(reference), start=jnp.array(START), **arguments | changes
        )

    found = descend(DICE, U3)
    np.testing.assert_allclose(found[10], [0.56193952, 0.31771882, 0.12034166], atol=5e-9)
    np.testing.assert_allclose(found[100], [0.37014612, 0.32578523, 0.30406865], atol=5e-9)
    np.testing.assert_allclose(found[1000], U3, atol=1e-8)
    found = descend(CYC, MU3)
    np.testing.assert_allclose(found[10], [0.70150316, 0.18893974, 0.10955711], atol=5e-9)
    np.testing.assert_allclose(found[100], [0.34920344, 0.20387147, 0.44692510], atol=5e-9)
    target = tabular.regularised_nash(jnp.array(CYC), jnp.array(MU3), tau=0.1)
    np.testing.assert_allclose(found[1000], target, atol=1e-8)
    for mixture in (0.25, 1.0):
        found = descend(CYC, MU3, mixture=mixture, num_steps=3000)
        fixed = tabular.ipo_md_equilibrium(jnp.array(CYC), jnp.array(MU3), tau=0.1, mixture=mixture)
        np.testing.assert_allclose(found[-1], fixed, atol=1e-8)


def test_apo_in_closed_form():
    # With exact DPO steps: log pihat_T = log mu + C_T r / beta,
    # C_T = (T - alpha (1 - alpha^T) / (1 - alpha)) / (1 - alpha).
    rewards, alpha = jnp.array([1.0, 0.0, -1.0]), 0.3
    log_mu = jnp.log(MU3)
    policy = previous = best = log_mu
    for t, factor in enumerate((1, 2.3, 3.69, 5.107, 6.5321), start=1):
        best = jax.nn.log_softmax(policy + rewards)
        policy = tabular.nesterov_extrapolate(best, previous, alpha=alpha)
        previous = best
        np.testing.assert_allclose(
            (t - alpha * (1 - alpha**t) / (1 - alpha)) / (1 - alpha), factor, atol=1e-12
        )
        np.testing.assert_allclose(best, jax.nn.log_softmax(log_mu + factor * rewards), atol=1e-13)
        if t == 2:
            np.testing.assert_allclose(
                jnp.exp(best), [0.93969415, 0.05652759, 0.00377826], atol=5e-9
            )
            np.testing.assert_allclose(
                jnp.exp(policy), [0.95916665, 0.03906548, 0.00176787], atol=5e-9
            )
    np.testing.assert_allclose(jnp.exp(best), [0.99912635, 0.00087280, 0.00000085], atol=5e-9)
    plain = jax.nn.softmax(log_mu + 5 * rewards)
    np.testing.assert_allclose(plain, [0.99595550, 0.00402642, 0.00001809], atol=5e-9)


def test_apo_momentum_zero_and_shifts():
    new, old = jnp.log(jnp.array(START)), jnp.log(jnp.array(MU3))
    found = tabular.nesterov_extrapolate(new, old, alpha=0.0)
    np.testing.assert_allclose(found, new, atol=1e-15)
    plain = tabular.nesterov_extrapolate(new, old, alpha=0.4)
    shifted = tabular.nesterov_extrapolate(new + 3.0, old - 7.0, alpha=0.4)
    np.testing.assert_allclose(shifted, plain, atol=1e-14)


def test_refuses_wrong_numbers():
    game, mu = jnp.array(CYC), jnp.array(MU3)
    with pytest.raises(ValueError, match="eta must be positive"):
        tabular.dno_step(mu, game, eta=0.0)
    with pytest.raises(ValueError, match="eta must be at least tau"):
        tabular.inpo_step(mu, game, mu, tau=0.1, eta=0.05)
    with pytest.raises(ValueError, match="eta must be at least tau"):
        tabular.inpo_iterates(game, mu, tau=0.1, eta=0.05, num_steps=2)
    with pytest.raises(ValueError, match="mixture"):
        tabular.online_ipo_iterates(game, mu, tau=0.1, num_steps=1, learning_rate=0.1, mixture=-0.1)
    with pytest.raises(ValueError, match="alpha"):
        tabular.nesterov_extrapolate(mu, mu, alpha=1.0)
    with pytest.raises(ValueError, match="policy"):
        tabular.sppo_step(mu[:2], game, eta=1.0)
