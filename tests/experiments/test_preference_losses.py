import math

import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses
from bellmax.agents import preference
from bellmax.experiments import errors, preference_losses

OPTIONS = preference_losses.LossOptions(beta=0.5, label_smoothing=0.0, sft_weight=0.02)
PAIR = preference.PairLogProbs(
    chosen_log_probs=jnp.array([-3.0, -6.0]),
    rejected_log_probs=jnp.array([-4.0, -2.0]),
    chosen_reference_log_probs=jnp.array([-3.5, -5.0]),
    rejected_reference_log_probs=jnp.array([-3.0, -2.5]),
    chosen_lengths=jnp.array([2.0, 4.0]),
    rejected_lengths=jnp.array([3.0, 1.0]),
)
# Log-ratios: chosen 0.5 and -1, rejected -1 and 0.5; margins 1.5 and -1.5.
MARGIN = np.array([1.5, -1.5])


def value(name, **changes):
    return np.asarray(preference_losses.make_pair_loss(name, OPTIONS._replace(**changes))(PAIR))


def test_convex_functions_of_the_scaled_margin():
    z = 0.5 * MARGIN
    expected = {
        "logistic": np.log1p(np.exp(-z)),
        "exponential": np.exp(-z),
        "squared": (z - 1) ** 2,
        "hinge": np.maximum(0, 1 - z),
        "truncated_quadratic": np.maximum(0, 1 - z) ** 2,
        "savage": 1 / (1 + np.exp(z)) ** 2,
    }
    assert set(expected) == set(preference_losses.CONVEX_FUNCTIONS)
    for name, numbers in expected.items():
        result = value(name)
        # Up to the factor that the library gives the logistic loss (natural logarithm or base 2).
        factor = 1 / math.log(2) if np.allclose(result, numbers / math.log(2), rtol=1e-5) else 1.0
        np.testing.assert_allclose(result, factor * numbers, rtol=1e-5, err_msg=name)


def test_label_smoothing_reaches_the_conservative_and_the_robust_loss():
    right, wrong = (np.log1p(np.exp(-sign * 0.5 * MARGIN)) for sign in (1, -1))
    np.testing.assert_allclose(
        value("logistic", label_smoothing=0.1), 0.9 * right + 0.1 * wrong, rtol=1e-5
    )
    np.testing.assert_allclose(
        value("robust_dpo", label_smoothing=0.1), (0.9 * right - 0.1 * wrong) / 0.8, rtol=1e-5
    )


def test_rpo_adds_the_likelihood_of_the_chosen_completion():
    plain = value("rpo", sft_weight=0.0)
    np.testing.assert_allclose(plain, np.log1p(np.exp(-0.5 * MARGIN)), rtol=1e-5)
    extra = value("rpo") - plain
    np.testing.assert_allclose(extra, 0.5 * 0.02 * np.array([3.0, 6.0]), rtol=1e-4)


def test_length_normalised_divides_each_log_ratio_by_its_length():
    margin = np.array([0.5 / 2 + 1 / 3, -1 / 4 - 0.5])
    np.testing.assert_allclose(
        value("length_normalised_dpo"), np.log1p(np.exp(-0.5 * margin)), rtol=1e-5
    )


def test_names_are_those_of_the_library():
    for name, convex_fn in preference_losses.CONVEX_FUNCTIONS.items():
        assert convex_fn is getattr(losses, name)


def test_an_unknown_name_lists_the_losses():
    with pytest.raises(errors.UserError) as raised:
        preference_losses.make_pair_loss("hing", OPTIONS)
    assert "Did you mean 'hinge'?" in str(raised.value)
    for name in preference_losses.PAIR_LOSSES:
        assert name in str(raised.value)
