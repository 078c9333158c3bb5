"""Losses of self-sent pairs: expectations over all pairs of a table, identities, invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

CYCLE = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
MU3 = np.array([0.5, 0.3, 0.2])
POLICY = np.array([0.2, 0.5, 0.3])
CHOSEN, REJECTED = jnp.array([-5.0, -7.5, -3.2]), jnp.array([-6.0, -6.5, -9.0])
CHOSEN_REFERENCE, REJECTED_REFERENCE = jnp.array([-5.5, -7.0, -4.0]), jnp.array([-5.8, -7.1, -8.0])
CHOSEN_PREVIOUS, REJECTED_PREVIOUS = jnp.array([-5.2, -7.2, -3.6]), jnp.array([-5.9, -6.8, -8.5])
# Log-ratios .5, -.5, .8 and -.2, .6, -1: margins .7, -1.1, 1.8.
FIRST, SECOND = CHOSEN - CHOSEN_REFERENCE, REJECTED - REJECTED_REFERENCE
WINS = jnp.array([0.9, 0.4, 1.0])
INPO_ARRAYS = (
    CHOSEN,
    REJECTED,
    CHOSEN_REFERENCE,
    REJECTED_REFERENCE,
    CHOSEN_PREVIOUS,
    REJECTED_PREVIOUS,
)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-7)


def pairs(values):
    """All ordered pairs of a table's actions: [A] to two of [A, A]."""
    first = jnp.broadcast_to(jnp.asarray(values)[:, None], (len(values),) * 2)
    return first, first.T


def test_online_ipo_by_hand():
    # 1 / (2 tau) = 5: .9 * 4.3 ** 2 + .1 * 5.7 ** 2 = 19.89 and so on.
    found = losses.online_ipo_loss(FIRST, SECOND, WINS, tau=0.1)
    assert_close(found, [19.89, 24.01, 10.24])
    assert_close(found.mean(), 18.04666667)


def test_expanded_ipo_by_hand():
    found = losses.expanded_ipo_loss(FIRST, SECOND, tau=0.1)
    # -.7 + .1 * .49, 1.1 + .1 * 1.21, -1.8 + .1 * 3.24.
    assert_close(found, [-0.651, 1.221, -1.476])
    # With the policy's log-probabilities in the first term, as the paper's code has it.
    assert_close(found - (CHOSEN_REFERENCE - REJECTED_REFERENCE), [-0.951, 1.121, -5.476])
    whole = losses.ipo_loss(FIRST, SECOND, tau=0.1)
    assert_close(found, 0.1 * whole - 1 / 0.4)
    online = losses.online_pair_loss(
        FIRST, SECOND, WINS, loss_fn=functools.partial(losses.expanded_ipo_loss, tau=0.1)
    )
    assert_close(online, 0.1 * losses.online_ipo_loss(FIRST, SECOND, WINS, tau=0.1) - 1 / 0.4)


def test_online_dpo_by_hand():
    found = losses.online_pair_loss(
        FIRST, SECOND, WINS, loss_fn=functools.partial(losses.dpo_loss, beta=0.1)
    )
    assert_close(found, [0.66575956, 0.68365892, 0.60719172])


def test_hard_labels_are_the_loss_itself():
    loss_fn = functools.partial(losses.gpo_loss, convex_fn=losses.exponential, beta=1.0)
    # The order that did not happen has an infinite loss here, which must not enter.
    first, second = jnp.array([500.0, -500.0]), jnp.array([-500.0, 500.0])

    def run(first, second):
        return losses.online_pair_loss(first, second, jnp.array([1.0, 0.0]), loss_fn=loss_fn)

    np.testing.assert_array_equal(run(first, second), [0, 0])
    slopes = jax.grad(lambda *a: run(*a).sum(), argnums=(0, 1))(first, second)
    np.testing.assert_array_equal(slopes, np.zeros((2, 2)))
    found = losses.online_pair_loss(FIRST, SECOND, jnp.ones(3), loss_fn=loss_fn)
    np.testing.assert_array_equal(found, loss_fn(FIRST, SECOND))


