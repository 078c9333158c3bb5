"""Whole runs of `reason`: what they write, and that stopping them changes nothing."""

import json

import jax
import numpy as np
import pytest

from bellmax.experiments import (
    arena,
    errors,
    judging,
    language_run,
    metrics,
    reason,
    reason_methods,
    reason_stages,
    runner,
)

NAMES = ("nash_md", "sppo", "rlhf")


@pytest.fixture(scope="module")
def finished(tiny_reason_config, tmp_path_factory):
    """A run of three methods: a mixture, an earlier policy, and a fitted reward."""
    workdir = tmp_path_factory.mktemp("reason")
    config = tiny_reason_config(
        loss={"names": NAMES, "taus": (0.05, 1.0, 0.1), "judge": "pairwise", "iteration_steps": 1},
        train={"num_opponents": 2, "num_steps": 3, "checkpoint_every": 2, "evaluate_every": 1},
    )
    return config, workdir, reason.train(config, workdir)


def test_leaves_a_table_figures_and_metrics(finished):
    _, workdir, rows = finished
    assert [row["method"] for row in rows] == ["reference", *NAMES]
    stored = json.loads((workdir / "result.json").read_text())["rows"]
    assert [row["method"] for row in stored] == ["reference", *NAMES]
    for name in ("winner_matrix.png", "learning_curves.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    logged = metrics.read_metrics(workdir)
    stages = {row["stage"] for row in logged}
    assert stages == {"warm_start", "judge_pairwise", "judge_bradley_terry", *NAMES}
    for row in logged:
        assert {"step", "wall_time_s"} <= row.keys()
        assert all(np.isfinite(v) for v in row.values() if isinstance(v, float))


def test_starts_at_the_reference_and_moves(finished):
    _, workdir, rows = finished
    for name, row in zip(NAMES, rows[1:], strict=True):
        first = next(
            r for r in metrics.read_metrics(workdir) if r["stage"] == name and "win_rate" in r
        )
        assert first["win_rate"] == pytest.approx(0.5, abs=1e-6)
        assert first["kl/reference"] == pytest.approx(0.0, abs=1e-6)
        assert row["kl/reference"] > 1e-7
        forward, back = row["beats"]["reference"][0], rows[0]["beats"][name][0]
        assert forward + back == pytest.approx(1.0, abs=1e-6)
        assert forward == pytest.approx(row["win_rate"], abs=1e-5)
        assert row["exploitability"] > 0


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    finished, tiny_reason_config, tmp_path, stop_at_call
):
    config, workdir, _ = finished
    stop_at_call(arena.ExactArena, "against_reference", 4)
    with pytest.raises(KeyboardInterrupt):
        reason.train(config, tmp_path)
    # Stopped at step 3 of the first method, whose last checkpoint is step 2.
    rows = reason.train(config, tmp_path)
    expected = json.loads((workdir / "result.json").read_text())["rows"]
    got = json.loads((tmp_path / "result.json").read_text())["rows"]
    for ours, theirs in zip(got, expected, strict=True):
        # Times differ.
        ours.pop("wall_time_s", None)
        theirs.pop("wall_time_s", None)
        assert ours == theirs
    assert len(rows) == len(expected)


@pytest.fixture(scope="module")
def prepared(tiny_reason_config, tmp_path_factory):
    """A run on a bench that has not begun, and three policies of its network."""
    config = tiny_reason_config(
        data={"num_evaluation_prompts": 6, "num_held_out_pairs": 512},
        loss={"judge": "known"},
        train={"num_evaluation_prompts": 512, "batch_size": 64},
    )
    run = reason_stages.prepare(config, tmp_path_factory.mktemp("prepared"))
    start = language_run.compiled_init(run.network)
    keys = [jax.random.key(seed) for seed in range(3)]
    return run, [jax.tree.map(lambda x: 3 * x, start(key)) for key in keys]


@pytest.mark.parametrize("name", reason_methods.METHODS)
def test_every_method_makes_a_step(name, prepared, monkeypatch):
    """Traced, not run: shapes and names of all that a step hands on."""
    run, (params, *_) = prepared
    traced = {}

    def trace(*, state, train_step, batches, run_key, **_):
        batch = jax.tree.map(jax.numpy.asarray, next(batches))
        traced["state"], traced["metrics"] = jax.eval_shape(train_step, state, batch, run_key)
        assert jax.tree.structure(traced["state"]) == jax.tree.structure(state)
        return state

    monkeypatch.setattr(runner, "run_stage", trace)
    assert run.data.embedded is not None
    judge = judging.known(run.data.embedded)
    meeting = reason_stages.make_arena(run._replace(gold=None), params, judge)
    reason_stages.optimise(run, name, 0.1, params, judge, judge, meeting)
    assert set(traced["metrics"]) == {
        "loss",
        "grad_norm",
        "updates/skipped",
        "preferences/first",
        "kl/reference",
        "log_probs/first",
        "lengths/first",
    }


