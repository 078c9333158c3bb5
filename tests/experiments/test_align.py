"""Whole runs of `align`: what they learn and write, and that killing them changes nothing."""

import dataclasses
import json
import pathlib
import signal

import numpy as np
import pytest

from bellmax.experiments import align, align_config, evaluation, metrics, preference_losses


def train(config: align_config.AlignConfig, workdir: pathlib.Path):
    workdir.mkdir(parents=True, exist_ok=True)
    return align.train(config, workdir)


def logged(workdir, stage, key):
    return [
        row[key] for row in metrics.read_metrics(workdir) if row["stage"] == stage and key in row
    ]


@pytest.fixture(scope="module")
def embedded(tiny_config, tmp_path_factory):
    """One run on the embedded data that is long enough to learn something."""
    workdir = tmp_path_factory.mktemp("embedded")
    config = tiny_config(
        model={"head_dim": 8, "embed_dim": 16, "mlp_dim": 32},
        optimizer={"learning_rate": 3e-3, "warmup_steps": 5},
        data={"num_pairs": 1024, "num_held_out_pairs": 128, "num_evaluation_prompts": 8},
        loss={"names": ("logistic", "hinge"), "betas": (0.3, 0.2)},
        train={
            "warm_start_steps": 100,
            "num_steps": 100,
            "batch_size": 32,
            "log_every": 25,
            "evaluate_every": 100,
            "checkpoint_every": 100,
            "warm_start_learning_rate": 1e-2,
        },
    )
    return config, workdir, train(config, workdir)


def test_gold_reward_rises_above_the_reference(embedded):
    _, workdir, rows = embedded
    assert [row["loss"] for row in rows] == ["logistic", "hinge"]
    for row in rows:
        assert row["gold/gain"] > 3 * row["gold/gain_stderr"] > 0
        assert row["gold/accuracy"] > 0.5
        assert row["kl/reference"] > 0
        # Step 0 is the reference itself.
        first = next(
            r
            for r in metrics.read_metrics(workdir)
            if r["stage"] == row["loss"] and "gold/gain" in r
        )
        assert first["gold/gain"] == pytest.approx(0, abs=1e-5)
        assert first["kl/reference"] == pytest.approx(0, abs=1e-5)
        assert first["held_out/accuracy"] == 0.5


def test_every_file_is_there_and_a_rerun_changes_nothing(embedded):
    config, workdir, rows = embedded
    for name in ("trade_off.png", "learning_curves.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((workdir / "result.json").read_text())["rows"] == rows
    assert {path.name for path in (workdir / "tensorboard").iterdir()} == {
        "warm_start",
        "logistic",
        "hinge",
    }
    before = (workdir / "metrics.jsonl").read_text()
    assert train(config, workdir) == rows
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.fixture(scope="module")
def from_file(tiny_config, pairs_file, tmp_path_factory):
    """Trains every loss for three steps on a small file; returns the workdir."""

    def run(**groups):
        config = tiny_config(
            data={"source": "jsonl", "path": str(pairs_file), "held_out_fraction": 0.3},
            **{
                "loss": {"names": ("logistic",), "betas": (0.5,)},
                "train": {"num_steps": 3, "batch_size": 8},
                **groups,
            },
        )
        workdir = tmp_path_factory.mktemp("file")
        train(config, workdir)
        return workdir

    return run


@pytest.fixture(scope="module")
def plain(from_file):
    return from_file()


@pytest.mark.slow
def test_every_named_loss_takes_steps(from_file):
    names = tuple(preference_losses.PAIR_LOSSES)
    workdir = from_file(
        loss={"names": names, "betas": (0.5,) * len(names), "label_smoothing": 0.1},
        train={"num_steps": 2},
    )
    rows = json.loads((workdir / "result.json").read_text())["rows"]
    assert [row["loss"] for row in rows] == list(names)
    for name in names:
        assert np.all(np.isfinite(logged(workdir, name, "loss")))
        assert logged(workdir, name, "updates/skipped")[-1] == 0
        assert max(logged(workdir, name, "kl/reference")) > 0


def test_a_file_without_gold_reward_reports_what_can_be_known(plain):
    (row,) = json.loads((plain / "result.json").read_text())["rows"]
    assert 0 <= row["held_out/accuracy"] <= 1
    assert row["kl/reference"] > 0
    assert not any(key.startswith("gold/") for key in row)
    assert (plain / "trade_off.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "groups", [{"model": {"chunk_size": 5}}, {"train": {"num_steps": 3, "live_reference": True}}]
)
def test_chunked_head_and_live_reference_give_the_same_losses(plain, from_file, groups):
    workdir = from_file(**groups)
    for stage in ("warm_start", "logistic"):
        np.testing.assert_allclose(
            logged(workdir, stage, "loss"), logged(plain, stage, "loss"), rtol=1e-4
        )
    assert (workdir / "reference_log_probs.npz").exists() == ("model" in groups)


def test_the_reference_is_computed_once(plain, tiny_config, pairs_file, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(evaluation, "reference_log_probs", refuse)
    config = tiny_config(
        data={"source": "jsonl", "path": str(pairs_file), "held_out_fraction": 0.3},
        loss={"names": ("logistic",), "betas": (0.5,)},
        train={"num_steps": 3, "batch_size": 8},
    )
    align.train(config, plain)
    changed = dataclasses.replace(
        config, data=dataclasses.replace(config.data, held_out_fraction=0.6)
    )
    with pytest.raises(Exception, match="the data file has changed"):
        align.train(changed, plain)


@pytest.mark.slow
def test_killing_a_run_changes_nothing(processes, tiny_overrides):
    """SIGTERM, then SIGKILL at a random moment, then to the end: the bits of an undisturbed run."""
    overrides = tiny_overrides(
        loss={"names": "('logistic','hinge')", "betas": "(0.5,0.25)"},
        train={
            "warm_start_steps": 80,
            "num_steps": 40,
            "log_every": 7,
            "evaluate_every": 40,
            "checkpoint_every": 5,
        },
    )
    runs = processes("bellmax.experiments.align", "--config=gpo", *overrides)
    runs.finish("whole")

    process = runs.start("cut")
    runs.wait_for_a_new_checkpoint(process, "cut")
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1].startswith("warm_start: stopped at step ")

    when = runs.kill_at_a_random_moment("cut")
    runs.finish("cut")
    assert {name: step for name, (step, _) in runs.last_checkpoints("cut").items()} == {
        "hinge": 40,
        "logistic": 40,
        "warm_start": 80,
    }
    runs.assert_same("cut", "whole", when)
    kinds = [(row["stage"], row["step"], "loss" in row) for row in runs.rows("cut")]
    assert len(set(kinds)) == len(kinds)
