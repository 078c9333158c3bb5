"""Questions as a table of tokens, and completions checked on the host."""

import functools
import json
import os
import pathlib
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.experiments import errors, mesh, pretrained, text_data, text_tasks
from bellmax.experiments.data import gsm8k, tokenizers

text_cases = types.SimpleNamespace(
    **runpy.run_path(str(pathlib.Path(__file__).with_name("text_cases.py")))
)


def published(name):
    sibling = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
    path = pathlib.Path(os.environ.get("BELLMAX_DATA") or sibling) / "gsm8k" / name
    if not path.is_file():
        pytest.skip(f"no gsm8k/{name}: set BELLMAX_DATA to the folder that holds gsm8k")
    return str(path)


def loaded(folder, **data):
    config = text_cases.make_config(folder, data=data)
    tokenizer = pretrained.make_tokenizer(config)
    return tokenizer, text_data.load(config.data, tokenizer, folder)


def decoded(tokenizer, tokens, mask):
    return [
        tokenizer.decode(row[there > 0].tolist()) for row, there in zip(tokens, mask, strict=True)
    ]


def test_rows_hold_prompt_solution_and_number(tmp_path):
    tokenizer, data = loaded(tmp_path, max_new_tokens=40)
    train = data.train.problem
    assert decoded(tokenizer, train.prompt, train.prompt_mask)[:2] == ["1 and 1?=", "2 and 2?="]
    solutions = decoded(tokenizer, train.solution.tokens, train.solution.mask)
    # Without what the file hands to a calculator.
    assert solutions[1] == " 2+2=4\n#### 4"
    ends = train.solution.mask.sum(axis=1).astype(int) - 1
    assert (train.solution.tokens[np.arange(6), ends] == tokenizer.end_id).all()
    rows = [*train.solution.row, *data.held_out.solution.row]
    assert [data.numbers[row] for row in rows] == ["2", "4", "6", "8", "10", "12", "22", "24", "26"]
    # Seven tokens of a solution are not an end, and what is not there is no token.
    tokenizer, data = loaded(tmp_path, max_new_tokens=7)
    assert (
        decoded(tokenizer, data.train.problem.solution.tokens, data.train.problem.solution.mask)[0]
        == " 1+1=2\n"
    )
    assert "6 solutions longer than 7" in data.about


def test_held_out_questions_are_not_trained_on(tmp_path):
    path = text_cases.write(tmp_path / "both.jsonl", text_cases.rows(1, 8))
    tokenizer, data = loaded(tmp_path, path=path, held_out_path=path, num_held_out=3)
    questions = [
        decoded(tokenizer, side.prompt, side.prompt_mask)
        for side in (data.held_out, data.train.problem)
    ]
    assert questions == [[f"{i} and {i}?=" for i in span] for span in (range(1, 4), range(4, 9))]
    assert "3 that are held out" in data.about


def test_long_prompts_are_left_out_and_counted(tmp_path):
    path = text_cases.write(tmp_path / "mixed.jsonl", text_cases.rows(8, 4))
    tokenizer, data = loaded(tmp_path, path=path, max_prompt_tokens=11)
    assert decoded(tokenizer, data.train.problem.prompt, data.train.problem.prompt_mask) == [
        "8 and 8?=",
        "9 and 9?=",
        "10 and 10?=",
    ]
    assert data.train.problem.prompt.shape == (3, 11)
    _, data = loaded(tmp_path, path=path, max_prompt_tokens=11, num_held_out=2)
    assert "left out: 0 and 0 with more than 11 tokens" in data.about
    with pytest.raises(errors.UserError, match=r"held_out_path .* has 0 questions of at most"):
        loaded(tmp_path, path=path, max_prompt_tokens=9)


def test_templates_are_filled_once_and_keep_other_braces():
    found = text_data.fill("{a}{b} {c}", a="{b}", b="x")
    assert found == "{b}x {c}"


def test_an_epoch_has_every_row_once_wherever_it_is_resumed(tmp_path):
    _, data = loaded(tmp_path)
    batches = functools.partial(text_data.ProblemBatches, data.train, 4, seed=0)
    one = batches(name="rloo")
    rows = [next(one).problem.solution.row for _ in range(6)]
    epochs = np.concatenate(rows).reshape(4, 6)
    assert np.sort(epochs, axis=1).tolist() == [list(range(6))] * 4
    assert len({tuple(epoch) for epoch in epochs}) > 1
    other = batches(name="rloo")
    for _ in range(2):
        next(other)
    resumed = batches(name="rloo")
    resumed.set_state(json.loads(json.dumps(other.get_state())))
    for expected in rows[2:]:
        np.testing.assert_array_equal(next(resumed).problem.solution.row, expected)
    named = batches(name="grpo")
    assert [next(named).problem.solution.row.tolist() for _ in range(6)] != [
        row.tolist() for row in rows
    ]