def test_a_loss_that_is_none_is_refused():
    with pytest.raises(Exception, match="loss_fn"):
        losses.online_pair_loss(FIRST, SECOND, WINS, loss_fn="ipo")  # pyright: ignore


GRADIENTS = {
    0.0: (-1.76806794, 0.43406285, 1.33400509),
    0.25: (-2.09874899, 1.10206737, 0.99668162),
    0.5: (-2.37743044, 1.73442208, 0.64300836),
    1.0: (-2.58497215, 2.56155634, 0.02341581),
}


@pytest.mark.parametrize("mixture", GRADIENTS)
def test_expected_gradient_of_ipo_md(mixture):
    # Both completions from q, the mixture: -(4 / tau) times the covariance under q of grad log pi
    # with what an action scores, P(y > q) - tau h; 40 times self-play's gradient at q = pi.
    tau = 0.1
    with jax.enable_x64(True):
        logits = jnp.log(jnp.asarray(POLICY))
        sampler = np.exp(
            losses.geometric_mixture_logits(logits, jnp.log(jnp.asarray(MU3)), mixture=mixture)
        )

        def loss(logits):
            ratios = jax.nn.log_softmax(logits) - jnp.log(MU3)
            return (
                sampler
                @ losses.online_ipo_loss(*pairs(ratios), jnp.asarray(CYCLE), tau=tau)
                @ sampler
            )

        found = jax.grad(loss)(logits)
    scores = CYCLE @ sampler - tau * np.log(POLICY / MU3)
    # grad log pi(y) = one-hot(y) - pi, whose pi drops out of a covariance.
    exact = -4 / tau * sampler * (scores - sampler @ scores)
    np.testing.assert_allclose(found, exact, atol=1e-12)
    np.testing.assert_allclose(found, GRADIENTS[mixture], atol=6e-9)


@pytest.mark.parametrize("seed", range(3))
def test_online_ipo_is_self_play_scaled(seed):
    rng = np.random.default_rng(seed)
    tau, size = float(rng.uniform(0.1, 2)), 4
    upper = np.triu(rng.uniform(size=(size, size)), 1)
    game = upper + np.tril(1 - upper.T, -1) + np.eye(size) / 2
    reference = np.log(rng.dirichlet(np.ones(size)))
    with jax.enable_x64(True):
        game, logits = jnp.asarray(game), jnp.asarray(rng.standard_normal(size))
        policy = jax.nn.softmax(logits)

        def online_ipo(logits):
            ratios = jax.nn.log_softmax(logits) - reference
            return policy @ losses.online_ipo_loss(*pairs(ratios), game, tau=tau) @ policy

        def self_play(logits):
            arrays = pairs(jax.nn.log_softmax(logits))[0], pairs(reference)[0], game
            return policy @ losses.nash_md_pg_loss(*arrays, tau=tau) @ policy

        ipo, pg = jax.grad(online_ipo)(logits), jax.grad(self_play)(logits)
    np.testing.assert_allclose(ipo, 4 / tau * np.asarray(pg), atol=1e-11)


def test_dno_by_hand():
    gaps = jnp.array([0.3, -0.1, 0.4])
    found = losses.dno_loss(FIRST, SECOND, gaps + 0.2, jnp.full(3, 0.2), eta=1.0)
    assert_close(found, [0.70107629, 0.80985822, 0.87533982])
    assert_close(found.mean(), 0.79542478)


