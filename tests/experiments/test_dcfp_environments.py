"""The claim about DCFP, QDP and CDP in four environments runs, and its rule can fail."""

import dataclasses

import numpy as np
import pytest

from bellmax.experiments.claims import dcfp_environments as claim
from bellmax.experiments.claims import registry

SAMPLES = np.array([100, 1000, 10_000])


def ideal() -> claim.Found:
    """Returns errors that are as the rule has them, at two discounts."""
    places = [(name, discount) for name in claim.ENVIRONMENTS for discount in (0.8, 0.99)]
    estimation = dict.fromkeys(places, SAMPLES ** (-0.5))
    certain = {place: place[0] in claim.CERTAIN for place in places}
    # CDP leaves gamma^k / (1 - gamma).
    left = {gamma: {n: gamma**n / (1 - gamma) for n in claim.SWEEPS} for gamma in (0.8, 0.99)}
    return claim.Found(
        samples=claim.SAMPLES,
        num_atoms=100,
        errors={
            place: {
                "dcfp": 0.03 + estimation[place],
                "qdp": estimation[place] + (0.01 if certain[place] else 0.04),
                "cdp": 0.03 + estimation[place] + left[place[1]][30],
            }
            for place in places
        },
        standard_errors={
            place: {method: 0.01 * np.ones(3) for method in ("dcfp", "qdp", "cdp")}
            for place in places
        },
        estimation=estimation,
        sweeps={
            place: {n: 0.03 + error for n, error in left[place[1]].items()} for place in places
        },
        biases={place: {"dcfp": 0.03, "qdp": 0.04} for place in places},
        seconds={
            place: {"dcfp": 0.01, "qdp": 0.02, **{f"cdp {n}": 1e-5 * n for n in claim.SWEEPS}}
            for place in places
        },
    )


def failing(found: claim.Found) -> set[str]:
    """Returns the parts of the rule that fail."""
    return {part for part, where in claim.broken(found).items() if where}


def swapped(found: claim.Found, first: str, second: str) -> claim.Found:
    """Returns errors of which two methods have each other's."""
    names = {first: second, second: first}
    return found._replace(
        errors={
            place: {method: row[names.get(method, method)] for method in row}
            for place, row in found.errors.items()
        }
    )


def test_rule_holds_for_what_it_asks_for():
    assert failing(ideal()) == set()


def test_rule_fails_where_methods_are_swapped():
    found = swapped(ideal(), "dcfp", "qdp")
    assert claim.broken(found)["certain"] == ["low_random 0.8", "low_random 0.99"]
    assert failing(swapped(ideal(), "dcfp", "cdp")) == {"noisy", "few sweeps", "bound"}
    assert failing(swapped(ideal(), "qdp", "cdp")) == {"few sweeps", "certain"}


def test_rule_sees_each_of_its_parts_fail():
    found, place = ideal(), ("chain", 0.99)
    flat = {**found.estimation, place: np.array([0.1, 0.1, 0.1])}
    assert claim.broken(found._replace(estimation=flat))["rate"] == ["chain 0.99"]
    exact = {**found.estimation, place: np.zeros(3)}
    assert failing(found._replace(estimation=exact)) == {"rate"}
    steep = {**found.estimation, place: 1 / SAMPLES}
    assert failing(found._replace(estimation=steep)) == {"rate"}
    quick = {**found.sweeps, place: dict.fromkeys(claim.SWEEPS, 0.03)}
    assert claim.broken(found._replace(sweeps=quick))["sweeps"] == ["chain"]
    never = {place: dict.fromkeys(claim.SWEEPS, 1.0) for place in found.sweeps}
    assert failing(found._replace(sweeps=never)) == {"sweeps"}
    # 100 atoms at discount 0.8 have a bias of at most 5 / sqrt(99), about 0.5025; the rate at 100
    # samples is 5^(3/2) / 10, about 1.118.
    for off, fails in ((1.6, False), (1.63, True)):
        far = {**found.errors[("chain", 0.8)], "dcfp": np.array([off, 0.01, 0.01])}
        errors = {**found.errors, ("chain", 0.8): far}
        assert ("bound" in failing(found._replace(errors=errors))) is fails


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    config = claim.make_config(3)
    keys = dataclasses.replace(
        config.fixed_points,
        environments=("two_state",),
        discounts=(0.9,),
        num_atoms=(11,),
        num_samples=(100, 10_000),
        num_sweeps=(3, 10, 100),
        estimate_sweeps=3,
        num_returns=2000,
    )
    return claim.measure(
        dataclasses.replace(config, fixed_points=keys), tmp_path_factory.mktemp("small")
    )


@pytest.mark.slow
def test_a_small_run_measures_every_place(small):
    assert list(small.errors) == [("two_state", 0.9)]
    for place, errors in small.errors.items():
        assert set(errors) == {"dcfp", "qdp", "cdp"}
        assert all(row.shape == (2,) and np.all(row > 0) for row in errors.values())
        assert list(small.sweeps[place]) == [3, 10, 100]
        assert set(small.seconds[place]) == {"dcfp", "qdp", "cdp 3", "cdp 10", "cdp 100"}
    # The bias of eleven atoms on two states at 0.9 is 0.3365; the truth is good to a tenth.
    np.testing.assert_allclose(small.biases["two_state", 0.9]["dcfp"], 0.3365, atol=0.15)
    assert small.estimation["two_state", 0.9][1] < small.estimation["two_state", 0.9][0]
    assert -0.8 < claim.slope(small, ("two_state", 0.9)) < -0.2
    assert claim.sweeps_needed(small, ("two_state", 0.9)) == 100


def test_a_small_run_is_judged_and_drawn(small):
    failures = claim.broken(small)
    assert not failures["bound"]
    panels = claim.panels(small)
    assert len(panels) == 2
    assert {len(panel.series) for panel in panels} == {3, 4}


@pytest.mark.slow
def test_the_reading_of_the_environments_fails_where_bias_decides(tmp_path):
    # The claim fails, and says why: DCFP's and QDP's biases do not go with the environments' names.
    found = registry.load("dcfp_environments")
    outcome = found.run(found.default_seeds, tmp_path)
    assert not outcome.passed
    assert outcome.details["failures"] == {
        "bound": [],
        "rate": [],
        "few sweeps": [],
        "sweeps": [],
        "noisy": [f"high_random {discount:g}" for discount in claim.DISCOUNTS],
        "certain": ["low_random 0.99"],
    }
    # QDP drops what is rarer than half of a quantile, whatever their number.
    rare = outcome.details["biases_by_atoms"]["low_random 0.99"]["qdp"]
    np.testing.assert_allclose(rare, rare[0], rtol=1e-3)
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")
