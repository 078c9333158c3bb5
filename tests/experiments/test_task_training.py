"""Runs on token tasks: problems, batches, whole runs, and that stopping them changes nothing."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import completion_losses, sampling
from bellmax.agents.completions import CompletionLogProbs
from bellmax.configs.reason import tasks
from bellmax.envs import token_arithmetic, token_tasks
from bellmax.experiments import config as config_lib
from bellmax.experiments import (
    errors,
    metrics,
    task_config,
    task_data,
    task_evaluation,
    task_methods,
    task_rollouts,
    task_training,
)

METHODS = ("ppo",)


def make_config(task="addition", names=METHODS, **groups):
    config = tasks.of_methods(names, task)
    config.update(
        {
            "model": {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 4},
            "data": {"difficulty": 1, "num_held_out": 6},
            "train": {
                "warm_start_steps": 2,
                "warm_start_batch_size": 4,
                "num_steps": 4,
                "batch_size": 4,
                "group_size": 2,
                "accumulate_steps": 2,
                "evaluation_samples": 4,
                "log_every": 1,
                "evaluate_every": 2,
                "checkpoint_every": 3,
            },
        }
    )
    config.update({"model": {"embed_dim": 8, "mlp_dim": 8}})
    config.update(groups)
    return config_lib.to_dataclass(task_config.TaskConfig, config)


def drawn(task, count, *, difficulty):
    draw = functools.partial(task_data.draw, task, difficulty=difficulty)
    return jax.jit(draw)(jax.random.key(0), jnp.arange(count))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Samples of a policy two steps old, two parts of a batch, two passes over them."""
    workdir = tmp_path_factory.mktemp("tasks")
    config = make_config(loss={"staleness": 2, "minibatches": 2, "updates_per_batch": 2})
    return config, workdir, task_training.train(config, workdir)


