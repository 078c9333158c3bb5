"""Whole runs of `tabular`: the numbers that they find, the files that they write, their errors."""

import dataclasses
import json
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from bellmax.agents import tabular as solvers
from bellmax.configs.tabular import base
from bellmax.experiments import config as config_lib
from bellmax.experiments import (
    errors,
    metrics,
    tabular,
    tabular_config,
    tabular_games,
    tabular_trees,
)


def make(**groups) -> tabular_config.TabularConfig:
    config = base.get_config()
    config.update(groups)
    return config_lib.to_dataclass(tabular_config.TabularConfig, config)


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    """The asymmetric cycle, every method."""
    workdir = tmp_path_factory.mktemp("games")
    config = make(
        games={
            "names": ("asymmetric_cycle",),
            "methods": tuple(tabular_games.METHODS),
            "reference": (0.5, 0.3, 0.2),
        },
        train={"num_steps": 1000, "num_points": 15},
    )
    return config, workdir, tabular.solve(config, workdir)


def test_methods_converge_where_theory_says(games):
    _, _, result = games
    last = {row["method"]: row for row in result["games"]}
    kls = {method: row["kl/equilibrium"] for method, row in last.items()}
    # Known from the exact iterations: schedules, and the bias of a constant step.
    np.testing.assert_allclose(kls["nash_md"], 3.912763e-7, rtol=1e-5)
    np.testing.assert_allclose(kls["inpo"], 1.2975e-9, rtol=1e-4)
    np.testing.assert_allclose(kls["nash_md_constant"], 9.173161e-4, rtol=1e-5)
    assert max(kls["mirror_descent_constant"], kls["online_ipo"]) < 1e-15
    assert min(kls["dno"], kls["sppo"]) > 0.05
    # Self-play's average solves the plain game, which its last policy does not.
    for method in ("dno", "sppo"):
        assert last[method]["gap_unregularised/average"] < 0.1 * last[method]["gap_unregularised"]
    # Mixture 1/8: a fixed point elsewhere, whose gap is known.
    np.testing.assert_allclose(last["ipo_md"]["gap"], 0.00123541, rtol=1e-5)
    np.testing.assert_allclose(last["nash_md"]["slope"], -2, atol=0.1)
    np.testing.assert_allclose(last["inpo"]["slope"], -4, atol=0.1)


