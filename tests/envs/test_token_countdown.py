"""Countdown against Python's fractions, on every short expression and on changed ones."""

import collections
import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import token_countdown, token_tasks

TASK = token_countdown.make(max_operations=3)
NAMES = TASK.vocabulary
COUNT = 2000
OPERATIONS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: Fraction(x, y),
}


def value(words, max_value=99):
    """The value of an expression by the rules, or None."""
    stack = []
    for word in words:
        if word.isdigit():
            stack.append(int(word))
        elif word in OPERATIONS and len(stack) >= 2:
            y, x = stack.pop(), stack.pop()
            stack.append(OPERATIONS[word](x, y))
        else:
            return None
        if stack[-1] < 1 or stack[-1] > max_value or Fraction(stack[-1]).denominator != 1:
            return None
    return int(stack[0]) if len(stack) == 1 else None


def judgement(completion, numbers, target):
    words = completion.split()
    if "<end>" not in words:
        return False, -1
    words = words[: words.index("<end>")]
    if "#" not in words:
        return False, -1
    words = words[len(words) - words[::-1].index("#") :]
    used = collections.Counter(int(word) for word in words if word.isdigit())
    found = value(words)
    if found is None or used - collections.Counter(numbers):
        return False, -1
    return found == target, found


@functools.cache
def drawn():
    def draw(key, difficulty):
        problem = TASK.sample(key, difficulty)
        return problem, TASK.demonstration(problem)

    keys = jax.random.split(jax.random.key(2), COUNT)
    return jax.device_get(jax.jit(jax.vmap(draw))(keys, 1 + jnp.arange(COUNT) % 3))


@functools.cache
def judge():
    compiled = jax.jit(jax.vmap(lambda *row: (TASK.verify(*row), TASK.answer(*row))))
    return lambda *arguments: jax.device_get(compiled(*arguments))


def question(problem, row):
    words = token_tasks.as_text(NAMES, problem.prompt[row], problem.prompt_mask[row]).split()
    assert (words[-3], words[-1]) == (">", "=")
    return [int(word) for word in words[:-3]], int(words[-2])


def test_demonstrations_reach_the_target_with_all_numbers():
    problem, (tokens, mask) = drawn()
    for row in range(COUNT):
        numbers, target = question(problem, row)
        operations = 1 + row % 3
        assert len(numbers) == operations + 1
        assert all(1 <= number <= 12 for number in numbers)
        words = token_tasks.as_text(NAMES, tokens[row], mask[row]).split()
        marker = words.index("#")
        # The steps make new numbers of the given ones until the target is left.
        left = collections.Counter(numbers)
        steps = words[:marker]
        assert len(steps) == 4 * operations
        for x, y, operation, result in zip(*[iter(steps)] * 4, strict=True):
            left.subtract([int(x), int(y)])
            assert min(left.values()) >= 0
            made = OPERATIONS[operation](int(x), int(y))
            assert made == int(result)
            left[int(result)] += 1
        assert +left == collections.Counter([target])
        expression = words[marker + 1 : -1]
        assert sorted(int(word) for word in expression if word.isdigit()) == sorted(numbers)
        assert value(expression) == target


def test_operations_and_shapes_of_expressions_vary():
    _, (tokens, mask) = drawn()
    shapes = collections.Counter()
    operations = collections.Counter()
    for row in range(2, COUNT, 3):
        words = token_tasks.as_text(NAMES, tokens[row], mask[row]).split()
        expression = words[words.index("#") + 1 : -1]
        shapes["".join("n" if word.isdigit() else "o" for word in expression)] += 1
        operations.update(word for word in expression if not word.isdigit())
    # Every binary tree of three operations: 5 of them (Catalan).
    assert set(shapes) == {"nnonono", "nnnoono", "nnonnoo", "nnnonoo", "nnnnooo"}
    assert min(shapes.values()) > 20
    assert set(operations) == set(OPERATIONS)
    assert min(operations.values()) > 50


