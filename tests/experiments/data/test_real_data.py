"""The published pairs themselves, where they are at hand."""

import os
import pathlib
import shutil

import numpy as np
import pytest

from bellmax.experiments import errors
from bellmax.experiments.data import builders, pipeline, records, tokenizers


def find(name):
    sibling = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data"
    path = pathlib.Path(os.environ.get("BELLMAX_DATA") or sibling) / name
    if not path.is_file():
        pytest.skip(f"no {name}: set BELLMAX_DATA to the folder that holds it")
    return path


def test_helpful_pairs_from_file_to_batches(tmp_path):
    path = find("hh_rlhf_helpful/helpful-base-test.jsonl.gz")
    with pytest.raises(errors.UserError, match=r"helpful-base-test\.jsonl\.gz, line 467: the rej"):
        builders.load_jsonl(path, cache_dir=tmp_path)
    loaded = builders.load_jsonl(path, cache_dir=tmp_path, allow_empty=True)
    assert list(loaded) == records.read_jsonl(path, allow_empty=True)
    train, held_out = records.split_by_prompt(loaded, fraction=0.1, seed=0)
    assert len(train) + len(held_out) == len(loaded) == 2354
    tokenizer = tokenizers.ByteTokenizer()
    encoded = pipeline.tokenise(loaded, tokenizer, max_length=512)
    statistics = encoded.statistics
    assert (statistics.num_empty, statistics.num_identical) == (4, 2)
    assert len(encoded) + 6 + statistics.num_identical_after_cut == 2354
    for row in range(0, len(encoded), 97):
        record = loaded[int(encoded.source_rows[row])]
        chosen = encoded.chosen_tokens(row)
        assert record.prompt.encode().endswith(bytes(encoded.prompt_tokens(row).tolist()))
        if chosen[-1] == tokenizer.end_id:
            assert tokenizer.decode(chosen) == record.chosen
    iterator = pipeline.make_iterator(
        encoded, batch_size=16, bucket_lengths=(128, 256, 512), seed=0, num_epochs=1
    )
    batches = list(iterator)
    assert sum(batch.weight.sum() for batch in batches) == len(encoded)
    assert {batch.chosen_tokens.shape for batch in batches} == {(16, n) for n in (128, 256, 512)}
    assert np.unique(np.concatenate([batch.index for batch in batches])).size == len(encoded)


def test_harmless_dialogues_part_into_prompt_and_completions(tmp_path):
    path = find("hh_rlhf_harmless/harmless-base-test.jsonl.gz")
    (tmp_path / "hh").mkdir()
    shutil.copy(path, tmp_path / "hh" / "test.jsonl.gz")
    loaded = builders.load_hh(
        tmp_path / "hh", split="test", cache_dir=tmp_path / "cache", allow_empty=True
    )
    assert len(loaded) == 2312
    assert all(record.prompt.startswith("\n\nHuman:") for record in loaded)
    assert all(record.prompt.endswith(records.ASSISTANT_TURN) for record in loaded)
    # The published completions begin with the space that follows the colon.
    assert all(record.chosen[0] == record.rejected[0] == " " for record in loaded)
