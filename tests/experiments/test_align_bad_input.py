"""Every mistake of a user is one paragraph on standard error and a non-zero exit code."""

import json
import subprocess
import sys

import pytest


def assert_one_paragraph(code, stderr, *words):
    assert code != 0
    assert "Traceback" not in stderr
    line = stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line
    # One paragraph, and the only thing on standard error besides the run's own announcement.
    assert sum(text.startswith("error: ") for text in stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=gop"], ["'gpo'", "gpo_hh"]),
        (["--config=gpo:hingee"], ["hingee", "'hinge'", "savage"]),
        (["--config=missing/config.py"], ["missing/config.py"]),
        (["--config=gpo", "--config.trian.num_steps=3"], ["trian", "'train.num_steps'"]),
        (["--config=gpo", "--config.train.num_stepz=3"], ["num_stepz", "'train.num_steps'"]),
        (["--config=gpo", "--config.train=3"], ["config.train"]),
        (["--config=gpo", "--config.train.num_steps=many"], ["train.num_steps", "many"]),
        (["--config=gpo", "--config.train.num_steps=2.5"], ["train.num_steps", "2.5"]),
        (["--config=gpo", "--config.model.remat=perhaps"], ["model.remat", "perhaps"]),
        (["--config.train.num_steps=3", "--config=gpo"], ["--config=NAME comes before"]),
        (["--config=gpo", "--wokdir=x"], ["wokdir", "workdir"]),
        (["--config=gpo", "more"], ["more"]),
        ([], ["--config is required", "gpo", "gpo_hh"]),
    ],
)
def test_flags(run_main, tmp_path, arguments, words):
    assert_one_paragraph(*run_main(*arguments, f"--workdir={tmp_path / 'run'}"), *words)
    assert not (tmp_path / "run").exists()


def test_workdir_is_required(run_main):
    assert_one_paragraph(*run_main("--config=gpo"), "--workdir is required")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"loss": {"names": "('logistik',)"}}, ["'logistik'", "'logistic'", "savage"]),
        ({"loss": {"names": "('hinge','savage')"}}, ["config.loss.betas"]),
        ({"loss": {"betas": "(-1.0,)"}}, ["config.loss", "beta"]),
        ({"loss": {"label_smoothing": 0.7}}, ["config.loss", "label_smoothing"]),
        ({"optimizer": {"name": "adann"}}, ["config.optimizer.name", "'adan'"]),
        ({"optimizer": {"schedule": "cosin"}}, ["config.optimizer.schedule", "'cosine'"]),
        ({"optimizer": {"warmup_steps": -1}}, ["config.optimizer.warmup_steps"]),
        ({"train": {"warm_start_on": "chosn"}}, ["warm_start_on", "'chosen'"]),
        ({"train": {"warm_start_learning_rate": 0.0}}, ["warm_start_learning_rate"]),
        ({"train": {"batch_size": 0}}, ["config.train.batch_size"]),
        ({"train": {"accumulate_steps": 0}}, ["config.train.accumulate_steps", "at least 1"]),
        ({"train": {"accumulate_steps": 5}}, ["accumulate_steps must divide", "batch_size"]),
        ({"train": {"mesh_data": 3}}, ["mesh", "data=3"]),
        ({"train": {"mesh_data": -1, "mesh_fsdp": -1}}, ["mesh", "-1"]),
        ({"data": {"source": "jsnl"}}, ["config.data.source", "'jsonl'"]),
        ({"data": {"source": "jsonl"}}, ["config.data.path is empty"]),
        ({"data": {"source": "jsonl", "path": "no/such.jsonl"}}, ["no/such.jsonl"]),
        ({"data": {"source": "hh", "path": "no/such"}}, ["no/such", "train.jsonl.gz"]),
        ({"data": {"tokenizer": "bytes"}}, ["bytes"]),
        ({"data": {"num_pairs": 0}}, ["num_pairs"]),
    ],
)
def test_values(run_main, tiny_overrides, tmp_path, groups, words):
    arguments = ["--config=gpo:logistic", *tiny_overrides(**groups), f"--workdir={tmp_path / 'r'}"]
    assert_one_paragraph(*run_main(*arguments), *words)


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "a", "chosen"', ["not valid JSON"]),
        (json.dumps({"prompt": "a", "chosen": "b"}), ["'rejected'", "missing"]),
        (json.dumps({**GOOD, "chosen": ""}), ["chosen completion is empty"]),
        (json.dumps({**GOOD, "chosen": 3}), ["'chosen'", "string"]),
        (json.dumps({**GOOD, "chosen": "z"}), ["z"]),
    ],
)
def test_bad_rows(run_main, tiny_overrides, tmp_path, row, words):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + row + "\n" + json.dumps({**GOOD, "prompt": "e"}))
    data = {"data": {"source": "jsonl", "path": str(path)}}
    result = run_main("--config=gpo:logistic", *tiny_overrides(**data), f"--workdir={tmp_path}/r")
    assert_one_paragraph(*result, *words)
    if "z" not in words:
        # The blank line counts: it is what an editor shows.
        assert f"{path}, line 3" in result[1]


def test_workdir_of_another_run(run_main, tiny_overrides, tmp_path, pairs_file):
    groups = {"data": {"source": "jsonl", "path": str(pairs_file)}}
    workdir = f"--workdir={tmp_path}"
    code, stderr = run_main("--config=gpo:logistic", *tiny_overrides(**groups), workdir)
    assert code == 0, stderr

    other = tiny_overrides(**groups, model={"embed_dim": 12})
    result = run_main("--config=gpo:logistic", *other, workdir)
    assert_one_paragraph(*result, "another run", "model.embed_dim (8 there, 12 now)")

    # Without its config, the checkpoint itself is what does not fit.
    (tmp_path / "config.json").unlink()
    result = run_main("--config=gpo:logistic", *other, workdir)
    assert_one_paragraph(*result, "checkpoint of step 2", "shape", "(6, 8)", "(6, 12)")

    (tmp_path / "config.json").unlink()
    deeper = tiny_overrides(**groups, model={"num_layers": 2})
    result = run_main("--config=gpo:logistic", *deeper, workdir)
    assert_one_paragraph(*result, "checkpoint of step 2", "layers_1", "missing")


def test_real_process_prints_one_paragraph(tmp_path):
    for arguments, word in (
        (["--config=gpo", "--config.trian.num_steps=3"], "train.num_steps"),
        (["--config=gpo:logistic", "--config.loss.names=logistik"], "logistic"),
    ):
        command = [sys.executable, "-P", "-m", "bellmax.experiments.align", *arguments]
        done = subprocess.run(
            [*command, f"--workdir={tmp_path / 'run'}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert_one_paragraph(done.returncode, done.stderr, word)
        assert done.stdout == ""
