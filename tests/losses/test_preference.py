"""The GPO family: numbers worked out in float64 from the formulas, identities, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

CHOSEN_LOG_PROBS = jnp.array([-5.0, -7.5, -3.2])
REJECTED_LOG_PROBS = jnp.array([-6.0, -6.5, -9.0])
CHOSEN = CHOSEN_LOG_PROBS - jnp.array([-5.5, -7.0, -4.0])
REJECTED = REJECTED_LOG_PROBS - jnp.array([-5.8, -7.1, -8.0])
# The margins are 0.7, -1.1 and 1.8.

VALUES = {
    "logistic": ([0.65875956, 0.74965892, 0.60719172], [0.40318605, 1.38733533, 0.15297761]),
    "hinge": ([0.93, 1.11, 0.82], [0.3, 2.1, 0]),
    "squared": ([0.8649, 1.2321, 0.6724], [0.09, 4.41, 0.64]),
    "exponential": ([0.93239382, 1.11627807, 0.83527021], [0.4965853, 3.00416602, 0.16529889]),
    "truncated_quadratic": ([0.8649, 1.2321, 0.6724], [0.09, 4.41, 0]),
    "savage": ([0.23281314, 0.27822703, 0.20713522], [0.11009935, 0.56289023, 0.02012172]),
}
SLOPES = {
    "logistic": [-0.04825071, -0.05274723, -0.04551211],
    "squared": [-0.186, -0.222, -0.164],
    "exponential": [-0.09323938, -0.11162781, -0.08352702],
    "savage": [-0.02409583, -0.026294, -0.02257272],
    "hinge": [-0.1, -0.1, -0.1],
    "truncated_quadratic": [-0.186, -0.222, -0.164],
}


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-7)


def gpo(name, beta, **hyper):
    convex_fn = getattr(losses, name)
    return lambda w, r: losses.gpo_loss(w, r, convex_fn=convex_fn, beta=beta, **hyper)


@pytest.mark.parametrize("name", VALUES)
def test_gpo_values(name):
    for beta, expected in zip((0.1, 1.0), VALUES[name], strict=True):
        assert_close(gpo(name, beta)(CHOSEN, REJECTED), expected)


@pytest.mark.parametrize("name", SLOPES)
def test_gpo_gradients(name):
    def total(w, r):
        return gpo(name, 0.1)(w, r).sum()

    to_chosen, to_rejected = jax.grad(total, argnums=(0, 1))(CHOSEN, REJECTED)
    assert_close(to_chosen, SLOPES[name])
    np.testing.assert_allclose(to_rejected, -to_chosen)


def test_a_users_own_function_needs_no_registration():
    # Smoothed hinge of width 1, by hand: z <= 0: 1/2 - z; 0 < z < 1: (1 - z)^2 / 2; then 0.
    def smooth_hinge(z):
        return jnp.where(z <= 0, 0.5 - z, jnp.where(z < 1, jnp.square(1 - z) / 2, 0.0))

    found = losses.gpo_loss(CHOSEN, REJECTED, convex_fn=smooth_hinge, beta=1.0)
    assert_close(found, [0.045, 1.6, 0])


def test_a_function_that_overflows_on_the_other_side_needs_no_smoothing():
    margin, zero = jnp.array([200.0]), jnp.array([0.0])

    def run(m):
        return losses.gpo_loss(m, zero, convex_fn=lambda z: jnp.exp(-z), beta=1.0).sum()

    value, slope = jax.value_and_grad(run)(margin)
    assert value == 0
    assert slope == 0


def test_convex_fn_must_be_callable():
    with pytest.raises(Exception, match="convex_fn"):
        losses.gpo_loss(CHOSEN, REJECTED, convex_fn="hinge", beta=1.0)  # pyright: ignore


def test_ipo_is_squared_gpo_rescaled():
    found = losses.ipo_loss(CHOSEN, REJECTED, tau=0.1)
    np.testing.assert_allclose(found, [18.49, 37.21, 10.24], rtol=1e-6)
    np.testing.assert_allclose(found, gpo("squared", 0.2)(CHOSEN, REJECTED) / 0.04, rtol=1e-5)
    slope = jax.grad(lambda w: losses.ipo_loss(w, REJECTED, tau=0.1).sum())(CHOSEN)
    np.testing.assert_allclose(slope, [-8.6, -12.2, -6.4], rtol=1e-6)


def test_logistic_relatives_agree():
    # GPO-logistic = DPO = RPO without its likelihood = CPL-KL at lambda 1 on one step.
    expected = gpo("logistic", 0.1)(CHOSEN, REJECTED)
    ones = jnp.ones((3, 1))
    relatives = [
        losses.dpo_loss(CHOSEN, REJECTED, beta=0.1),
        losses.rpo_loss(CHOSEN, REJECTED, CHOSEN_LOG_PROBS, beta=0.1, eta=0.0),
        losses.robust_dpo_loss(CHOSEN, REJECTED, beta=0.1, label_smoothing=0.0),
        losses.cpl_loss(CHOSEN[:, None], REJECTED[:, None], ones, ones, alpha=0.1, bias=1.0),
        losses.bradley_terry_loss(0.1 * CHOSEN, 0.1 * REJECTED),
    ]
    for found in relatives:
        assert_close(found, expected)


def test_slic():
    assert_close(losses.slic_loss(CHOSEN, REJECTED, beta=0.1), VALUES["hinge"][0])
    # SLiC-HF's rank term, without a reference: max(0, delta - log pi_w + log pi_l).
    for delta, expected in ((1.0, [0, 2, 0]), (2.5, [1.5, 3.5, 0])):
        found = delta * losses.slic_loss(CHOSEN_LOG_PROBS, REJECTED_LOG_PROBS, beta=1 / delta)
        assert_close(found, expected)
    slopes = jax.grad(lambda w, r: losses.slic_loss(w, r, beta=1.0).sum(), argnums=(0, 1))(
        CHOSEN_LOG_PROBS, REJECTED_LOG_PROBS
    )
    np.testing.assert_array_equal(slopes, [[0, -1, 0], [0, 1, 0]])


def test_rpo():
    def run(**hyper):
        return losses.rpo_loss(CHOSEN, REJECTED, CHOSEN_LOG_PROBS, beta=0.1, **hyper)

    expected = [0.66125956, 0.75340892, 0.60879172]
    assert_close(run(eta=0.005), expected)
    # The factor beta is a matter of naming: 0.1 * 0.005 as a weight of its own.
    assert_close(run(eta=0.0005, scale_by_beta=False), expected)
    # The average variant: weight 0.2 on the mean over 4, 5 and 2 tokens.
    average = losses.rpo_loss(
        CHOSEN,
        REJECTED,
        CHOSEN_LOG_PROBS / jnp.array([4.0, 5.0, 2.0]),
        beta=0.1,
        eta=0.2,
        scale_by_beta=False,
    )
    assert_close(average, [0.90875956, 1.04965892, 0.92719172])


@pytest.mark.parametrize(
    ("eta", "steps", "expected"),
    [
        (0.0, 10, [0.271170, 0.120971, 0.607859]),
        (0.0, 100, [0.051612, 0.002817, 0.945570]),
        (0.5, 100, [0.251052, 0.096618, 0.652330]),
    ],
)
def test_likelihood_keeps_the_chosen_completion_alive(eta, steps, expected):
    # Three responses with shared features: DPO moves its mass to the one that is in no pair.
    features = jnp.array([[1.0, 0.0], [2.0, -1.0], [0.0, 1.0]])

    def loss(theta):
        log_probs = jax.nn.log_softmax(features @ theta)
        ratios = log_probs + jnp.log(3.0)
        return losses.rpo_loss(ratios[0], ratios[1], log_probs[0], beta=1.0, eta=eta)

    def step(_, theta):
        return theta - 0.1 * jax.grad(loss)(theta)

    theta = jax.lax.fori_loop(0, steps, step, jnp.zeros(2))
    np.testing.assert_allclose(jax.nn.softmax(features @ theta), expected, atol=2e-6)


def test_robust_dpo_is_unbiased_under_flips():
    rate = 0.3

    def run(w, r):
        return losses.robust_dpo_loss(w, r, beta=1.0, label_smoothing=rate)

    # A label is seen as it is with probability 1 - rate, and flipped otherwise.
    expectation = (1 - rate) * run(CHOSEN, REJECTED) + rate * run(REJECTED, CHOSEN)
    assert_close(expectation, losses.dpo_loss(CHOSEN, REJECTED, beta=1.0))


def test_conservative_dpo_by_hand():
    # 0.8 of the loss of the label and 0.2 of the loss of the opposite one.
    right, wrong = np.array(VALUES["logistic"][1]), np.log1p(np.exp([0.7, -1.1, 1.8]))
    found = losses.dpo_loss(CHOSEN, REJECTED, beta=1.0, label_smoothing=0.2)
    assert_close(found, 0.8 * right + 0.2 * wrong)


def test_length_normalised():
    # Ratios 0.5 / 2 and -0.2 / 4; -0.5 / 5 and 0.6 / 3; 0.8 / 1 and -1 / 10.
    chosen_lengths, rejected_lengths = jnp.array([2, 5, 1]), jnp.array([4, 3, 10])
    margin = np.array([0.25 + 0.05, -0.1 - 0.2, 0.8 + 0.1])
    lengths = (chosen_lengths, rejected_lengths)
    found = losses.length_normalised_dpo_loss(CHOSEN, REJECTED, *lengths, beta=2.0)
    assert_close(found, np.log1p(np.exp(-2 * margin)))
    # The IPO of several trainers: (margin - 1 / (2 tau))^2 on averaged ratios.
    tau = 0.25
    squared = losses.length_normalised_dpo_loss(
        CHOSEN, REJECTED, *lengths, beta=2 * tau, convex_fn=losses.squared
    )
    assert_close(squared / (4 * tau**2), (margin - 1 / (2 * tau)) ** 2)


def test_empty_completions_count_as_one_token():
    masks = jnp.array([[1.0, 1.0], [0.0, 0.0]])

    def run(log_probs):
        ratios = losses.sequence_log_probs(log_probs, masks)
        return losses.length_normalised_dpo_loss(
            ratios, jnp.zeros(2), masks.sum(-1), jnp.zeros(2), beta=1.0
        )

    values = run(jnp.full((2, 2), -1.0))
    assert_close(values, [np.log1p(np.exp(1.0)), np.log(2)])
    slopes = jax.grad(lambda x: run(x).sum())(jnp.full((2, 2), jnp.nan).at[0].set(-1.0))
    assert np.isfinite(slopes).all()
    np.testing.assert_array_equal(slopes[1], 0)


PAIRWISE = {
    **{name: gpo(name, 0.5) for name in VALUES},
    "ipo": lambda w, r: losses.ipo_loss(w, r, tau=0.3),
    "slic": lambda w, r: losses.slic_loss(w, r, beta=0.5),
    "robust": lambda w, r: losses.robust_dpo_loss(w, r, beta=0.5, label_smoothing=0.2),
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_only_the_margin_matters(name):
    shift = jnp.array([3.0, -7.0, 0.4])
    expected = PAIRWISE[name](CHOSEN, REJECTED)
    found = PAIRWISE[name](CHOSEN + shift, REJECTED + shift)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_rpo_feels_the_likelihood_and_not_the_reference():
    # A shift of both reference log-probs leaves it alone; a shift of the policy's does not.
    def run(shift_ratios, shift_likelihood):
        return losses.rpo_loss(
            CHOSEN + shift_ratios,
            REJECTED + shift_ratios,
            CHOSEN_LOG_PROBS + shift_likelihood,
            beta=0.5,
            eta=0.1,
        )

    np.testing.assert_allclose(run(-2.0, 0.0), run(0.0, 0.0), rtol=1e-5)
    np.testing.assert_allclose(run(2.0, 2.0), run(0.0, 0.0) - 0.1 * 0.5 * 2.0, rtol=1e-4)


@pytest.mark.parametrize("name", VALUES)
def test_swapping_a_pair_is_flipping_its_label(name):
    for smoothing in (0.0, 0.3, 1.0):
        found = gpo(name, 0.5, label_smoothing=smoothing)(REJECTED, CHOSEN)
        expected = gpo(name, 0.5, label_smoothing=1 - smoothing)(CHOSEN, REJECTED)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_hyper_parameters_of_each_pair():
    betas, smoothing = jnp.array([0.1, 1.0, 0.1]), jnp.array([0.0, 0.0, 1.0])
    found = losses.dpo_loss(CHOSEN, REJECTED, beta=betas, label_smoothing=smoothing)
    expected = [VALUES["logistic"][0][0], VALUES["logistic"][1][1], np.log1p(np.exp(0.18))]
    assert_close(found, expected)
    with pytest.raises(ValueError, match="beta"):
        losses.dpo_loss(CHOSEN, REJECTED, beta=betas[:, None])
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.dpo_loss(CHOSEN, REJECTED, beta=0.1, label_smoothing=smoothing[:2])


def test_errors_name_the_arguments_and_shapes():
    with pytest.raises(ValueError, match=r"rejected_log_ratios.*\(3, 1\)"):
        losses.dpo_loss(CHOSEN, REJECTED[:, None], beta=0.1)


def test_diagnostics():
    rewards = losses.implicit_rewards(CHOSEN, beta=0.1)
    assert_close(rewards, [0.05, -0.05, 0.08])
    margin = losses.preference_margin(CHOSEN, REJECTED, beta=0.1)
    assert_close(margin, [0.07, -0.11, 0.18])
    np.testing.assert_array_equal(losses.preference_accuracy(CHOSEN, REJECTED), [1, 0, 1])
    np.testing.assert_array_equal(losses.preference_accuracy(CHOSEN, CHOSEN), [0.5] * 3)
    assert np.isnan(losses.preference_accuracy(jnp.array(jnp.nan), jnp.array(0.0)))
