import dataclasses
import gzip
import json

import pytest

from bellmax.configs.align import base
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors
from bellmax.experiments.data import sources, tokenizers


def data_config(**changes):
    keys = {**base.get_config().to_dict()["data"], "num_pairs": 32, "num_held_out_pairs": 16}
    return config_lib.to_dataclass(sources.DataConfig, {**keys, **changes})


def load(config, workdir):
    tokenizer = tokenizers.make_tokenizer(config.tokenizer)
    return sources.load(config, tokenizer, seed=0, workdir=workdir)


def write(path, rows):
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def pairs(count):
    return [
        {"prompt": f"{'abcde'[i // 2 % 5]}{'abcde'[i // 10 % 5]}", "chosen": "ab", "rejected": "c"}
        for i in range(count)
    ]


def test_gold_bench_needs_no_file(tmp_path):
    data = load(data_config(num_evaluation_prompts=3), tmp_path)
    assert (len(data.train), len(data.held_out)) == (32, 16)
    assert data.embedded is not None
    assert data.tokenizer.vocab_size == data.embedded.bench.num_letters + 1
    with pytest.raises(errors.UserError, match=r"config\.data\.tokenizer"):
        load(data_config(tokenizer="byte"), tmp_path)


def test_jsonl_is_split_by_prompt(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write(path, pairs(50))
    config = data_config(source="jsonl", path=str(path), held_out_fraction=0.3)
    data = load(config, tmp_path)
    assert data.embedded is None
    assert len(data.train) + len(data.held_out) == 50

    def prompts(encoded):
        return {data.tokenizer.decode(encoded.prompt_tokens(i)) for i in range(len(encoded))}

    assert not prompts(data.train) & prompts(data.held_out)
    # Prepared once, inside the workdir, or where the config says.
    assert (tmp_path / "data").is_dir()
    elsewhere = dataclasses.replace(config, cache_dir=str(tmp_path / "cache"))
    load(elsewhere, tmp_path / "other")
    assert (tmp_path / "cache").is_dir()
    assert not (tmp_path / "other").exists()


def test_hh_has_its_own_splits(tmp_path):
    dialogue = "\n\nHuman: {0}\n\nAssistant:"
    for split, count in (("train", 6), ("test", 3)):
        rows = [
            {
                "chosen": dialogue.format(i) + " Yes, gladly.",
                "rejected": dialogue.format(i) + " No.",
            }
            for i in range(count)
        ]
        write(tmp_path / f"{split}.jsonl.gz", rows)
    config = data_config(
        source="hh", path=str(tmp_path), tokenizer="byte", max_length=64, bucket_lengths=(64,)
    )
    data = load(config, tmp_path)
    assert (len(data.train), len(data.held_out)) == (6, 3)
    assert data.tokenizer.decode(data.train.prompt_tokens(0)).endswith("Assistant:")
    line = sources.describe("train", data.train, (64,))
    assert "train: 6 pairs of 6 rows" in line
    assert "6 of 64" in line

    (tmp_path / "test.jsonl.gz").unlink()
    with pytest.raises(errors.UserError, match=r"no test\.jsonl\.gz"):
        load(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "jsnl"}, "'jsonl'"),
        ({"source": "hh"}, r"config\.data\.path is empty"),
        ({"held_out_fraction": 1.0}, r"config\.data\.held_out_fraction"),
        ({"bucket_lengths": (4,)}, "bucket_lengths must hold the longest row"),
        ({"max_length": 0}, "max_length"),
    ],
)
def test_wrong_keys_are_named(tmp_path, changes, words):
    path = tmp_path / "pairs.jsonl"
    write(path, pairs(20))
    keys = {"source": "jsonl", "path": "" if changes.get("source") == "hh" else str(path)}
    with pytest.raises(errors.UserError, match=words):
        load(data_config(**{**keys, **changes}), tmp_path)


def test_no_pair_left(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write(path, [{**row, "rejected": row["chosen"]} for row in pairs(20)])
    with pytest.raises(errors.UserError, match=r"no pair|No pair|identical"):
        load(data_config(source="jsonl", path=str(path)), tmp_path)