def test_leaves_a_table_figures_samples_and_metrics(finished):
    _, workdir, rows = finished
    assert [row["method"] for row in rows] == ["warm_start", *METHODS]
    stored = json.loads((workdir / "result.json").read_text())["rows"]
    assert [row["method"] for row in stored] == ["warm_start", *METHODS]
    assert (workdir / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    text = (workdir / "samples.txt").read_text()
    assert text.count("+") >= 6
    assert text.count("ppo [") == 6
    logged = metrics.read_metrics(workdir)
    assert {row["stage"] for row in logged} == {"warm_start", *METHODS}
    for row in logged:
        assert all(np.isfinite(v) for v in row.values() if isinstance(v, float))
    last = [row for row in logged if row["stage"] == "ppo" and "loss" in row][-1]
    assert (last["step"], last["updates/done"]) == (4, 4)


def test_the_reference_has_no_distance_from_itself(finished):
    _, workdir, rows = finished
    assert rows[0]["kl/reference"] == pytest.approx(0, abs=1e-5)
    first = next(row for row in metrics.read_metrics(workdir) if row["stage"] == "ppo")
    assert first["kl/reference"] == pytest.approx(0, abs=1e-5)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(finished, tmp_path, stop_at_call):
    config, workdir, _ = finished
    stop_at_call(task_evaluation.CheckedEvaluation, "__call__", 5)
    with pytest.raises(KeyboardInterrupt):
        task_training.train(config, tmp_path)
    # Stopped at step 4 of the first method, whose last checkpoint is step 3, a stale policy in it.
    task_training.train(config, tmp_path)
    assert (tmp_path / "result.json").read_text() == (workdir / "result.json").read_text()


@pytest.mark.slow
def test_answers_without_a_verifier_are_learnt(tmp_path):
    rows = task_training.train(make_config("long_form", ("jepo",)), tmp_path)
    best = rows[0]["answers/best"]
    for row in rows:
        assert row["answers/bound@1"] <= row["answers/bound@4"] < 0
        assert 0 <= row["chains/right"] <= row["chains/ended"] <= 1
        assert row["answers/best"] == best
    # Adam's first steps are large enough for this: the answers' own likelihood is learnt as well.
    assert rows[1]["answers/bound@1"] > rows[0]["answers/bound@1"]


def test_training_and_evaluation_never_share_a_problem():
    config = task_config.DataConfig("token_task", "addition", 1, 6)
    task = task_data.make_task(config)
    found = drawn(task, 500, difficulty=1)
    kept = task_data.held_out(task, config, jax.random.key(1))
    train = {tuple(row) for row in np.asarray(found.problem.prompt)[np.asarray(found.weight) > 0]}
    held = {tuple(row) for row in kept.prompt}
    assert len(held) == 6
    assert len(train) > 70
    assert not train & held
    # A row's randomness is its number's, whatever the batch.
    some = drawn(task, 8, difficulty=1)
    np.testing.assert_array_equal(some.problem.prompt, found.problem.prompt[:8])
    assert 0.05 < task_data.is_held_out(jnp.indices((9, 9, 9)).reshape(3, -1).T).mean() < 0.2


def test_solutions_follow_their_prompts():
    task = token_arithmetic.addition(max_digits=2)
    problems = drawn(task, 5, difficulty=2).problem
    tokens, mask = jax.jit(functools.partial(task_data.solutions, task))(problems)
    for row in range(5):
        text = token_tasks.as_text(task.vocabulary, tokens[row], tokens[row] != 0)
        asked, _, given = text.partition("=")
        left, right = (int(part.replace(" ", "")) for part in asked.split("+"))
        answer = given.partition("#")[2].replace("<end>", "").replace(" ", "")
        assert int(answer) == left + right
        shown = token_tasks.as_text(task.vocabulary, tokens[row], mask[row])
        assert shown == given.strip()
    is_swapped = jnp.arange(5) == 1
    wrong, _ = jax.jit(functools.partial(task_data.solutions, task))(problems, is_swapped)
    for row in range(5):
        own, other = np.asarray(tokens[row]), np.asarray(tokens[(row + 1) % 5])
        # Prompts are five tokens and "=", padded by none at this difficulty.
        expected = np.concatenate([own[:6], other[6:]]) if row == 1 else own
        np.testing.assert_array_equal(wrong[row], expected)


def completion_of(rows, ended):
    mask = np.asarray(ended, np.float32)
    zeros = jnp.zeros(mask.shape)
    return sampling.Completion(jnp.asarray(rows, jnp.int32), zeros - 0.5, zeros, jnp.asarray(mask))


def test_known_answers_follow_chains():
    """By hand: a chain that ends in the marker, one that does not and is given one."""
    config = task_config.DataConfig("token_task", "long_form", 2, 2)
    task = task_data.make_task(config)
    problems = drawn(task, 1, difficulty=1).problem
    prompt = problems.prompt[0][problems.prompt_mask[0] > 0]
    answer = task.reference(jax.tree.map(lambda leaf: leaf[0], problems))[0]
    chains = completion_of([[5, 2, 0], [5, 6, 7]], [[1, 1, 0], [1, 1, 1]])
    index, weight = jnp.arange(1), jnp.ones(1)
    with_answers = jax.jit(functools.partial(task_rollouts.with_answers, task))
    found = with_answers(
        problems,
        jax.jit(functools.partial(task_rollouts.as_batch, group_size=2))(
            problems, chains, index=index, weight=weight
        ),
    )
    for place, chain, marker in ((0, [5, 2], []), (1, [5, 6, 7], [2])):
        expected = np.concatenate([prompt, chain, marker, answer]).astype(int)
        row, size = np.asarray(found.tokens[0, place]), len(expected)
        np.testing.assert_array_equal(row[:size], expected)
        start = len(prompt)
        assert np.flatnonzero(found.mask[0, place]).tolist() == list(
            range(start, start + len(chain))
        )
        assert np.flatnonzero(found.answer_mask[0, place]).tolist() == list(
            range(size - len(answer), size)
        )
        np.testing.assert_allclose(
            found.behaviour_log_probs[0, place], -0.5 * np.asarray(found.mask[0, place])
        )
    assert np.asarray(found.rewards).tolist() == [[0, -1]]
    empty = with_answers(problems, task_rollouts.no_chains(problems, index=index, weight=weight))
    expected = np.concatenate([prompt, [2], answer])
    np.testing.assert_array_equal(empty.tokens[0, 0, : len(expected)], expected)
    assert not empty.mask.any()


def random_group():
    rng = np.random.default_rng(0)
    shape = (3, 4, 5)
    mask = np.ones(shape, np.float32)
    values = [jnp.asarray(-rng.uniform(1, 2, shape), jnp.float32) for _ in range(4)]
    return CompletionLogProbs(
        *values[:3],
        mask=jnp.asarray(mask).at[..., 3:].set(0),
        rewards=jnp.asarray(rng.integers(0, 2, shape[:2]), jnp.float32),
        values=values[3],
        greedy_rewards=jnp.ones(3),
        answers=jnp.asarray(rng.integers(-1, 2, shape[:2])),
        correct_answers=jnp.ones(3, jnp.int32),
        answer_mask=jnp.asarray(mask).at[..., :3].set(0),
    )


@pytest.mark.parametrize("name", task_methods.METHODS)
def test_every_method_has_a_loss_with_a_gradient(name):
    config = make_config(names=(name,), loss={"k": 2})
    task = task_data.make_task(config.data)
    method = task_methods.make_method(name, 0.1, config.loss, task)
    group = random_group()
    loss = method.loss_fn(group)
    assert loss.shape == (3,)
    slope = jax.grad(lambda x: method.loss_fn(group._replace(log_probs=x)).sum())(group.log_probs)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 1e-4


def test_measures_are_those_of_the_samples(finished):
    config, _, rows = finished
    for row in rows:
        assert row["pass@1"] <= row["pass@2"] <= row["pass@4"]
        assert 0 <= row["answers"] <= 1
        assert row["lengths/mean"] <= token_arithmetic.addition(max_digits=1).max_new_tokens
    votes = completion_losses.as_votes(jnp.array([[-1, -1, 3, -1]]))
    assert np.asarray(votes).tolist() == [[-1, -2, 3, -4]]
    assert config.train.evaluation_samples == 4


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"loss": {"names": ("rlo",)}}, "Did you mean 'rloo'"),
        ({"loss": {"names": ("agro",), "betas": (0.0,)}}, "betas must be positive"),
        ({"loss": {"betas": (0.1, 0.1)}}, "betas must hold one value for each"),
        ({"loss": {"staleness": -1}}, "staleness must be at least 0"),
        ({"loss": {"minibatches": 3}}, "minibatches must divide"),
        ({"train": {"accumulate_steps": 3}}, "accumulate_steps must divide"),
        ({"loss": {"names": ("pass_at_k",), "k": 9}}, "k must be at most"),
        ({"loss": {"ties": "first"}}, "ties must be one of lowest, uniform"),
        ({"data": {"task": "additon"}}, "Did you mean 'addition'"),
        ({"data": {"difficulty": 99}}, "max_digits must be from 1 to 8"),
        ({"data": {"task": "long_form"}}, "answers can be checked"),
        ({"data": {"task": "lock"}, "loss": {"names": ("jepo",)}}, "follow a marker"),
        ({"model": {"chunk_size": 4}}, "chunk_size must be 0"),
        ({"train": {"temperature": 0.0}}, "temperature must be positive"),
        ({"train": {"warm_start_noise": 1.5}}, r"warm_start_noise must be in \[0, 1\]"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_key(groups, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        task_training.train(make_config(**groups), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
