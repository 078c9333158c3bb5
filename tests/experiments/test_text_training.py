"""Runs on questions in words: from scratch, from a checkpoint, stopped, and refused."""

import dataclasses
import json
import pathlib
import runpy
import types

import jax
import numpy as np
import pytest

from bellmax.agents import networks
from bellmax.configs.reason import gsm8k as gsm8k_config
from bellmax.experiments import (
    errors,
    metrics,
    pretrained,
    task_evaluation,
    task_methods,
    task_steps,
    task_training,
    text_tasks,
    text_training,
)
from bellmax.experiments.data import verifiers

text_cases = types.SimpleNamespace(
    **runpy.run_path(str(pathlib.Path(__file__).with_name("text_cases.py")))
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    config = text_cases.make_config(folder)
    (folder / "run").mkdir()
    return folder, config, text_training.train(config, folder / "run")


def test_leaves_a_table_figures_and_samples(finished):
    folder, _, rows = finished
    stored = json.loads((folder / "run" / "result.json").read_text())["rows"]
    assert [row["method"] for row in stored] == ["warm_start", "rloo"]
    keys = {"pass@1", "pass@2", "majority@2", "answers", "diversity", "kl/reference", "entropy"}
    for row in rows:
        assert keys <= row.keys()
        assert all(np.isfinite(value) for key, value in row.items() if key != "method")
        assert row["lengths/mean"] <= 14
    text = (folder / "run" / "samples.txt").read_text(encoding="utf-8")
    assert [f"{i} and {i}?=" in text for i in (11, 12, 13, 14)] == [True, True, True, False]
    assert text.count("rloo [0]: ") == 3
    logged = metrics.read_metrics(folder / "run")
    assert [row["step"] for row in logged if row["stage"] == "rloo" and "loss" in row] == [1, 2]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(finished, tmp_path, stop_at_call):
    folder, config, _ = finished
    stop_at_call(task_evaluation.CheckedEvaluation, "__call__", 4)
    with pytest.raises(KeyboardInterrupt):
        text_training.train(config, tmp_path)
    # Stopped at step 2 of rloo, whose last checkpoint is step 1: one batch of the epoch is left.
    assert not (tmp_path / "result.json").exists()
    text_training.train(config, tmp_path)
    for name in ("result.json", "samples.txt"):
        assert (tmp_path / name).read_bytes() == (folder / "run" / name).read_bytes()


def from_checkpoint(folder, names=("rloo",), train=None, data=None, **model):
    return text_cases.make_config(
        folder,
        names,
        model={"checkpoint": str(folder / "model"), **model},
        data=data or {},
        train={"warm_start_steps": 0} | (train or {}),
    )


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_checkpoint_is_the_reference_as_it_is(tmp_path, scan_layers, save_checkpoint):
    saved = save_checkpoint(tmp_path / "model")
    config = from_checkpoint(tmp_path, scan_layers=scan_layers, compute_dtype="bfloat16")
    run = text_training.prepare(config, tmp_path)
    assert isinstance(run.task, text_tasks.TextTask)
    network = run.network
    assert (network.vocab_size, network.num_layers, network.embed_dim) == (300, 2, 8)
    assert (network.compute_dtype, network.scan_layers) == ("bfloat16", scan_layers)
    assert run.task.vocab_size == 258
    assert run.task.end_token == 257

    def evaluation(params, reference):
        raise AssertionError("evaluated before any training")

    reference = task_training.warm_start(run, evaluation)  # pyright: ignore[reportArgumentType]
    if scan_layers:
        reference = networks.unstack_layers(reference)
    jax.tree.map(np.testing.assert_array_equal, reference, saved)
    start = task_steps.make_learner(run, 0).agent.init(jax.random.key(0), params=reference)
    jax.tree.map(np.testing.assert_array_equal, start.reference_params, saved)


@pytest.mark.slow
def test_methods_train_from_a_checkpoint(tmp_path, save_checkpoint):
    save_checkpoint(tmp_path / "model")
    names = ("ppo", "remax", "majority")
    config = from_checkpoint(tmp_path, names, {"num_steps": 1}, chunk_size=5, scan_layers=True)
    rows = text_training.train(config, tmp_path)
    assert [row["method"] for row in rows] == ["warm_start", *names]
    assert rows[0]["kl/reference"] == pytest.approx(0, abs=1e-5)
    assert not (tmp_path / "checkpoints" / "warm_start").exists()
    assert {row["stage"] for row in metrics.read_metrics(tmp_path)} == set(names)


def test_rewards_are_the_verifiers(tmp_path, save_checkpoint):
    """What was sampled, decoded here: numbers stand for the texts' numbers, group by group."""
    save_checkpoint(tmp_path / "model")
    config = from_checkpoint(tmp_path, train={"batch_size": 6, "group_size": 16})
    run = text_training.prepare(config, tmp_path)
    task = run.task
    assert isinstance(task, text_tasks.TextTask)
    rows = next(run.stage("rloo", 1, 6, run.train)["batches"])
    method = task_methods.make_method("rloo", 0.1, config.loss, run.task)

    def collect(params):
        return task_steps.collect(run, method, params, rows.index, jax.random.key(0), rows)

    # As likely as any other, every id.
    params = jax.tree.map(np.zeros_like, pretrained.load(config.model, run.mesh))
    batch = jax.device_get(jax.jit(collect)(params))
    some = 0
    for place, row in enumerate(rows.problem.solution.row):
        texts = [
            task.as_text(tokens, mask)
            for tokens, mask in zip(batch.tokens[place], batch.mask[place], strict=True)
        ]
        number = task.numbers[row]
        assert batch.answers[place].tolist() == verifiers.answer_numbers(texts, number)
        right = [float(verifiers.is_correct(text, number)) for text in texts]
        assert batch.rewards[place].tolist() == right
        some += sum(right)
    assert (batch.answers > 0).any()
    assert (batch.answers < 0).any()
    assert some > 0
    assert (batch.tokens[batch.mask > 0] >= 258).any()
    np.testing.assert_allclose(batch.behaviour_log_probs[batch.mask > 0], -np.log(300), rtol=1e-5)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"data": {"path": ""}}, r"config\.data\.path is empty"),
        ({"data": {"held_out_path": ""}}, r"config\.data\.held_out_path is empty"),
        ({"data": {"path": "nowhere.jsonl"}}, r"nowhere\.jsonl cannot be read"),
        ({"data": {"prompt": "Question:"}}, r"config\.data\.prompt must hold \{question\}"),
        ({"data": {"solution": "{steps}"}}, r"config\.data\.solution must hold \{number\}"),
        ({"data": {"num_held_out": 1}}, "num_held_out must be at least 2, got 1"),
        ({"data": {"max_new_tokens": 0}}, "max_new_tokens must be at least 1, got 0"),
        ({"data": {"max_prompt_tokens": 3}}, "has 0 questions of at most"),
        ({"data": {"tokenizer": "bytes"}}, "there is no file 'bytes'"),
        ({"train": {"warm_start_steps": 0}}, "warm_start_steps must be at least 1 without"),
        (
            {"train": {"warm_start_steps": -1}},
            "warm_start_steps must be at least 1 without .* got -1",
        ),
        ({"train": {"temperature": 0.0}}, "temperature must be positive"),
        ({"model": {"chunk_size": -1}}, "chunk_size must be at least 0, got -1"),
        ({"model": {"checkpoint": "nowhere"}}, r"'nowhere' has no tokenizer\.json"),
        (
            {"model": {"checkpoint": "nowhere"}, "data": {"tokenizer": "byte"}},
            r"config\.model\.checkpoint 'nowhere' cannot be read: .*config\.json",
        ),
        ({"loss": {"names": ("rlo",)}}, "Did you mean 'rloo'"),
        ({"loss": {"names": ("jepo",)}}, "needs a task whose answers follow a marker"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_key(groups, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        text_training.train(text_cases.make_config(tmp_path, **groups), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_bad_row_is_refused_by_file_and_line(tmp_path):
    rows = text_cases.rows(1, 3)
    rows[2]["answer"] = "six"
    path = text_cases.write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(errors.UserError, match=r"bad\.jsonl, line 3: the answer must end in"):
        text_training.train(text_cases.make_config(tmp_path, data={"path": path}), tmp_path)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, save_checkpoint):
    save_checkpoint(tmp_path / "model", vocab_size=250)
    with pytest.raises(errors.UserError, match=r"vocabulary of 250 tokens.* one of 258"):
        text_training.prepare(from_checkpoint(tmp_path), tmp_path)
    config = from_checkpoint(tmp_path, data={"end_token": "<eos>"})
    with pytest.raises(errors.UserError, match=r"no token that ends a completion.*<eos>"):
        text_training.prepare(config, tmp_path)
    save_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not weights")
    run = text_training.prepare(from_checkpoint(tmp_path), tmp_path)
    with pytest.raises(errors.UserError, match=r"config\.model\.checkpoint .* cannot be read"):
        pretrained.load(run.config.model, run.mesh)


def test_a_run_that_cannot_call_the_host_is_refused(tmp_path, monkeypatch):
    def fail(**options):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", fail)
    with pytest.raises(errors.UserError, match="JAX_PLATFORMS must name cpu too"):
        text_training.prepare(text_cases.make_config(tmp_path), tmp_path)


@pytest.mark.slow
def test_two_processes_equal_one_of_two_devices(tmp_path):
    """The command itself; each process checks its own rows, and the files that both prepare."""
    two_as_one = runpy.run_path(str(pathlib.Path(__file__).with_name("loopback.py")))["two_as_one"]
    config = dataclasses.asdict(
        text_cases.make_config(
            tmp_path, data={"cache_dir": ""}, train={"mesh_fsdp": 2, "temperature": 2.0}
        )
    )
    flags = [
        f"--config.{key}.{name}={value}"
        for key in ("model", "data", "train")
        for name, value in config[key].items()
    ]
    command = ("-m", "bellmax.experiments.reason", "--config=gsm8k", *flags)
    rows = two_as_one(tmp_path, *command, rel=1e-4, abs=1e-5)
    assert len(rows) == 8


@pytest.mark.parametrize("variant", [None, "grpo"])
def test_the_config_names_its_method(variant):
    config = gsm8k_config.get_config(variant).to_dict()
    assert config["loss"]["names"] == (variant or "rloo",)
    assert config["data"]["source"] == "gsm8k"
