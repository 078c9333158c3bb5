"""Readers name the file and line of every bad row; the split never leaks a prompt."""

import gzip
import json

import numpy as np
import pytest

from bellmax.experiments import errors
from bellmax.experiments.data import records
from bellmax.experiments.data.records import PreferenceRecord

GOOD = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": "No."}


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_reads_text_as_it_is(tmp_path, name):
    unicode = {"prompt": "ß\n", "chosen": "  雪 ", "rejected": "\u00a0x", "score": 3}
    path = write(tmp_path / name, [GOOD, "", unicode])
    assert records.read_jsonl(path) == [
        PreferenceRecord("\n\nHuman: Hi\n\nAssistant:", " Hello.", "No."),
        PreferenceRecord("ß\n", "  雪 ", "\u00a0x"),
    ]


def test_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert len(records.read_jsonl(path)) == 1


BAD_ROWS = {
    '{"prompt": "a", "chosen"': "not valid JSON",
    '["a", "b"]': "JSON object, got list",
    '{"prompt": "a", "chosen": "b"}': "'rejected' is missing",
    '{"prompt": "a", "chosen": ["b"], "rejected": "c"}': "'chosen' must be a string, got list",
    '{"prompt": null, "chosen": "b", "rejected": "c"}': "'prompt' must be a string, got NoneType",
    '{"prompt": "a", "chosen": "b", "rejected": " \\n"}': "rejected completion is empty",
    '{"prompt": "a", "chosen": "", "rejected": "c"}': "chosen completion is empty",
    '{"prompt": "", "chosen": "b", "rejected": "c"}': "prompt is empty",
    '{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}': "surrogate",
    "[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: BAD_ROWS[row])
def test_bad_row_is_named(tmp_path, row):
    # The blank line counts: the number is that of an editor.
    path = write(tmp_path / "rows.jsonl", [GOOD, "", row, GOOD])
    with pytest.raises(errors.UserError, match=BAD_ROWS[row]) as caught:
        records.read_jsonl(path)
    assert f"{path}, line 3:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(errors.UserError, match=r"rows\.jsonl, line 2: not UTF-8"):
        records.read_jsonl(path)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(errors.UserError, match=r"no file .*none\.jsonl"):
        records.read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(errors.UserError, match="cannot be read"):
        records.read_jsonl(tmp_path)
    with pytest.raises(errors.UserError, match=r"empty\.jsonl has no rows"):
        records.read_jsonl(write(tmp_path / "empty.jsonl", [""]))
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text(json.dumps(GOOD))
    with pytest.raises(errors.UserError, match=r"plain\.jsonl\.gz, after line 0: not a whole gzip"):
        records.read_jsonl(plain)
    whole = write(tmp_path / "whole.jsonl.gz", [GOOD] * 100).read_bytes()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[:-10])
    with pytest.raises(errors.UserError, match=r"cut\.jsonl\.gz, after line \d+: not a whole gzip"):
        records.read_jsonl(cut)


def test_empty_completions_pass_only_where_allowed(tmp_path):
    path = write(tmp_path / "rows.jsonl", [GOOD, GOOD | {"rejected": " "}])
    assert [row.rejected for row in records.read_jsonl(path, allow_empty=True)] == ["No.", " "]


HH_DIALOGUES = [
    # One turn each; the shared first letters of the answers are not part of the prompt.
    (
        "\n\nHuman: Q\n\nAssistant: Yes",
        "\n\nHuman: Q\n\nAssistant: Yet",
        "\n\nHuman: Q\n\nAssistant:",
    ),
    # Two turns, of which the first is shared.
    (
        "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: B",
        "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: C",
        "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant:",
    ),
    # The dialogues part at the first answer: completions of several turns.
    (
        "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: B",
        "\n\nHuman: Q\n\nAssistant: D",
        "\n\nHuman: Q\n\nAssistant:",
    ),
    # One dialogue goes on where the other ends.
    (
        "\n\nHuman: Q\n\nAssistant: A",
        "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: B",
        "\n\nHuman: Q\n\nAssistant:",
    ),
]


def test_hh_prompt_is_the_shared_beginning(tmp_path):
    rows = [{"chosen": chosen, "rejected": rejected} for chosen, rejected, _ in HH_DIALOGUES]
    found = records.read_hh(write(tmp_path / "hh.jsonl.gz", rows))
    for record, (chosen, rejected, prompt) in zip(found, HH_DIALOGUES, strict=True):
        assert record.prompt == prompt
        assert record.prompt + record.chosen == chosen
        assert record.prompt + record.rejected == rejected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "Q: a", "rejected": "Q: b"}, "share no"),
        ({"chosen": "\n\nHuman: A\n\nAssistant: x"}, "'rejected' is missing"),
        (
            {"chosen": "\n\nHuman: Q\n\nAssistant: ", "rejected": "\n\nHuman: Q\n\nAssistant: b"},
            "chosen completion is empty",
        ),
    ],
)
def test_hh_bad_row_is_named(tmp_path, row, message):
    path = write(tmp_path / "hh.jsonl", [row])
    with pytest.raises(errors.UserError, match=message) as caught:
        records.read_hh(path)
    assert f"{path}, line 1:" in str(caught.value)


def random_records(seed, num_records, num_prompts):
    generator = np.random.default_rng(seed)
    return [
        PreferenceRecord(f"prompt {generator.integers(num_prompts)}", f"a{row}", f"b{row}")
        for row in range(num_records)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_split_is_a_partition_that_leaks_no_prompt(seed):
    rows = random_records(seed, 300, 60)
    train, held_out = records.split_by_prompt(rows, fraction=0.2, seed=seed)
    assert sorted(train + held_out) == sorted(rows)
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    order = {row: place for place, row in enumerate(rows)}
    for side in (train, held_out):
        assert side == sorted(side, key=order.__getitem__)


def test_split_depends_on_nothing_but_prompt_and_seed():
    rows = random_records(0, 500, 200)
    _, held_out = records.split_by_prompt(rows, fraction=0.3, seed=1)
    _, from_reversed = records.split_by_prompt(rows[::-1], fraction=0.3, seed=1)
    assert set(held_out) == set(from_reversed)
    _, from_part = records.split_by_prompt(rows[:250], fraction=0.3, seed=1)
    assert set(from_part) == set(held_out) & set(rows[:250])
    _, other_seed = records.split_by_prompt(rows, fraction=0.3, seed=2)
    assert set(other_seed) != set(held_out)


def test_split_holds_out_the_fraction():
    rows = random_records(0, 20_000, 10_000)
    prompts = {row.prompt for row in rows}
    _, held_out = records.split_by_prompt(rows, fraction=0.1, seed=3)
    share = len({row.prompt for row in held_out}) / len(prompts)
    # Four standard deviations of a binomial share of that many prompts.
    assert abs(share - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(prompts))


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_no_side_of_a_split_is_empty(fraction):
    train, held_out = records.split_by_prompt(random_records(0, 20, 5), fraction=fraction, seed=0)
    assert train
    assert held_out


def test_split_refuses_what_it_cannot_do():
    rows = random_records(0, 5, 1)
    with pytest.raises(ValueError, match="fraction"):
        records.split_by_prompt(rows, fraction=1.0, seed=0)
    with pytest.raises(errors.UserError, match="at least 2 different prompts"):
        records.split_by_prompt(rows, fraction=0.5, seed=0)