@pytest.mark.slow
def test_a_file_of_pairs_trains_judge_and_policy(tiny_reason_config, tmp_path, pairs_file):
    config = tiny_reason_config(
        data={"source": "jsonl", "path": str(pairs_file), "held_out_fraction": 0.4},
        loss={"names": ("online_ipo",), "taus": (0.5,), "judge": "bradley_terry"},
        train={"num_opponents": 1, "num_evaluation_prompts": 8, "batch_size": 4},
    )
    rows = reason.train(config, tmp_path)
    assert rows[1]["beats"]["reference"][1] >= 0
    assert np.isfinite(rows[1]["kl/reference"])
    assert 1 <= rows[1]["length"] <= 5
    assert np.isnan(rows[1]["exploitability"])


@pytest.mark.slow
def test_sampled_and_exact_figures_agree(prepared):
    run, policies = prepared
    judge, rewards = reason_stages.make_judges(run, policies[0])
    assert rewards is None
    exact = reason_stages.make_arena(run, policies[0], judge)
    sampled = reason_stages.make_arena(run._replace(gold=None), policies[0], judge)
    truth, estimate = exact.matrix(policies), sampled.matrix(policies)
    np.testing.assert_allclose(truth.mean + truth.mean.T, 1.0, atol=1e-6)
    np.testing.assert_allclose(estimate.mean + estimate.mean.T, 1.0, atol=1e-12)
    # The exact figures average over few prompts and all completions, the others over many and one.
    error = 4 * np.hypot(truth.stderr, estimate.stderr) + 1e-9
    assert (np.abs(truth.mean - estimate.mean) < error).all()
    one, other = exact.against_reference(policies[1]), sampled.against_reference(policies[1])
    assert one["kl/reference"] == pytest.approx(other["kl/reference"], rel=0.3)
    assert one["win_rate"] == pytest.approx(truth.mean[1, 0], abs=1e-6)
    assert exact.against_reference(policies[0])["win_rate"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"loss": {"names": ("nash_mb",)}}, "Did you mean 'nash_md'"),
        ({"loss": {"taus": (0.0,)}}, "config.loss.taus must be positive, got 0.0"),
        ({"loss": {"eta": -1.0}}, "config.loss.eta must be positive, got -1.0"),
        ({"loss": {"mixture": 1.5}}, "config.loss: weight must be in"),
        ({"loss": {"taus": (0.1, 0.2)}}, "config.loss.taus must hold one value for each"),
        (
            {"loss": {"names": ("nash_md",) * 2, "taus": (0.1, 0.2)}},
            "config.loss.names must be distinct",
        ),
        ({"loss": {"judge": "pairwize"}}, "Did you mean 'pairwise'"),
        (
            {"data": {"source": "jsonl"}, "loss": {"judge": "known"}},
            "config.loss.judge is 'known'",
        ),
        ({"train": {"num_opponents": 0}}, "config.train.num_opponents must be at least 1, got 0"),
        ({"train": {"num_evaluation_prompts": 1}}, "num_evaluation_prompts must be at least 2"),
        ({"train": {"max_new_tokens": 8}}, "config.train.max_new_tokens must be 5 on a bench"),
        ({"loss": {"names": ("inpo",), "taus": (2.0,), "eta": 1.0}}, "at least inpo's tau 2.0"),
        ({"model": {"chunk_size": 4}}, "config.model.chunk_size must be 0 in reason, got 4"),
        ({"data": {"quality_weight": -1.0}}, "quality_weight must be at least 0, got -1.0"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_trained(
    groups, message, tiny_reason_config, tmp_path
):
    with pytest.raises(errors.UserError, match=message):
        reason.train(tiny_reason_config(**groups), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_the_command_line_names_what_is_wrong(run_main, tmp_path):
    code, said = run_main("--config=nash_mb", f"--workdir={tmp_path}", binary="reason")
    assert code != 0
    assert "Did you mean 'nash_md'" in said
    assert "Traceback" not in said