def test_judgements_of_changed_completions():
    problem, (tokens, mask) = drawn()
    random = np.random.default_rng(0)
    rows, masks = tokens.copy(), mask.copy()
    for row in range(COUNT):
        length = int(mask[row].sum())
        numbers, _ = question(problem, row)
        near = token_tasks.from_text(NAMES, " ".join(map(str, numbers)) + " + - * / # <end>")
        for _ in range(random.integers(0, 3)):
            place = length - 1 - min(random.geometric(0.3) - 1, length - 1)
            anything = random.integers(0, TASK.vocab_size)
            rows[row, place] = random.choice([anything, random.choice(near)], p=[0.2, 0.8])
        if random.random() < 0.05:
            masks[row, length - 1] = 0
    rewards, answers = judge()(problem, rows, masks)
    for row in range(COUNT):
        completion = token_tasks.as_text(NAMES, rows[row], masks[row])
        expected = judgement(completion, *question(problem, row))
        assert (bool(rewards[row]), int(answers[row])) == expected
    assert 0.2 < rewards.mean() < 0.8


def test_every_short_expression_is_computed_as_in_python():
    # Numbers 1 to 4 and four operations: 8 + 64 + 512 + 4096 + 32768 expressions.
    task = token_countdown.make(max_operations=2, max_number=3, max_value=4)
    words = [task.vocabulary[token] for token in range(3, 11)]
    rows = np.concatenate(
        [
            np.pad(np.array(list(itertools.product(range(3, 11), repeat=n))), ((0, 0), (0, 5 - n)))
            for n in range(1, 6)
        ]
    ).astype(np.int32)
    lengths = (rows != 0).sum(axis=1)
    run = functools.partial(token_countdown.execute, max_value=4)
    values, works = jax.device_get(jax.jit(jax.vmap(run))(rows, lengths))
    for row, length, found, has_value in zip(rows.tolist(), lengths, values, works, strict=True):
        expected = value([words[token - 3] for token in row[:length]], max_value=4)
        assert (expected is not None, expected or 0) == (has_value, found)
    assert works.sum() > 400


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        # 7, 3, 2 and 2 are given, 19 is wanted.
        ("# 7 3 * 2 - <end>", 19),
        ("# 2 2 * 7 3 * - <end>", -1),
        ("7 3 * 21 21 2 - 19 # 7 3 * 2 - <end>", 19),
        ("# 7 # 3 7 * 2 - <end>", 19),
        ("# 7 2 2 * 3 * + <end>", 19),
        ("# 7 <end>", 7),
        ("# 2 2 / <end>", 1),
        ("# 7 2 * 2 + 3 + <end>", 19),
        ("# 7 7 + 3 + 2 + <end>", -1),
        ("# 19 <end>", -1),
        ("# 7 3 * 2 2 - - <end>", -1),
        ("# 7 3 * 2 3 - + <end>", -1),
        ("# 7 2 / 2 * <end>", -1),
        ("# 7 3 2 <end>", -1),
        ("# + <end>", -1),
        ("# 7 + <end>", -1),
        ("# <end>", -1),
        ("# 7 3 * > 2 - <end>", -1),
        ("# 7 3 * <pad> 2 - <end>", -1),
        ("# 7 3 * 2 -", -1),
        ("7 3 * 2 - <end>", -1),
    ],
)
def test_expressions_by_hand(completion, answer):
    ids = token_tasks.from_text(NAMES, completion)
    row = np.zeros((1, TASK.max_new_tokens), np.int32)
    row[0, : ids.size] = ids
    mask = (np.arange(TASK.max_new_tokens) < ids.size)[None]
    numbers, target = np.array([[7, 3, 2, 2]]), np.array([19])
    solution = (numbers, target, np.zeros((1, 3, 4)), np.zeros((1, 7)), np.array([3]))
    problem = token_tasks.TokenProblem(jnp.zeros((1, 7)), jnp.zeros((1, 7)), solution)
    rewards, answers = judge()(problem, row, mask)
    assert (int(answers[0]), float(rewards[0])) == (answer, float(answer == 19))


def test_large_values_do_not_overflow():
    task = token_countdown.make(max_operations=3, max_number=1000, max_value=1000)
    run = jax.jit(functools.partial(token_countdown.execute, max_value=1000))
    for text, expected in (("1000 1000 *", None), ("999 1 +", 1000), ("1000 1 * 1 *", 1000)):
        ids = token_tasks.from_text(task.vocabulary, text)
        row = np.zeros(8, np.int32)
        row[: ids.size] = ids
        found, works = run(row, ids.size)
        assert (bool(works), int(found)) == (expected is not None, expected or 0)
