"""GSM8K in its layout: rows come back as written, bad ones are named; the published files."""

import gzip
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import tensorflow_datasets as tfds

from bellmax.experiments import errors
from bellmax.experiments.data import gsm8k, verifiers

ROWS = [
    {
        "question": f"What are {i} and {i} crates of 1,000 ⛄ each?",
        "answer": f"That is {i}+{i}=<<{i}+{i}={2 * i}>>{2 * i} crates.\n#### {2000 * i:,}",
    }
    for i in range(8)
]


def write(path, rows):
    text = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def published(name):
    sibling = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data"
    path = pathlib.Path(os.environ.get("BELLMAX_DATA") or sibling) / "gsm8k" / name
    if not path.is_file():
        pytest.skip(f"no gsm8k/{name}: set BELLMAX_DATA to the folder that holds gsm8k")
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl.gz"])
def test_rows_come_back_in_order_and_are_prepared_once(tmp_path, monkeypatch, name):
    path = write(tmp_path / name, ROWS)
    rows = gsm8k.load(path, cache_dir=tmp_path / "cache")
    assert [row.question for row in rows] == [row["question"] for row in ROWS]
    assert [row.answer for row in rows] == [row["answer"] for row in ROWS]
    assert [row.number for row in rows] == [str(2000 * i) for i in range(8)]
    assert rows[3].steps == "That is 3+3=6 crates."
    assert rows == gsm8k.read(path)

    def fail(*args, **kwargs):
        raise AssertionError("prepared again")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", fail)
    assert gsm8k.load(path, cache_dir=tmp_path / "cache") == rows


def test_a_changed_file_is_prepared_anew(tmp_path):
    path = write(tmp_path / "train.jsonl", ROWS)
    assert len(gsm8k.load(path, cache_dir=tmp_path / "cache")) == 8
    write(path, ROWS[:3])
    assert len(gsm8k.load(path, cache_dir=tmp_path / "cache")) == 3


def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    path = write(tmp_path / "train.jsonl", ROWS)
    generate = gsm8k.Gsm8k._generate_examples

    def overtaken(self, rows):
        # While this one prepares, another one begins and finishes.
        monkeypatch.setattr(gsm8k.Gsm8k, "_generate_examples", generate)
        assert len(gsm8k.load(path, cache_dir=tmp_path / "cache")) == 8
        return generate(self, rows)

    monkeypatch.setattr(gsm8k.Gsm8k, "_generate_examples", overtaken)
    assert len(gsm8k.load(path, cache_dir=tmp_path / "cache")) == 8


def test_serves_tfds_users(tmp_path):
    path = write(tmp_path / "train.jsonl", ROWS)
    builder: Any = gsm8k.Gsm8k(path=path, data_dir=tmp_path / "data")
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == 8
    half = builder.as_data_source(split="train[50%:]")
    assert [row["number"].decode() for row in half] == ["8000", "10000", "12000", "14000"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "It is 5."}, "the answer must end in '####' and a number, got 'It is 5.'"),
        ({"answer": "5 #### many"}, "must end in '####' and a number"),
        ({"answer": ""}, "must end in '####' and a number"),
        ({"answer": 5}, "the field 'answer' must be a string, got int"),
        ({"question": "  "}, "the question is empty"),
        ({"question": None}, "the field 'question' must be a string"),
    ],
)
def test_malformed_rows_are_named_and_leave_no_cache(tmp_path, change, message):
    path = write(tmp_path / "train.jsonl", [*ROWS[:2], ROWS[2] | change])
    for _ in range(2):
        with pytest.raises(errors.UserError, match=r"train\.jsonl, line 3: ") as caught:
            gsm8k.load(path, cache_dir=tmp_path / "cache")
        assert message in str(caught.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(errors.UserError, match=r"none\.jsonl cannot be read"):
        gsm8k.load(tmp_path / "none.jsonl", cache_dir=tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"question": "a"\n')
    with pytest.raises(errors.UserError, match=r"broken\.jsonl, line 1: not valid JSON"):
        gsm8k.load(tmp_path / "broken.jsonl", cache_dir=tmp_path)
    (tmp_path / "other.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(errors.UserError, match=r"line 1: the field 'question' is missing"):
        gsm8k.load(tmp_path / "other.jsonl", cache_dir=tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(errors.UserError, match=r"empty\.jsonl has no rows"):
        gsm8k.load(tmp_path / "empty.jsonl", cache_dir=tmp_path)


def test_quiet_and_without_tensorflow(tmp_path):
    path = write(tmp_path / "train.jsonl", ROWS)
    code = """if True:
        import sys
        from bellmax.experiments.data import gsm8k
        assert len(gsm8k.load(sys.argv[1], cache_dir=sys.argv[2])) == 8
        heavy = {"tensorflow", "torch", "apache_beam"} & set(sys.modules)
        assert not heavy, heavy
    """
    command = [sys.executable, "-P", "-c", code, str(path), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_published_test_questions(tmp_path):
    rows = gsm8k.load(published("test.jsonl.gz"), cache_dir=tmp_path)
    assert len(rows) == 1319
    assert rows[0].number == "18"
    numbers = {row.answer.rpartition("####")[2]: row.number for row in rows}
    assert numbers[" 2,125"] == "2125"
    for row in rows:
        assert verifiers.is_correct(row.answer, row.number)
        assert "<<" not in row.steps


def test_verdicts_on_published_solutions_are_the_published_ones():
    count = right = 0
    with gzip.open(published("model_solutions_first400.jsonl.gz"), "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for sample in row["samples"]:
                verdict = verifiers.is_correct(sample["solution"], row["ground_truth"])
                assert verdict == sample["is_correct"], sample["solution"]
                count, right = count + 1, right + verdict
    assert count == 1600
    assert 400 < right < 800
