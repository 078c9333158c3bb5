"""Rules of the claims that train language policies on token tasks, on numbers made up."""

import json

import numpy as np
import pytest

from bellmax.experiments import config as config_lib
from bellmax.experiments import metrics, task_config, task_report
from bellmax.experiments.claims import (
    jepo_training,
    pass_at_k_training,
    reasoning_methods,
    reasoning_staleness,
    reasoning_strong_start,
)

CLAIMS = (
    jepo_training,
    pass_at_k_training,
    reasoning_methods,
    reasoning_staleness,
    reasoning_strong_start,
)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.CLAIM.name)
def test_configs_can_start_and_differ_by_the_seed_alone(claim):
    first, second = (
        config_lib.to_dataclass(task_config.TaskConfig, claim.make_config(seed)) for seed in (0, 1)
    )
    task_config.check(first)
    assert first.loss == second.loss
    assert (first.seed, second.seed) == (0, 1)


def test_rules_of_methods():
    last: dict[str, float] = dict.fromkeys(reasoning_methods.METHODS, 0.5)
    held: dict[str, int] = dict.fromkeys(reasoning_methods.METHODS, 1) | {"ppo": 2}
    assert all(reasoning_methods.verdicts(0.3, last, held).values())
    behind = last | {"remax": 0.47}
    assert not reasoning_methods.verdicts(0.3, behind, held)["no critic is needed"]
    assert not reasoning_methods.verdicts(0.45, last, held)["learn"]
    assert not reasoning_methods.verdicts(0.3, last, held | {"rloo": 2})["memory"]


def test_the_strong_start_is_all_that_differs():
    weak, strong = reasoning_methods.make_config(3), reasoning_strong_start.make_config(3)
    weak.train.warm_start_steps = strong.train.warm_start_steps
    assert weak.to_dict() == strong.to_dict()


def test_time_of_a_step_is_the_median_between_rows_of_training(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, "a", resume_step=None)
    writer.close()
    rows = [(5, 100.0, "grad_norm"), (5, 130.0, "pass@1"), (10, 140.0, "grad_norm")]
    rows += [(15, 145.0, "grad_norm"), (20, 151.0, "grad_norm")]
    text = [
        json.dumps({"step": step, "stage": "a", "wall_time_s": at, name: 1.0})
        for step, at, name in rows
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(text) + "\n")
    # 40 s with an evaluation among them, 5 s and 6 s, for five steps each.
    assert reasoning_methods.step_seconds([tmp_path], "a") == pytest.approx(6 / 5)


def test_rules_of_staleness():
    row = {"agro": 0.5, "copg": 0.46, "rloo_kl_in_loss": 0.45, "ppo": 0.47}
    last = {staleness: dict(row) for staleness in reasoning_staleness.STALENESS}
    assert all(reasoning_staleness.verdicts(0.4, last).values())
    last[8]["copg"] = 0.44
    assert reasoning_staleness.verdicts(0.4, last) == {"off-policy": False, "order": True}
    last[0]["ppo"] = 0.5
    assert not reasoning_staleness.verdicts(0.4, last)["order"]


def test_rules_of_pass_at_k():
    means = {
        "warm_start": {"pass@1": 0.3, "pass@8": 0.6},
        "pass_at_k": {"pass@1": 0.35, "pass@8": 0.7},
        "rloo": {"pass@1": 0.4, "pass@8": 0.65},
    }
    assert all(pass_at_k_training.verdicts(means).values())
    means["rloo"]["pass@8"] = 0.71
    assert not pass_at_k_training.verdicts(means)["pass@8 is higher"]
    means["rloo"]["pass@1"] = 0.2
    assert not pass_at_k_training.verdicts(means)["pass@1 is lower"]
    assert not pass_at_k_training.verdicts(means)["neither is worse"]


def test_rules_of_jepo():
    means = {
        "warm_start": {"after a chain": -6.0, "at once": -9.0},
        "jepo": {"after a chain": -4.5, "at once": -9.0},
        "answers": {"after a chain": -8.0, "at once": -5.6},
    }
    assert all(jepo_training.verdicts(means).values())
    means["jepo"]["after a chain"] = -5.7
    assert not jepo_training.verdicts(means)["beats answers alone"]


def test_seeds_are_read_from_tables_and_metrics(tmp_path):
    tables = [[{"method": "a", "x": value}, {"method": "b", "x": 0}] for value in (1, 3)]
    np.testing.assert_array_equal(task_report.over_seeds(tables, "a", "x"), [1, 3])
    workdirs = [tmp_path / "0", tmp_path / "1"]
    for workdir, values in zip(workdirs, ((0.0, 1.0), (2.0, 5.0)), strict=True):
        writer = metrics.MetricsWriter(workdir, "a", resume_step=None)
        for step, value in enumerate(values):
            writer.write(step, {"x": value})
            writer.write(step, {"y": value})
        writer.close()
    (series,) = task_report.mean_curves(workdirs, ("a",), "x")
    np.testing.assert_array_equal(series.y, [1, 3])
    np.testing.assert_array_equal(series.low, [0, 1])
    np.testing.assert_array_equal(series.high, [2, 5])