def test_dno_step_in_a_table():
    # r = P pi_t = (.56, .36, .56) at pi_t = (.5, .3, .2); pi_t exp(r / .5), normalised, is where
    # the expected loss over pairs of pi_t is least, and it beats pi_t by .5 + eta KL at least.
    target = np.array([0.55487983, 0.22316824, 0.22195193])
    with jax.enable_x64(True):
        rewards = pairs(CYCLE @ MU3)

        def loss(logits):
            ratios = jax.nn.log_softmax(logits) - jnp.log(MU3)
            return MU3 @ losses.dno_loss(*pairs(ratios), *rewards, eta=0.5) @ MU3

        exact = MU3 * np.exp(CYCLE @ MU3 / 0.5)
        exact = exact / exact.sum()
        np.testing.assert_allclose(exact, target, atol=6e-9)
        value, slope = jax.value_and_grad(loss)(jnp.log(exact))
        np.testing.assert_allclose(loss(jnp.log(MU3)), np.log(2), rtol=1e-12)
        laws = jnp.asarray(exact), jnp.asarray(MU3)
        wins = losses.regularised_preference(*laws, jnp.asarray(CYCLE), laws[1], tau=0.0)
    np.testing.assert_allclose(value, 0.69105763, atol=6e-9)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    np.testing.assert_allclose(wins, 0.51536635, atol=6e-9)
    bound = 0.5 + 0.5 * np.sum(exact * np.log(exact / MU3))
    np.testing.assert_allclose(bound, 0.50743808, atol=6e-9)
    assert float(wins) >= bound


def test_dno_with_a_hard_label_is_dpo():
    found = losses.dno_loss(FIRST, SECOND, jnp.full(3, 1e3), jnp.zeros(3), eta=0.7)
    assert_close(found, losses.dpo_loss(FIRST, SECOND, beta=0.7))


def test_inpo_by_hand():
    # h = 1 - .1 * .3 - .9 * .7 = .34, -1 - .1 * .1 + .9 * .4 = -.65, 5.8 - .1 * 4 - .9 * 4.9 = .99;
    # the target is .5.
    found = losses.inpo_loss(*INPO_ARRAYS, eta=1.0, tau=0.1)
    assert_close(found, [0.0256, 1.3225, 0.2401])
    assert_close(found.mean(), 0.5294)
    soft = losses.inpo_loss(*INPO_ARRAYS, eta=1.0, tau=0.1, preferences=WINS)
    # .9 * .16 ** 2 + .1 * .84 ** 2, .4 * 1.15 ** 2 + .6 * .15 ** 2.
    assert_close(soft, [0.0936, 0.5425, 0.2401])


def test_inpo_step_in_a_table():
    # Pairs from pi_t, labels from the game: the loss is that of the ideal targets
    # (P(y > pi_t) - P(y' > pi_t)) / eta plus a constant, and the ideal one is 0 at the step.
    eta, tau = 1.0, 0.1
    step = np.exp(CYCLE @ POLICY / eta) * MU3 ** (tau / eta) * POLICY ** (1 - tau / eta)
    step = step / step.sum()
    np.testing.assert_allclose(step, [0.24769113, 0.4857828, 0.26652607], atol=6e-9)
    others = np.random.default_rng(0).dirichlet(np.ones(3), 3)

    def labelled(policy):
        laws = (policy, MU3, POLICY)
        arrays = [array for law in laws for array in pairs(np.log(law))]
        loss = losses.inpo_loss(*arrays, eta=eta, tau=tau, preferences=jnp.asarray(CYCLE))
        return POLICY @ loss @ POLICY

    def ideal(policy):
        ratio = np.log(policy) - tau / eta * np.log(MU3) - (1 - tau / eta) * np.log(POLICY)
        wins = CYCLE @ POLICY / eta
        errors = (ratio[:, None] - ratio) - (wins[:, None] - wins)
        return POLICY @ errors**2 @ POLICY

    with jax.enable_x64(True):
        np.testing.assert_allclose(ideal(step), 0, atol=1e-15)
        for policy in (step, *others):
            np.testing.assert_allclose(labelled(policy) - ideal(policy), 0.2402, atol=1e-12)


