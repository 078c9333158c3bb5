"""The claims about losses of completions hold by their own rules, and the rules can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.experiments.claims import (
    agro_tabular,
    copg_bandit,
    jepo_bounds,
    mdpo_inner_steps,
    pass_at_k_types,
    registry,
)

NAMES = ("agro_tabular", "copg_bandit", "jepo_bounds", "mdpo_inner_steps", "pass_at_k_types")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seeds"), [("agro_tabular", 1), ("jepo_bounds", 2), ("mdpo_inner_steps", 1)]
)
def test_quick_claims_hold(name, seeds, tmp_path):
    outcome = registry.load(name).run(seeds, tmp_path)
    assert outcome.passed, outcome.figure
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_claims_hold_on_their_seeds(name, tmp_path):
    claim = registry.load(name)
    outcome = claim.run(claim.default_seeds, tmp_path)
    assert outcome.passed, outcome.figure
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")


def test_limits_of_the_bandit_are_the_known_ones():
    # By gradient flow, apart from the library: tests of the losses have the policies.
    with jax.enable_x64(True):
        found = copg_bandit.limits()
        start = copg_bandit.regret(jnp.log(jnp.full(3, 1 / 3)))
    np.testing.assert_allclose(start, 0.2918666307, atol=1e-10)
    known = {
        "CoPG": 0.0,
        "policy gradient, value": 0.0148174262,
        "IPO": 0.1525306579,
        "policy gradient": 0.6377927,
    }
    for name, regret in known.items():
        np.testing.assert_allclose(found[name], regret, atol=1e-7)


def test_bandit_training_leaves_the_start():
    regrets = copg_bandit.train(jnp.asarray(0), 3, 1024)
    for name, found in regrets.items():
        assert found.shape == (4,)
        moved = np.diff(np.asarray(found))
        worse = name == "policy gradient"
        np.testing.assert_array_equal(np.sign(moved), 1 if worse else -1)


def test_bandit_rule_fails_for_another_order():
    ends = {"CoPG": 0.0, "policy gradient, value": 0.1, "IPO": 0.2, "policy gradient": 0.4}
    held = {name: np.array([[0.3, end, end]] * 2) for name, end in ends.items()}
    assert copg_bandit.parts(held, (1, 2)) == {"order": True, "zero": True}
    for first, second in (("CoPG", "IPO"), ("policy gradient, value", "IPO")):
        swapped = {**held, first: held[second], second: held[first]}
        assert not copg_bandit.parts(swapped, (1, 2))["order"]
    slow = {**held, "CoPG": held["CoPG"] + 0.01}
    slow["CoPG"][:, 0] = 0.3
    assert copg_bandit.parts(slow, (1, 2)) == {"order": True, "zero": False}


def test_agro_rule_fails_when_methods_are_swapped():
    curves, samples = {}, {}
    for law in agro_tabular.LAWS:
        line = np.ones(agro_tabular.NUM_STEPS + 1)
        curves[law] = {"AGRO": 1e-7 * line, "policy gradient": 0.1 * line}
        samples[law] = {name: curve[None] for name, curve in curves[law].items()}
    ends = {law: np.array(end) for law, end in agro_tabular.KNOWN_ENDS.items()}
    held = agro_tabular.parts(curves, ends, samples)
    assert held == {"known": False, "stalls": True, "sampled": True}

    def swapped(found):
        return {
            law: {"AGRO": by["policy gradient"], "policy gradient": by["AGRO"]}
            for law, by in found.items()
        }

    assert not agro_tabular.parts(swapped(curves), ends, samples)["stalls"]
    assert not agro_tabular.parts(curves, ends, swapped(samples))["sampled"]


@pytest.mark.parametrize("k", [2, 4, 8])
def test_best_policy_of_hidden_types(k):
    # No other probability of A has a higher pass@k.
    others = np.linspace(0.001, 0.999, 999)
    highest = pass_at_k_types.closed_form(pass_at_k_types.best(k), k)
    assert np.all(pass_at_k_types.closed_form(others, k) <= highest)
    assert abs(others[pass_at_k_types.closed_form(others, k).argmax()] - 0.5) < 0.101


def test_hidden_types_gradient_scores_and_ascent():
    with jax.enable_x64(True):
        assert pass_at_k_types.gradient_error() < 1e-12
        for k, known in pass_at_k_types.KNOWN.items():
            found = [pass_at_k_types.score(pass_at_k_types.best(k), n) for n in (1, 2, 8)]
            np.testing.assert_allclose(found, known, atol=1e-6)
        path = pass_at_k_types.ascend(jnp.asarray(0.1), 2, 1000)
    np.testing.assert_allclose(path[-1], 0.6, atol=1e-9)


@pytest.mark.parametrize("way", pass_at_k_types.WAYS)
def test_sampled_training_turns_to_both_types(way):
    path = pass_at_k_types.sample(jnp.asarray(0), 4, way, 300)
    assert path[0] == pytest.approx(0.9)
    assert abs(np.mean(path[150:]) - pass_at_k_types.best(4)) < 0.03


def test_trade_off_needs_every_policy_at_its_own_k():
    ends = {k: pass_at_k_types.best(k) for k in pass_at_k_types.SIZES}
    with jax.enable_x64(True):
        assert pass_at_k_types.trade_off(0.9, ends)
        assert not pass_at_k_types.trade_off(0.9, {**ends, 8: ends[2], 2: ends[8]})
        assert not pass_at_k_types.trade_off(0.9, {**ends, 1: 0.8})


def test_jepo_rule_fails_for_other_numbers():
    with jax.enable_x64(True):
        found = jepo_bounds.enumerate_all()
    gains = {n: np.full((2, 5), float(n)) for n in jepo_bounds.SIZES}
    assert all(jepo_bounds.parts(found, gains).values())
    assert not jepo_bounds.parts(found._replace(bounds=found.bounds[::-1]), gains)["bounds"]
    assert not jepo_bounds.parts(found._replace(gap=1e-6), gains)["bounds"]
    assert not jepo_bounds.parts(found._replace(gradient_error=1e-6), gains)["gradients"]
    wrong = {size: pair[::-1] for size, pair in found.variances.items()}
    assert not jepo_bounds.parts(found._replace(variances=wrong), gains)["gradients"]
    assert not jepo_bounds.parts(found, {**gains, 4: gains[1]})["efficiency"]


def test_jepo_ascent_gains_no_more_than_there_is():
    with jax.enable_x64(True):
        path = jepo_bounds.ascend(3, 2)
    answers = -np.random.default_rng(3).exponential(2.5, 5)
    most = answers.max() - np.log(np.exp(answers).mean())
    assert path.kl[0] == path.gain[0] == 0
    assert np.all(np.diff(path.kl) > 0)
    assert np.all(np.diff(path.gain) > 0)
    assert 0.8 * most < path.gain[-1] < most


def test_random_mdps_are_evaluated_exactly():
    with jax.enable_x64(True):
        mdp = mdpo_inner_steps.random_mdp(0)
        value, advantages, visits = mdpo_inner_steps.evaluate(mdp, jnp.zeros(mdp.reward.shape))
        best = mdpo_inner_steps.best_return(mdp)
    # Rewards over visits are the return; advantages average to 0 over the policy's actions.
    np.testing.assert_allclose(np.asarray(visits).sum(), 1)
    by_visits = np.asarray(visits) @ np.asarray(mdp.reward).mean(axis=1) / (1 - 0.9)
    np.testing.assert_allclose(value, by_visits)
    np.testing.assert_allclose(np.asarray(advantages).mean(axis=1), 0, atol=1e-12)
    assert best > value


def test_mdpo_rule_fails_for_steps_that_do_not_help():
    scores = {"m = 1": 0.5, "m = 5": 0.93, "m = 10": 0.97, "m = 20": 0.98, "mirror step": 1.0}
    found = mdpo_inner_steps.Found(
        1e-16,
        {1: 0.1, 5: 0.05, 10: 0.01, 20: 1e-3, 5000: 1e-12},
        {name: np.array([0.0, end]) for name, end in scores.items()},
    )
    assert all(mdpo_inner_steps.parts([found, found]).values())
    low = {**found.scores, "m = 10": np.array([0.0, 0.8])}
    assert not mdpo_inner_steps.parts([found, found._replace(scores=low)])["close"]
    high = {**found.scores, "m = 1": np.array([0.0, 0.95])}
    assert not mdpo_inner_steps.parts([found, found._replace(scores=high)])["slow"]
    assert not mdpo_inner_steps.parts([found._replace(gradient_error=1e-6)])["gradient"]
    far = {**found.distances, 20: 0.02}
    assert not mdpo_inner_steps.parts([found._replace(distances=far)])["minimum"]
