"""The claims about games and trees hold by their own rules, and the rules can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.experiments.claims import (
    inpo_last_iterate,
    ipo_md_equivalence,
    mtpo_tabular,
    mtpo_tuned_rlhf,
    nash_md_last_iterate,
    nlhf_rater_types,
    registry,
)

QUICK = ("nash_md_last_iterate", "inpo_last_iterate", "nlhf_rater_types")
SLOW = ("ipo_md_equivalence", "mtpo_tabular")


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_quick_claims_hold(name, tmp_path):
    outcome = registry.load(name).run(1, tmp_path)
    assert outcome.passed, outcome.figure
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_claims_hold_on_their_seeds(name, tmp_path):
    claim = registry.load(name)
    outcome = claim.run(claim.default_seeds, tmp_path)
    assert outcome.passed, outcome.figure
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_tuned_rlhf_is_nearly_as_good_at_this_alpha(tmp_path):
    # The claim fails, and says so: RLHF at its best alpha loses, but by less than the rule asks.
    claim = registry.load("mtpo_tuned_rlhf")
    outcome = claim.run(claim.default_seeds, tmp_path)
    assert not outcome.passed
    assert outcome.details["least"] >= mtpo_tuned_rlhf.LEAST_SCORE
    assert 0.5 < outcome.details["mean"] < mtpo_tuned_rlhf.LEAST_MEAN_SCORE


def test_nash_md_rule_fails_for_what_does_not_converge():
    with jax.enable_x64(True):
        game = nash_md_last_iterate.games(0)["asymmetric_cycle"]
        found = nash_md_last_iterate.solve("asymmetric_cycle", game)
    assert nash_md_last_iterate.holds(found)
    for change in (
        {"within_bound": 1.1},
        {"least_slack": -1e-6},
        {"slope": -0.5},
        {"known_error": 1e-6},
        {"largest_fall": 1e-6},
        {"kls": {**found.kls, "mirror descent, constant step": np.array([1e-6])}},
    ):
        assert not nash_md_last_iterate.holds(found._replace(**change))


def test_inpo_rule_fails_for_dno_and_for_a_spiral_that_is_none():
    with jax.enable_x64(True):
        game = inpo_last_iterate.cycle(3)
        found = inpo_last_iterate.solve(game)
        nash = inpo_last_iterate.plain_equilibrium(game)
    np.testing.assert_allclose(np.asarray(game.preference) @ nash, 0.5, atol=1e-6)
    assert inpo_last_iterate.holds(found)
    assert not inpo_last_iterate.holds(found._replace(inpo=found.rising))
    assert not inpo_last_iterate.holds(found._replace(rising=-found.rising))
    assert not inpo_last_iterate.known_holds(found)


@pytest.mark.parametrize("seed", [0, 17])
def test_gradients_of_ipo_md_and_nash_md_pg(seed):
    with jax.enable_x64(True):
        found = ipo_md_equivalence.gradients(seed)
    assert max(found["identity"], found["covariance"], found["stationary"]) < 1e-12
    assert found["disagreement"] > 1e-3


def test_spread_sees_a_method_that_ends_elsewhere():
    policies = {name: np.array([0.5, 0.5]) for name in ("solver", "IPO-MD", "mixture", "warmer")}
    assert ipo_md_equivalence.spread(policies) == 0
    for name in ("IPO-MD", "warmer"):
        moved = {**policies, name: np.array([0.4, 0.6])}
        assert ipo_md_equivalence.spread(moved) == pytest.approx(0.1)


def test_offline_ipo_moves_with_its_data():
    # Known: (.36563909, .24783368, .38652723) and (.27649123, .43122222, .29228655).
    with jax.enable_x64(True):
        offline, online = ipo_md_equivalence.data_effect()
    assert offline == pytest.approx(0.43122222 - 0.24783368, abs=1e-7)
    assert online < 1e-8


def test_rater_types_closed_form_is_an_equilibrium():
    for imbalance in (-0.3, 0.0, 0.2):
        shares = nlhf_rater_types.closed_form(np.array(imbalance))
        first, other = 1 / 3 - imbalance, 1 / 3 + imbalance / 2
        advantages = np.array([[0, -first, other], [first, 0, -other], [-other, other, 0]])
        np.testing.assert_allclose(advantages @ shares, 0, atol=1e-15)


@pytest.mark.slow
def test_bradley_terry_trees_cost_little_reward():
    with jax.enable_x64(True):
        share = float(mtpo_tabular.reward_share(jax.random.key(5)))
    assert 0.9 < share <= 1 + 1e-9


def test_bounds_of_trees_are_those_of_both_methods():
    with jax.enable_x64(True):
        tree = mtpo_tabular.random_tree(jax.random.key(0))
        bounds = mtpo_tabular.bounds(tree, np.array([0, 9]))
    # 32 and 8 times the same; like 1 / (T + 1).
    np.testing.assert_allclose(bounds["mtpo"] / bounds["mtpo_mixture"], 4)
    np.testing.assert_allclose(bounds["mtpo"][0] / bounds["mtpo"][1], 10)
    assert jnp.all(bounds["mtpo"] >= 32 * 3 / 0.01 / np.array([1, 10]))
