"""KTO, SPPO, SimPO and ORPO against numbers worked out from their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

CHOSEN, REJECTED = jnp.array([0.5, -0.5, 0.8]), jnp.array([-0.2, 0.6, -1.0])
RATIOS = jnp.concatenate([CHOSEN, REJECTED])
DESIRABLE = jnp.array([True, True, True, False, False, False])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-7)


def test_kto_values_and_gradients():
    baseline = losses.kto_baseline(jnp.array([0.3, -0.1, 0.25]))
    assert_close(baseline, 0.15)

    def run(ratios):
        return losses.kto_loss(ratios, DESIRABLE, baseline, beta=0.1)

    expected = [0.49125089, 0.51624428, 0.48375572, 0.49125089, 0.51124810, 0.47128164]
    assert_close(run(RATIOS), expected)
    slopes = [-0.02499235, -0.02497361, -0.02497361, 0.02499235, 0.02498735, 0.02491753]
    assert_close(jax.grad(lambda r: run(r).sum())(RATIOS), slopes)


def test_kto_baseline_is_never_negative_and_skips_what_is_masked():
    assert losses.kto_baseline(jnp.array([-0.3, 0.1])) == 0
    mask = jnp.array([1, 0, 1])
    found = losses.kto_baseline(jnp.array([0.3, jnp.nan, 0.1]), mask=mask)
    assert_close(found, 0.2)
    assert losses.kto_baseline(jnp.array([jnp.nan]), mask=jnp.array([0])) == 0


def test_kto_is_half_its_weight_at_the_baseline_and_bounded_by_it():
    weights = {"desirable_weight": 2.0, "undesirable_weight": 3.0}

    def run(ratios, wanted):
        return losses.kto_loss(ratios, jnp.full(ratios.shape, wanted), 0.7, beta=1.0, **weights)

    ratios = jnp.linspace(-9.0, 9.0, 41)
    for wanted, weight, sign in ((True, 2.0, -1), (False, 3.0, 1)):
        assert_close(run(jnp.array([0.7]), wanted), [weight / 2])
        values = run(ratios, wanted)
        assert bool(jnp.all((values > 0) & (values < weight)))
        assert bool(jnp.all(sign * jnp.diff(values) > 0))


def test_kto_expected_gradient_of_a_noisy_label():
    # At baseline 0: -(2 p - 1) beta sigma'(beta r), the same completion desirable with chance p.
    p, beta, ratio = 0.8, 0.5, jnp.float32(1.3)
    slope = jax.grad(lambda r, wanted: losses.kto_loss(r, wanted, 0.0, beta=beta))
    found = p * slope(ratio, jnp.array(True)) + (1 - p) * slope(ratio, jnp.array(False))
    s = 1 / (1 + np.exp(-beta * 1.3))
    np.testing.assert_allclose(found, -(2 * p - 1) * beta * s * (1 - s), rtol=1e-5)


def test_kto_takes_numbers_as_labels():
    found = losses.kto_loss(RATIOS, DESIRABLE.astype(jnp.int32), 0.0, beta=0.1)
    np.testing.assert_array_equal(found, losses.kto_loss(RATIOS, DESIRABLE, 0.0, beta=0.1))


def test_sppo_values():
    wins, defeats = jnp.array([0.8, 0.6, 0.9]), jnp.array([0.3, 0.45, 0.2])
    found = losses.sppo_loss(CHOSEN, REJECTED, wins, defeats, eta=10.0)
    assert_close(found, [4.745, 1.73, 7.12])
    # Hard labels, without the 1/2: targets of plus and minus 5.
    hard = 2 * losses.sppo_loss(CHOSEN, REJECTED, jnp.ones(3), jnp.zeros(3), eta=10.0)
    assert_close(hard, [43.29, 61.61, 33.64])


def test_sppo_regression_in_a_table():
    # A cyclic game of three responses; the loss is the mean over the previous policy.
    game = jnp.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
    previous = jnp.array([0.5, 0.3, 0.2])

    def loss(policy):
        ratios = jnp.log(policy / previous)
        return previous @ losses.sppo_completion_loss(ratios, game @ previous, eta=2.0)

    np.testing.assert_allclose(
        loss(jnp.array([0.55418846, 0.22413616, 0.22167538])), 2.446395e-4, rtol=2e-3
    )
    # The multiplicative-weights step is near it and not its minimiser: the normaliser is replaced.
    np.testing.assert_allclose(
        loss(jnp.array([0.55487983, 0.22316824, 0.22195193])), 2.514298e-4, rtol=2e-3
    )


def test_simpo_by_hand():
    # 2 * (-0.5 + 0.9) - 0.3 = 0.5 and 2 * (-1 + 0.4) - 0.3 = -1.5.
    found = losses.simpo_loss(jnp.array([-0.5, -1.0]), jnp.array([-0.9, -0.4]), beta=2.0, gamma=0.3)
    assert_close(found, np.log1p(np.exp([-0.5, 1.5])))


def test_orpo_by_hand():
    # p = 1/2 has odds 1, p = 4/5 has odds 4: -log sigma(log(1 / 4)) = log 5 and log(5 / 4).
    half, most = np.log(0.5), np.log(0.8)
    found = losses.orpo_loss(jnp.array([half, most]), jnp.array([most, half]), weight=0.1)
    expected = [-half + 0.1 * np.log(5), -most + 0.1 * np.log(1.25)]
    assert_close(found, expected)


@pytest.mark.parametrize("log_prob", [-1e4, -50.0, -1e-3, -1e-6, -1e-12, 0.0])
def test_orpo_is_finite_from_impossible_to_certain(log_prob):
    def run(w, r):
        return losses.orpo_loss(w, r, weight=1.0)

    other = jnp.float32(-0.7)
    for inputs in ((jnp.float32(log_prob), other), (other, jnp.float32(log_prob))):
        value, slopes = jax.value_and_grad(run, argnums=(0, 1))(*inputs)
        assert np.isfinite(value)
        assert np.isfinite(slopes).all()


def test_orpo_odds_keep_their_digits_near_certainty():
    # log odds of p = 1 - 1e-4 against even odds: log(9999); a naive log(1 - p) loses 3 digits.
    log_prob = jnp.float32(np.log1p(-1e-4))
    found = losses.orpo_loss(log_prob, jnp.float32(np.log(0.5)), weight=1.0) + log_prob
    np.testing.assert_allclose(found, np.log1p(1 / 9999), rtol=2e-3)
