"""What every token task promises, and how completions are cut into steps and answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import (
    token_arithmetic,
    token_countdown,
    token_increasing,
    token_lock,
    token_longform,
    token_programs,
    token_tasks,
)

TASKS = {
    "addition": token_arithmetic.addition(max_digits=3),
    "multiplication": token_arithmetic.multiplication(max_digits=2),
    "programs": token_programs.make(max_instructions=5),
    "countdown": token_countdown.make(max_operations=3),
    "lock": token_lock.make(max_length=6, prompt_letters=2),
    "increasing": token_increasing.make(num_values=12, max_count=5),
}
LONG_FORM = token_longform.make(max_operations=4, num_words=3)
COUNT = 1024


@functools.cache
def drawn(name):
    """Problems of all difficulties with their demonstrations, NumPy arrays."""
    task = TASKS.get(name, LONG_FORM)

    def draw(key, difficulty):
        problem = task.sample(key, difficulty)
        return problem, task.demonstration(problem), task.reference(problem)

    difficulties = 1 + jnp.arange(COUNT) % task.max_difficulty
    keys = jax.random.split(jax.random.key(7), COUNT)
    return difficulties, jax.device_get(jax.jit(jax.vmap(draw))(keys, difficulties))


@functools.cache
def judge(name):
    """`(problems, tokens, mask) -> (rewards, answers, right answers)`, compiled."""
    task = TASKS[name]

    def check(problem, tokens, mask):
        reward = task.verify(problem, tokens, mask)
        return reward, task.answer(problem, tokens, mask), task.correct_answer(problem)

    compiled = jax.jit(jax.vmap(check))
    return lambda *arguments: jax.device_get(compiled(*arguments))


every_task = pytest.mark.parametrize("name", TASKS)
every_kind = pytest.mark.parametrize("name", [*TASKS, "long_form"])


@every_task
def test_demonstrations_are_right(name):
    _, (problem, (tokens, mask), _) = drawn(name)
    reward, answer, correct = judge(name)(problem, tokens, mask)
    assert reward.dtype == np.float32
    np.testing.assert_array_equal(reward, 1)
    np.testing.assert_array_equal(answer, correct)
    assert correct.min() >= 0


@every_kind
def test_rows_fit_the_sizes_and_the_vocabulary(name):
    task = TASKS.get(name, LONG_FORM)
    _, (problem, (tokens, mask), (reference, reference_mask)) = drawn(name)
    assert len(set(task.vocabulary)) == task.vocab_size
    assert task.vocabulary[:2] == ("<pad>", "<end>")
    rows = (
        (problem.prompt, problem.prompt_mask, task.max_prompt),
        (tokens, mask, task.max_new_tokens),
        (reference, reference_mask, task.max_answer),
    )
    for row, row_mask, size in rows:
        assert row.shape == row_mask.shape == (COUNT, size)
        assert (row.dtype, row_mask.dtype) == (np.int32, np.float32)
        lengths = row_mask.sum(axis=1).astype(int)
        np.testing.assert_array_equal(row_mask, np.arange(size) < lengths[:, None])
        np.testing.assert_array_equal(row[row_mask == 0], 0)
        assert row[row_mask == 1].min() > 0
        assert row.max() < task.vocab_size
        if name != "increasing":
            # The longest problems need all of it.
            assert lengths.max() == size
    assert task.max_chain == task.max_new_tokens - task.max_answer


@every_kind
def test_rows_end_once_and_references_are_what_follows_the_marker(name):
    task = TASKS.get(name, LONG_FORM)
    _, (_, (tokens, mask), (reference, reference_mask)) = drawn(name)
    for row, row_mask, answer, answer_mask in zip(
        tokens, mask, reference, reference_mask, strict=True
    ):
        written, expected = row[row_mask == 1].tolist(), answer[answer_mask == 1].tolist()
        assert written.count(token_tasks.END) == 1
        assert written[-1] == token_tasks.END
        if task.marker is None:
            assert written == expected
        else:
            assert written.count(task.marker) == 1
            assert written[written.index(task.marker) + 1 :] == expected
            assert len(written) - len(expected) <= task.max_chain


@every_task
def test_malformed_completions_earn_nothing(name):
    task = TASKS[name]
    _, (problem, (tokens, mask), _) = drawn(name)
    size = task.max_new_tokens
    random = np.random.default_rng(0)
    lengths = mask.sum(axis=1).astype(int)
    last = np.arange(size) == lengths[:, None] - 1
    filler = random.integers(2, task.vocab_size, tokens.shape)
    shifted = np.roll(tokens, 1, axis=1)
    shifted[:, 0] = 0
    cases = {
        "nothing counts": (tokens, np.zeros_like(mask)),
        "padding": (np.zeros_like(tokens), np.ones_like(mask)),
        "only the end": (np.ones_like(tokens), np.ones_like(mask)),
        "no end": (np.where(last, task.marker or 2, tokens), mask),
        "the end does not count": (tokens, np.where(last, 0, mask)),
        "runs on without an end": (
            np.where(last | (mask == 0), filler, tokens),
            np.ones_like(mask),
        ),
        "nothing but the largest id": (
            np.full_like(tokens, task.vocab_size - 1),
            np.ones_like(mask),
        ),
        "no such id": (np.where(last, 1, task.vocab_size + 5), mask),
        "negative ids": (np.where(last, 1, -3), mask),
        "the extremes": (
            np.where(last, 1, np.where(np.arange(size) % 2, -(2**31), 2**31 - 1)).astype(np.int32),
            np.ones_like(mask),
        ),
    }
    if task.marker is not None:
        cases["no marker"] = (np.where(tokens == task.marker, 3, tokens), mask)
        cases["nothing after the marker"] = (
            np.where(np.arange(size) == 0, task.marker, 1) * np.ones_like(tokens),
            np.ones_like(mask),
        )
    else:
        cases["padding before it"] = (shifted, np.ones_like(mask))
    for case, (row, row_mask) in cases.items():
        reward, answer, _ = judge(name)(problem, row.astype(np.int32), row_mask)
        np.testing.assert_array_equal(reward, 0, err_msg=case)
        np.testing.assert_array_equal(answer, -1, err_msg=case)


@every_task
def test_random_completions_are_judged_and_the_judgements_agree(name):
    task = TASKS[name]
    _, (problem, (tokens, _), _) = drawn(name)
    random = np.random.default_rng(1)
    # Parts of right answers among anything, ids outside of the vocabulary included.
    garbage = random.integers(-2, task.vocab_size + 2, tokens.shape)
    row = np.where(random.random(tokens.shape) < 0.2, garbage, tokens).astype(np.int32)
    row_mask = (random.random(tokens.shape) < 0.95).astype(np.float32)
    reward, answer, correct = judge(name)(problem, row, row_mask)
    assert set(np.unique(reward)) <= {0.0, 1.0}
    assert answer.min() >= -1
    np.testing.assert_array_equal(reward == 1, answer == correct)


@every_task
def test_nothing_is_read_behind_the_end_or_outside_of_the_mask(name):
    task = TASKS[name]
    _, (problem, (tokens, mask), _) = drawn(name)
    random = np.random.default_rng(2)
    filled = np.where(mask == 1, tokens, random.integers(0, task.vocab_size, tokens.shape))
    for row_mask in (mask, np.ones_like(mask)):
        reward, _, _ = judge(name)(problem, filled.astype(np.int32), row_mask)
        np.testing.assert_array_equal(reward, 1)


@every_task
def test_rows_of_any_length_and_kind_of_mask_are_judged(name):
    task = TASKS[name]
    _, (problem, (tokens, mask), _) = drawn(name)
    shortest = int(np.argmin(mask.sum(axis=1)))
    one = jax.tree.map(lambda leaf: leaf[shortest], problem)
    size = int(mask[shortest].sum())
    row = tokens[shortest]
    verify = jax.jit(task.verify)
    assert verify(one, row[:size], np.ones(size, bool)) == 1
    assert verify(one, row[: size - 1], np.ones(size - 1, np.int32)) == 0
    longer = np.concatenate([row, np.zeros(9, np.int32)])
    assert verify(one, longer, np.arange(row.size + 9) < size) == 1


@every_kind
def test_difficulties_are_clipped_to_their_range(name):
    task = TASKS.get(name, LONG_FORM)
    sample = jax.jit(task.sample)
    key = jax.random.key(3)
    for given, clipped in ((0, 1), (-5, 1), (task.max_difficulty + 9, task.max_difficulty)):
        jax.tree.map(np.testing.assert_array_equal, sample(key, given), sample(key, clipped))


@every_kind
def test_harder_problems_are_longer(name):
    difficulties, (problem, (_, mask), _) = drawn(name)
    task = TASKS.get(name, LONG_FORM)
    lengths = mask.sum(axis=1) + problem.prompt_mask.sum(axis=1)
    means = [
        lengths[difficulties == difficulty].mean()
        for difficulty in range(1, task.max_difficulty + 1)
    ]
    assert np.all(np.diff(means) > 0)


@every_kind
def test_problems_vary_and_a_key_repeats_them(name):
    task = TASKS.get(name, LONG_FORM)
    _, (problem, _, _) = drawn(name)
    # A lock of one letter and one number to write have few problems.
    assert len({tuple(row) for row in problem.prompt.tolist()}) >= 5
    sample = jax.jit(task.sample)
    jax.tree.map(
        np.testing.assert_array_equal,
        sample(jax.random.key(5), 2),
        sample(jax.random.key(5), jnp.asarray(2)),
    )


@every_kind
def test_types_are_the_same_in_double_precision(name):
    task = TASKS.get(name, LONG_FORM)

    def everything(key, difficulty):
        problem = task.sample(key, difficulty)
        row = task.demonstration(problem)
        judged = ()
        if isinstance(task, token_tasks.TokenTask):
            judged = (task.verify(problem, *row), task.answer(problem, *row))
        return problem.prompt, problem.prompt_mask, row, task.reference(problem), judged

    def types():
        shapes = jax.eval_shape(everything, jax.random.key(0), jnp.asarray(2))
        return [leaf.dtype for leaf in jax.tree.leaves(shapes)]

    single = types()
    with jax.enable_x64(True):
        assert types() == single
    assert set(single) == {np.dtype(np.int32), np.dtype(np.float32)}


def test_written_answers_by_hand():
    cases = [
        # tokens, mask, marker, answer or None
        ([5, 2, 6, 7, 1], [1, 1, 1, 1, 1], 2, [6, 7]),
        ([5, 2, 6, 7, 1], [1, 1, 1, 1, 1], None, [5, 2, 6, 7]),
        ([2, 5, 2, 6, 1], [1, 1, 1, 1, 1], 2, [6]),
        ([2, 5, 1, 2, 1], [1, 1, 1, 1, 1], 2, [5]),
        ([2, 1, 1, 1, 1], [1, 1, 1, 1, 1], 2, []),
        ([1, 2, 5, 1, 0], [1, 1, 1, 1, 0], 2, None),
        ([2, 5, 6, 7, 8], [1, 1, 1, 1, 1], 2, None),
        ([2, 5, 6, 7, 1], [1, 1, 1, 1, 0], 2, None),
        ([2, 5, 6, 7, 1], [0, 1, 1, 1, 1], 2, None),
        ([2, 5, 6, 7, 1], [1, 1, 0, 1, 1], 2, [5, 0, 7]),
        ([1, 5, 6, 7, 8], [1, 1, 1, 1, 1], None, []),
    ]
    for tokens, mask, marker, expected in cases:
        found = token_tasks.written_answer(jnp.array(tokens), jnp.array(mask), marker)
        assert bool(found.is_whole) == (expected is not None)
        expected = expected or []
        assert int(found.length) == len(expected)
        np.testing.assert_array_equal(found.tokens, expected + [0] * (5 - len(expected)))


def test_packing_keeps_the_order():
    row, mask = token_tasks.pack(jnp.array([7, 8, 9, 4]), jnp.array([0, 1, 0, 1]), 3)
    np.testing.assert_array_equal(row, [8, 4, 0])
    np.testing.assert_array_equal(mask, [1, 1, 0])
    row, mask = token_tasks.concatenate(
        [(5, True), (jnp.array([6, 7]), jnp.array([False, True])), (8, False)], 4
    )
    np.testing.assert_array_equal(row, [5, 7, 0, 0])
    np.testing.assert_array_equal(mask, [1, 1, 0, 0])


def test_text_and_tokens():
    names = ("<pad>", "<end>", "#", "a")
    assert token_tasks.as_text(names, [3, 2, 3, 1, 0], [1, 1, 1, 1, 0]) == "a # a <end>"
    assert token_tasks.as_text(names, [3, 9, -1]) == "a <9> <-1>"
    np.testing.assert_array_equal(token_tasks.from_text(names, "a # a <end>"), [3, 2, 3, 1])
    with pytest.raises(ValueError, match="got 'b'"):
        token_tasks.from_text(names, "a b")


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (token_arithmetic.addition, {"max_digits": 9}, "max_digits must be from 1 to 8, got 9"),
        (token_arithmetic.multiplication, {"max_digits": 0}, "max_digits must be from 1 to 4"),
        (token_programs.make, {"max_instructions": 0}, "max_instructions must be at least 1"),
        (token_programs.make, {"modulus": 1}, "modulus must be from 2"),
        (token_programs.make, {"modulus": 3, "num_examples": 4}, "modulus must be from 4"),
        (token_programs.make, {"modulus": 100, "num_examples": 5}, "fit into int32"),
        (token_programs.make, {"stack_size": 1}, "stack_size"),
        (token_countdown.make, {"max_operations": 0}, "max_operations"),
        (token_countdown.make, {"max_value": 5}, "max_value must be from 12 to 1000, got 5"),
        (token_countdown.make, {"max_number": 1}, "max_number"),
        (token_lock.make, {"max_length": 0}, "max_length"),
        (token_lock.make, {"num_letters": 1}, "num_letters"),
        (token_lock.make, {"prompt_letters": 0}, "prompt_letters"),
        (token_increasing.make, {"max_count": 0}, "max_count"),
        (token_increasing.make, {"num_values": 10}, "num_values must be at least 11"),
        (token_longform.make, {"max_operations": 0}, "max_operations"),
        (token_longform.make, {"num_states": 2}, "num_states"),
        (token_longform.make, {"num_words": 0}, "num_words"),
        (token_longform.make, {"manner_probs": (0.5, 0.4)}, "manner_probs"),
        (token_longform.make, {"manner_probs": (0.25,) * 4, "num_states": 4}, "1 to 3 positive"),
        (token_longform.make, {"noise": 0.0}, "noise must be between 0 and 1"),
    ],
)
def test_refuses_tasks_that_do_not_exist(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