@pytest.mark.parametrize("preferences", [None, WINS])
@pytest.mark.parametrize("tau", [0.0, 0.1, 0.7])
def test_inpo_next_to_the_reference_is_ipo(tau, preferences):
    arrays = (*INPO_ARRAYS[:4], CHOSEN_REFERENCE, REJECTED_REFERENCE)
    found = losses.inpo_loss(*arrays, eta=0.7, tau=tau, preferences=preferences)
    wins = jnp.ones(3) if preferences is None else preferences
    np.testing.assert_allclose(
        found, losses.online_ipo_loss(FIRST, SECOND, wins, tau=0.7), rtol=3e-5
    )


def test_inpo_at_tau_of_eta_forgets_the_previous_iterate():
    found = losses.inpo_loss(*INPO_ARRAYS, eta=0.7, tau=0.7)
    np.testing.assert_allclose(found, losses.ipo_loss(FIRST, SECOND, tau=0.7), rtol=3e-5)


def test_inpo_without_regularisation_is_ipo_against_the_previous_iterate():
    found = losses.inpo_loss(*INPO_ARRAYS, eta=0.7, tau=0.0)
    expected = losses.ipo_loss(CHOSEN - CHOSEN_PREVIOUS, REJECTED - REJECTED_PREVIOUS, tau=0.7)
    np.testing.assert_allclose(found, expected, rtol=3e-5)


def test_dno_and_unregularised_inpo_share_their_step():
    # At pi_t exp(P pi_t / eta) both expected losses are stationary.
    with jax.enable_x64(True):
        step = jnp.log(POLICY) + CYCLE @ POLICY / 0.5

        def dno(logits):
            ratios = jax.nn.log_softmax(logits) - jnp.log(POLICY)
            loss = losses.dno_loss(*pairs(ratios), *pairs(CYCLE @ POLICY), eta=0.5)
            return POLICY @ loss @ POLICY

        def inpo(logits):
            previous = pairs(jnp.log(POLICY))
            arrays = (*pairs(jax.nn.log_softmax(logits)), *pairs(jnp.log(MU3)), *previous)
            loss = losses.inpo_loss(*arrays, eta=0.5, tau=0.0, preferences=jnp.asarray(CYCLE))
            return POLICY @ loss @ POLICY

        for loss in (dno, inpo):
            np.testing.assert_allclose(jax.grad(loss)(step), 0, atol=1e-12)
            assert np.abs(jax.grad(loss)(jnp.log(POLICY))).max() > 1e-3


@pytest.mark.parametrize("name", ["online_ipo", "online_dpo", "dno", "inpo"])
def test_swapping_the_pair_is_swapping_the_label(name):
    def run(first, second, wins):
        if name == "online_ipo":
            return losses.online_ipo_loss(first, second, wins, tau=0.3)
        if name == "online_dpo":
            loss_fn = functools.partial(losses.dpo_loss, beta=0.3)
            return losses.online_pair_loss(first, second, wins, loss_fn=loss_fn)
        if name == "dno":
            return losses.dno_loss(first, second, wins, 1 - wins, eta=0.3)
        zero = jnp.zeros(3)
        held = (first / 2, second / 2, zero, zero)
        return losses.inpo_loss(first, second, *held, eta=0.7, tau=0.2, preferences=wins)

    assert_close(run(FIRST, SECOND, WINS), run(SECOND, FIRST, 1 - WINS))