def completions(tokenizer, groups, size):
    """Rows of tokens with rubbish behind their masks."""
    ids = [[tokenizer.encode(text) for text in group] for group in groups]
    tokens = np.full((len(groups), len(groups[0]), size), 53, np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for place in np.ndindex(tokens.shape[:2]):
        row = ids[place[0]][place[1]]
        tokens[place][: len(row)], mask[place][: len(row)] = row, 1
    return jnp.asarray(tokens), jnp.asarray(mask)


def test_completions_are_judged_by_their_numbers(tmp_path):
    tokenizer, data = loaded(tmp_path)
    task = text_tasks.TextTask(tokenizer, data.numbers, 20, mesh.make_mesh())
    groups = [
        ["1+1=2\n#### 2", "#### 2.00", "#### 3 or 2", "nothing"],
        ["it is 5", "#### 7", "so 5", "4 <- no, #### 4"],
    ]
    tokens, mask = completions(tokenizer, groups, 20)
    # An id that the tokenizer has not, such as a checkpoint's padding, and the end token.
    tokens = tokens.at[0, 0, 12].set(300).at[0, 1, 9].set(tokenizer.end_id)
    mask = mask.at[0, 0, 12].set(1).at[0, 1, 9].set(1)
    problems = jax.tree.map(lambda leaf: leaf[:2], data.train.problem)
    answers = jax.jit(task.answers)(problems, tokens, mask)
    assert answers.tolist() == [[0, 0, 1, -1], [1, 2, 1, 0]]
    assert task.as_text(tokens[0, 0], mask[0, 0]) == "1+1=2\n#### 2"


def test_an_empty_end_token_is_the_tokenizers(tmp_path):
    with pytest.raises(errors.UserError, match="end_token must be empty for the tokenizer 'byte'"):
        pretrained.make_tokenizer(text_cases.make_config(tmp_path, data={"end_token": "</s>"}))
    found = pretrained.make_tokenizer(text_cases.make_config(tmp_path))
    assert isinstance(found, tokenizers.ByteTokenizer)


def test_published_questions_become_a_table(tmp_path):
    """All prompts fit but the longest; the published solutions of all are right."""
    train, test = published("train_first1500.jsonl.gz"), published("test.jsonl.gz")
    data = {"path": train, "held_out_path": test, "num_held_out": 1319, "max_new_tokens": 400}
    template = "Question: {question}\nAnswer:"
    tokenizer, found = loaded(tmp_path, **data, prompt=template, max_prompt_tokens=512)
    records = gsm8k.read(train)
    kept = [r for r in records if len(template.format(question=r.question).encode()) <= 512]
    assert 1450 < len(kept) == len(found.train.problem.prompt) < 1500
    assert decoded(
        tokenizer, found.train.problem.prompt[-1:], found.train.problem.prompt_mask[-1:]
    ) == [f"Question: {kept[-1].question}\nAnswer:"]
    task = text_tasks.TextTask(tokenizer, found.numbers, 400, mesh.make_mesh())
    solution = found.train.problem.solution
    width = 400 - solution.tokens.shape[1]
    tokens, mask = (
        jnp.pad(jnp.asarray(leaf), ((0, 0), (0, width)))
        for leaf in (solution.tokens, solution.mask)
    )
    answers = jax.jit(task.answers)(found.train.problem, tokens[:, None], mask[:, None])
    is_whole = np.asarray(solution.tokens == tokenizer.end_id).any(axis=1)
    assert 0.85 < is_whole.mean() < 1
    assert (np.asarray(answers)[is_whole, 0] == 0).all()


@pytest.mark.parametrize(
    ("devices", "printed"),
    [
        pytest.param(1, ["alike"], marks=pytest.mark.slow),
        (4, ["alike", "alike", "collected"]),
    ],
)
def test_devices_check_alike_and_never_wait_for_the_host(devices, printed, words_on_devices):
    """On one thread, with arrays that XLA copies on a thread of its own if they come whole."""
    script = pathlib.Path(__file__).parent / "device_text.py"
    assert words_on_devices(script, devices=devices, threads=devices, seconds=120) == printed
