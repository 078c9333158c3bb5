"""A fixed buffer of another policy's completions: read, refused, and learnt from."""

import dataclasses
import json
import os
import pathlib
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import completions
from bellmax.experiments import (
    errors,
    language_run,
    metrics,
    task_methods,
    task_steps,
    text_completions,
    text_tasks,
    text_training,
)

text_cases = types.SimpleNamespace(
    **runpy.run_path(str(pathlib.Path(__file__).with_name("text_cases.py")))
)
# Of questions to learn from, of one that only this file knows, of one that is held out.
ROWS = [
    {"question": "1 and 1?", "completions": ["so 2", "so 3", "dropped"]},
    {"question": "2 and 2?", "completions": ["#### 4", "4.0"], "rewards": [0.5, -2]},
    {"question": "7 eggs?", "completions": ["none", "it is 7"], "answer": "Seven.\n#### 7"},
    {"question": "11 and 11?", "completions": ["22", "23"]},
]


def make_config(folder, rows, names=("agro",), *, staleness=0, data=None, **groups):
    path = text_cases.write(folder / "stored.jsonl", rows)
    data = {"completions": path, "max_new_tokens": 9} | (data or {})
    config = text_cases.make_config(folder, names, data=data, **groups)
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, staleness=staleness))


def decode(run, tokens, mask):
    assert isinstance(run.task, text_tasks.TextTask)
    return run.task.as_text(tokens, mask)


def collected(config, folder):
    """The first step's batch, its prompts, and the log-probabilities of the policy that is kept."""
    run = text_training.prepare(config, folder)
    name = config.loss.names[0]
    rows = next(run.stage(name, 1, 3, run.stored)["batches"])
    method = task_methods.make_method(name, 0.1, config.loss, run.task)
    params = language_run.compiled_init(run.network)(jax.random.key(0))

    def collect(params):
        key = jax.random.key(1)
        batch = task_steps.collect(run, method, params, rows.index, key, rows)
        return batch, completions.token_log_probs(run.model, params, batch)

    batch, scores = jax.device_get(jax.jit(collect)(params))
    prompts = [
        decode(run, tokens, mask)
        for tokens, mask in zip(rows.problem.prompt, rows.problem.prompt_mask, strict=True)
    ]
    return run, batch, prompts, scores


def test_groups_are_rows_with_their_rewards(tmp_path):
    run, batch, prompts, scores = collected(make_config(tmp_path, ROWS), tmp_path)
    assert "3 groups of" in run.about
    assert "1 that are held out, 0 with" in run.about
    assert "behaviour: the reference" in run.about
    assert sorted(prompts) == ["1 and 1?=", "2 and 2?=", "7 eggs?="]
    expected = {
        "1 and 1?=": (["so 2", "so 3"], [1, 0], [0, 1]),
        "2 and 2?=": (["#### 4", "4.0"], [0.5, -2], [0, 0]),
        "7 eggs?=": (["none", "it is 7"], [0, 1], [-1, 0]),
    }
    for place, prompt in enumerate(prompts):
        texts, rewards, answers = expected[prompt]
        assert batch.rewards[place].tolist() == rewards
        assert batch.answers[place].tolist() == answers
        for tokens, mask, text in zip(batch.tokens[place], batch.mask[place], texts, strict=True):
            assert decode(run, tokens, mask) == text
            # The prompt comes before, and the end token counts.
            row = [*prompt.encode(), *text.encode(), 256]
            assert tokens[: len(row)].tolist() == row
            assert np.flatnonzero(mask).tolist() == list(range(len(prompt), len(row)))
    assert batch.correct_answers.tolist() == [0, 0, 0]
    # Nobody knows the behaviour: the reference stands for it.
    np.testing.assert_allclose(batch.behaviour_log_probs, scores * batch.mask, rtol=1e-5, atol=1e-6)


def test_known_log_probabilities_come_from_the_file(tmp_path):
    scores = [[-0.5, -1.0, -2.0, -0.25, -0.125], [-3.0, -1.5, -1.0, -0.5, -0.75]]
    rows = [ROWS[0] | {"completions": ["so 2", "so 3"], "behaviour_log_probs": scores}]
    _, batch, _, _ = collected(make_config(tmp_path, rows), tmp_path)
    for place in range(2):
        counted = batch.mask[0, place] > 0
        assert batch.behaviour_log_probs[0, place][counted].tolist() == scores[place]
        assert not batch.behaviour_log_probs[0, place][~counted].any()


@pytest.mark.slow
def test_a_run_learns_from_the_buffer_alone(tmp_path):
    """Rewards of a step are the file's: one of two is right in every group."""
    rows = [{"question": f"{i} and {i}?", "completions": [f"{2 * i}", "no"]} for i in range(1, 7)]
    config = make_config(tmp_path, rows, train={"num_steps": 1})
    found = text_training.train(config, tmp_path)
    assert [row["method"] for row in found] == ["warm_start", "agro"]
    assert found[1]["kl/reference"] != pytest.approx(found[0]["kl/reference"], abs=1e-6)
    (step,) = [
        row for row in metrics.read_metrics(tmp_path) if row["stage"] == "agro" and "loss" in row
    ]
    assert (step["rewards/mean"], step["rewards/best"]) == (0.5, 1)
    assert step["lengths/mean"] == pytest.approx(2.5, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "agro"])