def test_common_shifts_change_nothing():
    shift = jnp.array([3.0, -1.5, 0.25])
    for name, run in {
        "ipo": lambda a, b: losses.online_ipo_loss(a, b, WINS, tau=0.3),
        "expanded": lambda a, b: losses.expanded_ipo_loss(a, b, tau=0.3),
        "dno": lambda a, b: losses.dno_loss(a, b, WINS, 1 - WINS, eta=0.3),
        "dno rewards": lambda a, b: losses.dno_loss(FIRST, SECOND, a, b, eta=0.3),
    }.items():
        np.testing.assert_allclose(
            run(FIRST + shift, SECOND + shift), run(FIRST, SECOND), rtol=2e-5, err_msg=name
        )
    expected = losses.inpo_loss(*INPO_ARRAYS, eta=0.7, tau=0.2)
    for first in (0, 2, 4):
        moved = list(INPO_ARRAYS)
        moved[first : first + 2] = (array + shift for array in moved[first : first + 2])
        found = losses.inpo_loss(*moved, eta=0.7, tau=0.2)
        np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_only_the_policy_gets_a_gradient():
    def inpo(*arrays):
        return losses.inpo_loss(*arrays[:6], eta=0.7, tau=0.2, preferences=arrays[6]).sum()

    slopes = jax.grad(inpo, argnums=range(7))(*INPO_ARRAYS, WINS)
    assert all(np.abs(slope).min() > 0 for slope in slopes[:2])
    for slope in slopes[2:]:
        np.testing.assert_array_equal(slope, np.zeros(3))

    def online(wins, rewards):
        dno = losses.dno_loss(FIRST, SECOND, rewards, wins, eta=0.3)
        return jnp.sum(dno + losses.online_ipo_loss(FIRST, SECOND, wins, tau=0.3))

    for slope in jax.grad(online, argnums=(0, 1))(WINS, WINS / 2):
        np.testing.assert_array_equal(slope, np.zeros(3))


@pytest.mark.parametrize(
    ("name", "count", "hyper"),
    [
        ("online_ipo_loss", 3, {"tau": 0.3}),
        ("expanded_ipo_loss", 2, {"tau": 0.3}),
        ("dno_loss", 4, {"eta": 0.7}),
        ("inpo_loss", 6, {"eta": 0.7, "tau": 0.2}),
        ("nash_md_pg_loss", 3, {"tau": 0.3}),
        ("mtpo_policy_loss", 3, {"alpha": 0.3}),
    ],
)
def test_hyper_parameters_may_be_traced_and_of_each_pair(name, count, hyper):
    arrays, function = INPO_ARRAYS[:count], getattr(losses, name)
    traced = jax.jit(lambda hyper: function(*arrays, **hyper))
    rows = {key: jnp.full(3, value) for key, value in hyper.items()}
    for values in (hyper, rows):
        np.testing.assert_allclose(traced(values), function(*arrays, **hyper), rtol=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extremes_stay_finite(size):
    first, second = jnp.full(3, size), jnp.full(3, -size)

    def total(first, second):
        held = (second, first, first, second)
        return jnp.sum(
            losses.inpo_loss(first, second, *held, eta=0.7, tau=0.2, preferences=WINS)
            + losses.inpo_loss(first, second, *held, eta=0.7, tau=0.2)
            + losses.dno_loss(first, second, WINS, 1 - WINS, eta=1.0)
        )

    value, slopes = jax.value_and_grad(total, argnums=(0, 1))(first, second)
    assert np.isfinite(value)
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize(
    ("name", "hyper", "named"),
    [
        ("online_ipo_loss", {"tau": 0.0}, "tau"),
        ("dno_loss", {"eta": -1.0}, "eta"),
        ("inpo_loss", {"eta": 0.0, "tau": 0.1}, "eta"),
        ("inpo_loss", {"eta": 0.1, "tau": -0.1}, "tau"),
        ("inpo_loss", {"eta": jnp.ones(2), "tau": 0.1}, "eta"),
        ("inpo_loss", {"eta": 0.1, "tau": 0.1, "preferences": jnp.ones(2)}, "preferences"),
    ],
)
def test_refused(name, hyper, named):
    count = {"online_ipo_loss": 3, "dno_loss": 4, "inpo_loss": 6}[name]
    with pytest.raises(Exception, match=named):
        getattr(losses, name)(*[jnp.ones(3)] * count, **hyper)
    if name == "online_ipo_loss":
        with pytest.raises(ValueError, match="tau"):
            losses.expanded_ipo_loss(FIRST, SECOND, tau=-1.0)
