"""Every claim holds by its own rule, and the rules can fail."""

import numpy as np
import optax
import pytest

from bellmax.experiments import errors
from bellmax.experiments.claims import adan_trajectory, gpo_blind_spot, gpo_trade_off, registry


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adan_trajectory", "gpo_blind_spot"])
def test_quick_claims_hold(name, tmp_path):
    outcome = registry.load(name).run(1, tmp_path)
    assert outcome.passed, outcome.figure
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_trade_off_holds_on_one_seed(tmp_path):
    outcome = registry.load("gpo_trade_off").run(1, tmp_path)
    assert outcome.passed, outcome.figure
    (seed,) = outcome.details["seeds"]
    assert all(fit["gradient_norm"] < 1e-6 for fit in seed.values())


@pytest.mark.slow
def test_trade_off_holds_on_its_seeds(tmp_path):
    claim = registry.load("gpo_trade_off")
    assert claim.run(claim.default_seeds, tmp_path).passed


def test_every_claim_is_complete():
    for name in registry.names():
        claim = registry.load(name)
        assert claim.name == name
        assert claim.url.startswith("https://")
        for field in ("paper", "statement", "paper_figure", "budget", "acceptance"):
            assert getattr(claim, field), f"{name}.{field} is empty"


def test_unknown_claim_suggests_the_nearest():
    with pytest.raises(errors.UserError, match="gpo_trade_off"):
        registry.load("gpo_tradeoff")


def test_adan_rule_fails_for_another_algorithm():
    points = adan_trajectory.trajectory(optax.adam(0.1), 5)
    official = np.array(adan_trajectory.OFFICIAL["plain"])
    assert np.abs(points - official).max() > adan_trajectory.TOLERANCE


def test_trade_off_rule_fails_when_the_order_is_wrong():
    problem = gpo_trade_off.draw(0)
    curves = {name: gpo_trade_off.fit(name, problem) for name in ("logistic", "squared")}
    swapped = {
        "logistic": curves["squared"],
        "exponential": curves["squared"],
        "squared": curves["logistic"],
    }
    assert not gpo_trade_off._holds(swapped)


def test_unregularised_fits_point_the_same_way():
    # Near the reference all functions are the same linear classifier: cosines above 0.99.
    problem = gpo_trade_off.draw(1)
    kl_at_large_beta = [gpo_trade_off.fit(n, problem).kl[0] for n in ("logistic", "exponential")]
    # At equal beta the logistic function, whose f''/f' is half as large, goes about twice as far:
    # four times the KL.
    assert 2.5 < kl_at_large_beta[0] / kl_at_large_beta[1] < 5.0


def test_blind_spot_closed_form_by_hand():
    # sqrt(0.1 * 0.3) = 0.1732...; (0.1732, 0.1732, 0.6) / 0.9464 = (0.18301, 0.18301, 0.63397).
    policy, kl = gpo_blind_spot.limit()
    np.testing.assert_allclose(policy, [0.18301270, 0.18301270, 0.63397460], atol=1e-8)
    np.testing.assert_allclose(kl, 0.18809641, atol=1e-8)