def test_a_chunked_head_takes_the_same_step(name, tmp_path):
    found = []
    for chunk_size in (0, 5):
        config = make_config(tmp_path, ROWS, (name,), model={"chunk_size": chunk_size})
        run = text_training.prepare(config, tmp_path)
        params = language_run.compiled_init(run.network)(jax.random.key(0))
        learner = task_steps.make_learner(run, 0, params)
        start = learner.agent.init(jax.random.key(1), params=params)
        rows = next(run.stage(name, 1, 3, run.stored)["batches"])
        state = task_steps.State(jnp.zeros((), jnp.int32), start, ())
        step = jax.jit(task_steps.make_step(run, learner))
        found.append(jax.tree.map(float, step(state, rows, jax.random.key(2))[1]))
    for measure in ("loss", "grad_norm", "entropy", "rewards/mean"):
        assert found[1][measure] == pytest.approx(found[0][measure], rel=1e-4), measure
    assert found[0]["grad_norm"] > 1e-3
    assert found[0]["rewards/mean"] == pytest.approx((0.5 - 0.75 + 0.5) / 3)


def test_published_model_solutions_are_read_as_they_are(tmp_path):
    """What their readers marked right and wrong: the verifier agrees."""
    sibling = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("BELLMAX_DATA") or sibling) / "gsm8k"
    path = folder / "model_solutions_first400.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no gsm8k/{path.name}: set BELLMAX_DATA to the folder that holds gsm8k")
    data = {"completions": str(path), "max_prompt_tokens": 400, "max_new_tokens": 500}
    config = make_config(tmp_path, ROWS, data=data, train={"group_size": 4})
    run = text_training.prepare(config, tmp_path)
    assert run.stored is not None
    stored = run.stored.stored
    assert stored is not None
    assert 300 < len(stored.rewards) < 400
    rows = text_completions.read(str(path), 4, {})
    assert len(rows) == 400
    assert rows[0].number == "18"
    by_question = {row.question: row for row in rows}
    # Mean correctness of the four models on all questions, by the file's own marks.
    assert stored.rewards.mean(axis=0) == pytest.approx([0.217, 0.390, 0.347, 0.563], abs=0.08)
    prompt = run.stored.problem
    text = decode(run, prompt.prompt[5], prompt.prompt_mask[5]).removesuffix("=")
    written = [
        decode(run, tokens, mask)
        for tokens, mask in zip(stored.tokens[5], stored.mask[5], strict=True)
    ]
    assert written == by_question[text].completions


ROW = ROWS[0]
TWO = {"question": "1 and 1?", "completions": ["2", "3"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"completions": ["2"]}, "line 2: there must be config.train.group_size 2"),
        (ROW | {"completions": "2"}, "line 2: 'completions' must be a list of strings"),
        (ROW | {"completions": ["2", 3]}, "line 2: 'completions' must be a list of strings"),
        ({"question": "1 and 1?", "samples": [{"text": "2"}]}, "line 2: 'completions' must be"),
        ({"completions": ["2", "3"]}, "line 2: the field 'question' is missing"),
        (TWO | {"question": "Who?"}, "line 2: there is no 'answer', and the question"),
        (TWO | {"answer": "two"}, "line 2: 'answer' gives no number, got 'two'"),
        (TWO | {"rewards": [1]}, "line 2: 'rewards' must be a list of one for each of 2"),
        (TWO | {"rewards": [1, "x"]}, "line 2: 'rewards' must be finite numbers"),
        (TWO | {"behaviour_log_probs": [[0], [0]]}, "line 2: .* in every row or in none"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(row, message, tmp_path):
    with pytest.raises(errors.UserError, match=rf"stored\.jsonl, {message}"):
        text_training.prepare(make_config(tmp_path, [ROW, row]), tmp_path)


def test_log_probabilities_that_do_not_fit_the_tokens_are_refused(tmp_path):
    for scores, got in (([-1.0], "1"), ([-1.0, float("nan")], "2"), (-1.0, "-1.0")):
        rows = [TWO | {"behaviour_log_probs": [[-1.0, -1.0], scores]}]
        message = rf"line 1: 'behaviour_log_probs' .* here 2; got {got}"
        with pytest.raises(errors.UserError, match=message):
            text_training.prepare(make_config(tmp_path, rows), tmp_path)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"staleness": 1}, r"config\.loss\.staleness must be 0 with"),
        ({"names": ("remax",)}, "holds 'remax', whose baseline is a completion of its own"),
        ({"data": {"completions": "nowhere.jsonl"}}, r"There is no file nowhere\.jsonl"),
        ({"data": {"max_new_tokens": 2}}, "has no row left of 4, 3 of them not held out"),
    ],
)
def test_what_cannot_be_learnt_is_refused_by_the_key(groups, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        text_training.train(make_config(tmp_path, ROWS, **groups), tmp_path)
    assert json.loads((tmp_path / "stored.jsonl").read_text().splitlines()[0]) == ROWS[0]
    assert not (tmp_path / "checkpoints").exists()