def test_games_write_their_files(games):
    config, workdir, result = games
    assert (workdir / "convergence.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((workdir / "result.json").read_text())
    assert [row["method"] for row in stored["games"]] == list(config.games.methods)
    rows = metrics.read_metrics(workdir)
    assert all({"step", "wall_time_s", "stage"} <= row.keys() for row in rows)
    mine = [row for row in rows if row["stage"] == "asymmetric_cycle.nash_md"]
    by_step = {row["step"]: row["kl/equilibrium"] for row in mine}
    np.testing.assert_allclose(by_step[10], 2.933359e-3, rtol=1e-5)
    np.testing.assert_allclose(by_step[100], 2.988539e-5, rtol=1e-5)
    assert all(kl <= 8 / (0.01 * (step + 1)) for step, kl in by_step.items())
    assert (workdir / "tensorboard" / "asymmetric_cycle.nash_md").is_dir()
    assert result["trees"] == []


def test_trees(tmp_path):
    config = make(
        trees={"names": ("deterministic", "random:2"), "methods": tuple(tabular_trees.METHODS)},
        train={"num_steps": 100, "num_points": 5},
    )
    result = tabular.solve(config, tmp_path)
    found = {(row["tree"], row["method"]): row for row in result["trees"]}
    np.testing.assert_allclose(
        found["deterministic", "mtpo"]["kl/equilibrium"], 6.912e-7, rtol=1e-3
    )
    np.testing.assert_allclose(
        found["deterministic", "mtpo_mixture"]["kl/equilibrium"], 4.054e-6, rtol=1e-3
    )
    assert all(row["kl/equilibrium"] <= row["bound"] for row in result["trees"])
    policies = {(row["tree"], row["policy"]): row for row in result["policies"]}
    for tree in config.trees.names:
        # Nobody beats the equilibrium, and tuning helps RLHF.
        rates = [row["regularised_win_rate"] for (t, _), row in policies.items() if t == tree]
        assert len(rates) == 6
        assert min(rates) >= 0.5 - 1e-12
        plain, tuned = (
            policies[tree, name]["regularised_win_rate"]
            for name in ("multi_turn_rlhf", "multi_turn_rlhf_tuned")
        )
        assert tuned < plain
    rows = metrics.read_metrics(tmp_path)
    assert {row["stage"] for row in rows} == {
        f"{tree}.{method}"
        for tree in ("deterministic", "random_2")
        for method in config.trees.methods
    }


@pytest.mark.slow
def test_a_second_run_writes_anew(tmp_path):
    config = make(
        games={"names": ("rater_types:0.1", "random:4"), "methods": ("nash_md",)},
        train={"num_steps": 20, "num_points": 3},
    )
    first = tabular.solve(config, tmp_path)
    lines = len(metrics.read_metrics(tmp_path))
    assert tabular.solve(config, tmp_path) == first
    assert len(metrics.read_metrics(tmp_path)) == lines
    # Another seed is another random game, and the same raters.
    other = tabular.solve(dataclasses.replace(config, seed=1), tmp_path)
    assert other["games"][0] == first["games"][0]
    assert other["games"][1] != first["games"][1]


def test_divergence_of_neighbours_is_exact():
    with jax.enable_x64(True):
        target = jnp.array([0.5, 0.3, 0.2, 0.0])
        shift = 1e-9 * jnp.array([1.0, -2.0, 1.0, 0.0])
        # To second order: half the sum of shift^2 / p.
        expected = 0.5 * 1e-18 * (1 / 0.5 + 4 / 0.3 + 1 / 0.2)
        found = tabular_games.divergence(target, target + shift)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        far = jnp.array([0.1, 0.2, 0.6, 0.1])
        plain = 0.5 * np.log(5) + 0.3 * np.log(1.5) + 0.2 * np.log(1 / 3)
        np.testing.assert_allclose(tabular_games.divergence(target, far), plain, rtol=1e-12)
        # What has underflowed counts as the smallest number: 0.5 * (log 0.5 - log 2.2e-308) + ...
        lost = jnp.array([0.0, 0.5, 0.5, 0.0])
        least = 0.5 * np.log(0.5 / np.finfo(float).tiny) + 0.3 * np.log(0.6) + 0.2 * np.log(0.4)
        np.testing.assert_allclose(tabular_games.divergence(target, lost), least, rtol=1e-12)


def test_points_are_spread_and_hold_the_powers_of_ten():
    found = tabular_config.points(2000, 10)
    assert {1, 10, 100, 1000, 2000} <= set(found.tolist())
    assert np.all(np.diff(found) > 0)
    assert tabular_config.points(10, 2).tolist() == [1, 10]


def test_slope_of_a_power_law():
    steps = tabular_config.points(1000, 20)
    assert tabular_games.slope(steps, 3.0 * steps**-1.5, floor=1e-26) == pytest.approx(-1.5)
    assert np.isnan(tabular_games.slope(steps, np.full(steps.shape, 1e-30), floor=1e-26))


def test_bound_of_trees_reads_what_can_be_reached():
    config = make(trees={"names": ("deterministic",), "methods": ("mtpo",)})
    tree = tabular_trees.make_tree("deterministic", config)
    # mu_min is 0.3: max(4 * 0.5 * 2 log(1 / 0.3), 1) = 4.816, squared, times 64 / 0.25 / 2.
    found = tabular_trees.bound(tree, np.array([1]), 0.5)
    np.testing.assert_allclose(found, 128 * (4 * np.log(1 / 0.3)) ** 2, rtol=1e-5)


ONE_GAME = {"games": {"names": ("dice",), "methods": ("nash_md",)}}


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({}, ["both empty"]),
        ({"games": {"names": ("dise",), "methods": ("nash_md",)}}, ["'dise'", "'dice'", "soccer"]),
        ({"games": {"names": ("dice",), "methods": ("nash_mb",)}}, ["'nash_mb'", "'nash_md'"]),
        ({"games": {"names": ("dice",)}}, ["games.methods is empty"]),
        ({"games": {"names": ("dice", "dice"), "methods": ("dno",)}}, ["twice"]),
        ({"games": {"names": ("random:x",), "methods": ("dno",)}}, ["random:x", "whole number"]),
        ({"games": {"names": ("rater_types:2",), "methods": ("dno",)}}, ["imbalance"]),
        ({"games": {"names": ("rater_types:x",), "methods": ("dno",)}}, ["games.names", "'x'"]),
        ({"games": {"names": ("soccer",), "methods": ("dno",)}}, ["meta_games is empty"]),
        (
            {"games": {"names": ("rrps",), "methods": ("dno",), "meta_games": "no/such"}},
            ["no/such/rrps_bots.npz"],
        ),
        ({"games": {**ONE_GAME["games"], "tau": 0.0}}, ["games.tau", "positive"]),
        ({"games": {**ONE_GAME["games"], "mixture": 2.0}}, ["games.mixture"]),
        ({"games": {**ONE_GAME["games"], "reference": (0.5, 0.4)}}, ["sum to 1"]),
        ({"games": {**ONE_GAME["games"], "reference": (0.5, 0.5)}}, ["2 probabilities", "3"]),
        (
            {
                "games": {
                    "names": ("dice",),
                    "methods": ("nash_md_constant",),
                    "constant_step": 11.0,
                }
            },
            ["constant_step", "1 / tau = 10"],
        ),
        ({**ONE_GAME, "train": {"num_steps": 1}}, ["train.num_steps"]),
        ({"trees": {"names": ("stochastik",), "methods": ("mtpo",)}}, ["'stochastic'"]),
        ({"trees": {"names": ("stochastic",), "methods": ("mtpoo",)}}, ["'mtpo'"]),
        ({"trees": {"names": ("random:30",), "methods": ("mtpo",)}}, ["2^30"]),
        ({**ONE_GAME, "trees": {"alpha": -1.0}}, ["trees.alpha"]),
        ({**ONE_GAME, "seed": -1}, ["seed"]),
    ],
)
def test_refuses_what_is_wrong_before_it_solves(groups, words, tmp_path):
    with pytest.raises(errors.UserError) as raised:
        tabular.solve(make(**groups), tmp_path)
    for word in words:
        assert word in str(raised.value)
    assert not (tmp_path / "metrics.jsonl").exists()


