"""The rules of the claims on models of future states decide as they say."""

import numpy as np
import pytest

from bellmax.experiments.claims import (
    registry,
    td_flow_circle,
    td_flow_curved_path,
    td_flow_long_horizon,
    td_flow_maze,
)

DISTANCES = {
    "linear/td_cfm": 0.04,
    "linear/coupled_td_cfm": 0.005,
    "linear/td2_cfm": 0.002,
    "curved/coupled_td_cfm": 0.012,
    "curved/td2_cfm": 0.0025,
}


def test_circle_rule_holds_in_the_order_of_the_paper():
    assert all(td_flow_circle.verdicts(DISTANCES).values())


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"linear/td_cfm": 0.0149}, "TD-CFM 3 times behind TD-CFM(C)"),
        ({"linear/td2_cfm": 0.0051, "curved/td2_cfm": 0.0051}, "TD2-CFM not behind TD-CFM(C)"),
        ({"curved/coupled_td_cfm": 0.0074}, "a curved path hurts TD-CFM(C)"),
        ({"curved/td2_cfm": 0.0031}, "a curved path does not hurt TD2-CFM"),
    ],
)
def test_each_part_of_the_circle_rule_can_fail(change, failing):
    found = td_flow_circle.verdicts(DISTANCES | change)
    assert [name for name, held in found.items() if not held] == [failing]


def test_td_cfm_must_be_three_times_behind_both():
    found = td_flow_circle.verdicts(DISTANCES | {"linear/td_cfm": 0.0059})
    assert sum(found.values()) == 3


@pytest.mark.parametrize(
    ("coupled", "twice", "held"),
    [
        ((0.006, 0.011), (0.001, -0.002), True),
        ((0.006, 0.010), (0.001, 0.002), False),
        ((0.006, 0.010), (-0.0013, 0.0), False),
        ((0.006, -0.010), (0.001, 0.001), False),
    ],
)
def test_a_curved_path_must_cost_five_times_as_much_in_every_seed(coupled, twice, held):
    costs = {"coupled_td_cfm": np.array(coupled), "td2_cfm": np.array(twice)}
    assert td_flow_curved_path.holds(costs) == held


def test_the_cost_of_a_curved_path_is_what_it_adds(tmp_path, monkeypatch):
    def train(seed, path, directory):
        shift = {"linear": 0.0, "curved": 0.01 * seed}[path]
        return np.array([0, 10]), {
            "coupled_td_cfm": np.array([1.0, 0.1 + shift]),
            "td2_cfm": np.array([1.0, 0.2 + shift / 10]),
        }

    monkeypatch.setattr(td_flow_curved_path, "train", train)
    outcome = registry.load("td_flow_curved_path").run(2, tmp_path)
    assert outcome.passed
    costs = outcome.details["costs"]
    np.testing.assert_allclose(costs["coupled_td_cfm"], [0.03, 0.04], rtol=1e-9)
    np.testing.assert_allclose(costs["td2_cfm"], [0.003, 0.004], rtol=1e-9)
    assert "a curved path costs coupled_td_cfm +0.0350 (+0.0300 to +0.0400)" in outcome.figure
    assert outcome.picture is not None
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")


def maze_means():
    """Measures in the order of the paper's table, lower is better."""
    order = ("td2_cfm", "coupled_td_cfm", "td2_dd", "td_cfm", "td_dd", "vae", "gan")
    nll = ("td2_cfm", "coupled_td_cfm", "td_cfm", "td2_dd", "td_dd")
    return {
        (name, discount): {"emd": place, "value_mse": place}
        | ({"nll": nll.index(name)} if name in nll else {})
        for place, name in enumerate(order)
        for discount in (0.9, 0.98)
    }


def test_maze_rule_holds_in_the_order_of_the_paper():
    assert td_flow_maze.violations(maze_means()) == []


@pytest.mark.parametrize(("measure", "ahead", "behind"), td_flow_maze.ORDER)
def test_each_order_of_the_maze_is_asked_for(measure, ahead, behind):
    means = maze_means()
    # No more than as good: the one that should be ahead has the other's number.
    means[ahead, 0.98] = means[ahead, 0.98] | {measure: means[behind, 0.98][measure]}
    assert f"{measure} of {ahead} below {behind} at 0.98" in td_flow_maze.violations(means)


@pytest.mark.parametrize(
    ("twice", "expected"),
    [((5, 4, 1, 1), 200.0), ((1, 4, 1, 1), 200.0), ((1, 1, 1, 1), 0.0), ((1, 1, 1, 3), np.inf)],
)
def test_ahead_means_ahead_to_the_end(twice, expected):
    curves = {
        "td2_cfm": np.array(twice),
        "coupled_td_cfm": np.array([3, 3, 3, 2]),
        "td_cfm": np.array([2, 3, 4, 4]),
    }
    assert td_flow_long_horizon.ahead_from(np.arange(4) * 100.0, curves) == expected
