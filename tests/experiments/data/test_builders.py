"""The TFDS builders: rows come back as written, prepared once, without TensorFlow."""

import gzip
import json
import subprocess
import sys
from typing import Any

import pytest
import tensorflow_datasets as tfds

from bellmax.experiments import errors
from bellmax.experiments.data import builders, records

ROWS = [
    {"prompt": f"\n\nHuman: {i} 雪\n\nAssistant:", "chosen": f" yes {i}", "rejected": f"no {i} "}
    for i in range(12)
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def published(rows):
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


def as_records(rows):
    return [records.PreferenceRecord(**row) for row in rows]


@pytest.fixture
def no_preparation(monkeypatch):
    """From now on nothing may be prepared: what is loaded comes from the cache."""

    def prevent():
        def fail(*args, **kwargs):
            raise AssertionError("prepared again")

        monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", fail)

    return prevent


def test_jsonl_rows_come_back_in_order(tmp_path, no_preparation):
    path = write(tmp_path / "rows.jsonl.gz", ROWS)
    loaded = builders.load_jsonl(path, cache_dir=tmp_path / "cache")
    assert list(loaded) == as_records(ROWS)
    no_preparation()
    again = builders.load_jsonl(path, cache_dir=tmp_path / "cache")
    assert len(again) == 12
    assert again[7] == again[-5] == as_records(ROWS)[7]
    assert again[2:5] == as_records(ROWS)[2:5]
    with pytest.raises(IndexError):
        again[12]


def test_hh_splits_come_from_the_manual_directory(tmp_path, no_preparation):
    directory = write(tmp_path / "hh" / "train.jsonl.gz", published(ROWS[:9])).parent
    write(directory / "test.jsonl.gz", published(ROWS[9:]))
    train = builders.load_hh(directory, split="train", cache_dir=tmp_path / "cache")
    no_preparation()
    test = builders.load_hh(directory, split="test", cache_dir=tmp_path / "cache")
    assert (list(train), list(test)) == (as_records(ROWS[:9]), as_records(ROWS[9:]))


def test_builders_serve_tfds_users(tmp_path):
    directory = write(tmp_path / "hh" / "test.jsonl.gz", published(ROWS)).parent
    builder: Any = builders.AnthropicHH(data_dir=tmp_path / "data")
    config = tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=directory)
    builder.download_and_prepare(download_config=config)
    assert builder.info.splits["test"].num_examples == 12
    half = builder.as_data_source(split="test[50%:]")
    assert [row["chosen"].decode() for row in half] == [row["chosen"] for row in ROWS[6:]]
    path = write(tmp_path / "rows.jsonl", ROWS)
    builder = builders.PreferenceJsonl(path=path, data_dir=tmp_path / "data")
    builder.download_and_prepare()
    assert len(builder.as_data_source(split="train")) == 12


def test_a_changed_file_is_prepared_anew(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert len(builders.load_jsonl(path, cache_dir=tmp_path / "cache")) == 12
    write(path, ROWS[:5])
    assert list(builders.load_jsonl(path, cache_dir=tmp_path / "cache")) == as_records(ROWS[:5])


def test_an_interrupted_preparation_is_not_read(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    # A process that dies while it writes; os._exit leaves no chance to clean up.
    code = """if True:
        import os, sys
        from bellmax.experiments.data import builders
        def die_half_way(self, rows):
            yield from list(enumerate(row._asdict() for row in rows))[:6]
            os._exit(9)
        builders.PreferenceJsonl._generate_examples = die_half_way
        builders.load_jsonl(sys.argv[1], cache_dir=sys.argv[2])
    """
    command = [sys.executable, "-P", "-c", code, str(path), str(tmp_path / "cache")]
    assert subprocess.run(command, check=False).returncode == 9
    assert list((tmp_path / "cache").rglob("*incomplete*")), "it died before it wrote anything"
    assert list(builders.load_jsonl(path, cache_dir=tmp_path / "cache")) == as_records(ROWS)


def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", ROWS)
    generate = builders.PreferenceJsonl._generate_examples

    def overtaken(self, rows):
        # While this one prepares, another one begins and finishes.
        monkeypatch.setattr(builders.PreferenceJsonl, "_generate_examples", generate)
        assert list(builders.load_jsonl(path, cache_dir=tmp_path / "cache")) == as_records(ROWS)
        return generate(self, rows)

    monkeypatch.setattr(builders.PreferenceJsonl, "_generate_examples", overtaken)
    assert list(builders.load_jsonl(path, cache_dir=tmp_path / "cache")) == as_records(ROWS)


def test_malformed_rows_are_named_and_leave_no_cache(tmp_path):
    path = write(tmp_path / "rows.jsonl", [*ROWS[:2], ROWS[2] | {"chosen": ""}])
    for _ in range(2):
        with pytest.raises(errors.UserError, match=r"rows\.jsonl, line 3: the chosen completion"):
            builders.load_jsonl(path, cache_dir=tmp_path / "cache")
    allowed = builders.load_jsonl(path, cache_dir=tmp_path / "cache", allow_empty=True)
    assert [row.chosen for row in allowed] == [" yes 0", " yes 1", ""]
    # What was prepared with empty completions does not serve those who refuse them.
    with pytest.raises(errors.UserError, match="line 3"):
        builders.load_jsonl(path, cache_dir=tmp_path / "cache")
    directory = write(tmp_path / "hh" / "train.jsonl.gz", [{"chosen": "a", "rejected": "b"}]).parent
    with pytest.raises(errors.UserError, match=r"train\.jsonl\.gz, line 1"):
        builders.load_hh(directory, split="train", cache_dir=tmp_path / "cache")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(errors.UserError, match=r"none\.jsonl cannot be read"):
        builders.load_jsonl(tmp_path / "none.jsonl", cache_dir=tmp_path / "cache")
    with pytest.raises(errors.UserError, match="is no folder with train"):
        builders.load_hh(tmp_path, split="train", cache_dir=tmp_path / "cache")
    write(tmp_path / "test.jsonl.gz", published(ROWS))
    with pytest.raises(errors.UserError, match=r"has no train\.jsonl\.gz; it has: test"):
        builders.load_hh(tmp_path, split="train", cache_dir=tmp_path / "cache")


def test_quiet_and_without_tensorflow(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    code = """if True:
        import sys
        from bellmax.experiments.data import builders
        assert len(list(builders.load_jsonl(sys.argv[1], cache_dir=sys.argv[2]))) == 12
        heavy = {"tensorflow", "torch", "apache_beam"} & set(sys.modules)
        assert not heavy, heavy
    """
    command = [sys.executable, "-P", "-c", code, str(path), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