def run_main(monkeypatch, capfd, *arguments):
    """Runs `python -m bellmax.experiments.tabular ARGUMENTS` here: exit code and standard error."""
    monkeypatch.setattr(sys, "argv", ["tabular", *map(str, arguments)])
    # The module runs under another name, as it does in a process of its own.
    monkeypatch.delitem(sys.modules, "bellmax.experiments.tabular", raising=False)
    before = set(flags.FLAGS)
    capfd.readouterr()
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module("bellmax.experiments.tabular", run_name="__main__")
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
    code = stopped.value.code
    return (0 if code is None else int(code)), capfd.readouterr().err


def test_command_line(monkeypatch, capfd, tmp_path):
    code, stderr = run_main(
        monkeypatch,
        capfd,
        "--config=nash_md:cycle",
        "--config.games.methods=('nash_md',)",
        "--config.train.num_steps=20",
        "--config.games.tau=0.2",
        f"--workdir={tmp_path / 'run'}",
    )
    assert code == 0, stderr
    assert "asymmetric_cycle: 3 actions" in stderr
    (row,) = json.loads((tmp_path / "run" / "result.json").read_text())["games"]
    with jax.enable_x64(True):
        config = make(games={"reference": (0.5, 0.3, 0.2)})
        game = tabular_games.make_game("asymmetric_cycle", config)
        policy = solvers.nash_md(*game, tau=0.2, num_steps=20)
        target = solvers.regularised_nash(*game, tau=0.2)
        expected = tabular_games.divergence(target, policy)
    assert row["kl/equilibrium"] == pytest.approx(float(expected), rel=1e-9)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["games"]["tau"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=nash_mb"], ["'nash_md'", "mtpo"]),
        (["--config=nash_md:cycel"], ["'cycle'"]),
        (["--config=nash_md", "--config.games.tua=1.0"], ["'games.tau'"]),
        (["--config=mtpo", "--config.trees.alpha=0.0"], ["trees.alpha"]),
        (["--config=nash_md", "more"], ["more"]),
    ],
)
def test_mistakes_are_one_paragraph(monkeypatch, capfd, tmp_path, arguments, words):
    code, stderr = run_main(monkeypatch, capfd, *arguments, f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert "Traceback" not in stderr
    line = stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
