"""Arithmetic in tokens against Python's integers, its text read as a person would."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import token_arithmetic, token_tasks

DIGITS = 3
TASKS = {
    "+": token_arithmetic.addition(max_digits=DIGITS),
    "*": token_arithmetic.multiplication(max_digits=DIGITS),
}
COUNT = 3000
NAMES = TASKS["+"].vocabulary
both = pytest.mark.parametrize("operation", TASKS)


@functools.cache
def drawn(operation):
    task = TASKS[operation]

    def draw(key, difficulty):
        problem = task.sample(key, difficulty)
        return problem, task.demonstration(problem)

    keys = jax.random.split(jax.random.key(0), COUNT)
    rows = jax.jit(jax.vmap(draw))(keys, 1 + jnp.arange(COUNT) % DIGITS)
    return jax.device_get(rows)


@functools.cache
def judge(operation):
    task = TASKS[operation]
    check = jax.vmap(lambda *row: (task.verify(*row), task.answer(*row)))
    compiled = jax.jit(check)
    return lambda *arguments: jax.device_get(compiled(*arguments))


def text(tokens, mask):
    return token_tasks.as_text(NAMES, tokens, mask)


def operands(problem, row, operation):
    written = text(problem.prompt[row], problem.prompt_mask[row]).replace(" ", "")
    assert written.endswith("=")
    first, second = written[:-1].split(operation)
    return first, second


def steps(first, second, operation):
    """The demonstration, by hand."""
    lines = []
    if operation == "+":
        carry = 0
        for one, two in zip(first[::-1], second[::-1], strict=True):
            total = int(one) + int(two) + carry
            lines.append(f"{one}{two}{carry}>{total:02d}")
            carry = total // 10
    else:
        accumulated = [0] * (len(first) + len(second))
        for j, two in enumerate(second[::-1]):
            carry = 0
            for i, one in enumerate(first[::-1]):
                total = int(one) * int(two) + accumulated[i + j] + carry
                lines.append(f"{one}{two}{accumulated[i + j]}{carry}>{total:02d}")
                accumulated[i + j], carry = total % 10, total // 10
            accumulated[j + len(first)] = carry
        # The digits that the steps have left are those of the product.
        assert int("".join(map(str, accumulated[::-1]))) == int(first) * int(second)
    result = int(first) + int(second) if operation == "+" else int(first) * int(second)
    return "".join(lines) + f"#{result}<end>"


@both
def test_demonstrations_are_the_steps_on_paper(operation):
    problem, (tokens, mask) = drawn(operation)
    for row in range(COUNT):
        first, second = operands(problem, row, operation)
        digits = 1 + row % DIGITS
        assert len(first) == len(second) == digits
        assert digits == 1 or "0" not in (first[0], second[0])
        written = text(tokens[row], mask[row]).replace(" ", "")
        assert written == steps(first, second, operation)


def test_documented_steps():
    assert steps("47", "85", "+") == "750>12481>13#132<end>"
    assert steps("6", "7", "*") == "6700>42#42<end>"


@both
def test_every_pair_of_digits_comes(operation):
    problem, _ = drawn(operation)
    pairs = {operands(problem, row, operation) for row in range(0, COUNT, DIGITS)}
    assert len(pairs) == 100


def judgement(completion, right, answer_digits):
    """What a person would say of a completion's text: whether it is right, and its answer."""
    words = completion.split()
    if "<end>" not in words:
        return False, -1
    words = words[: words.index("<end>")]
    if "#" not in words:
        return False, -1
    words = words[len(words) - words[::-1].index("#") :]
    answer = "".join(words)
    is_number = answer.isdigit() and len(answer) <= answer_digits
    if not is_number or str(int(answer)) != answer:
        return False, -1
    return int(answer) == right, int(answer)


@both
def test_judgements_of_changed_completions(operation):
    task = TASKS[operation]
    problem, (tokens, mask) = drawn(operation)
    random = np.random.default_rng(0)
    rows, masks = tokens.copy(), mask.copy()
    for row in range(COUNT):
        length = int(mask[row].sum())
        # One to three tokens become others, mostly those of the answer.
        for _ in range(random.integers(0, 4)):
            place = length - 1 - min(random.geometric(0.2) - 1, length - 1)
            rows[row, place] = random.integers(0, task.vocab_size)
        if random.random() < 0.1:
            masks[row, length - 1] = 0
    rewards, answers = judge(operation)(problem, rows, masks)
    answer_digits = DIGITS + 1 if operation == "+" else 2 * DIGITS
    for row in range(COUNT):
        first, second = map(int, operands(problem, row, operation))
        right = first + second if operation == "+" else first * second
        expected = judgement(text(rows[row], masks[row]), right, answer_digits)
        assert (bool(rewards[row]), int(answers[row])) == expected
    # Both verdicts are common, so that neither is right by chance.
    assert 0.2 < rewards.mean() < 0.8


@both
def test_wrong_answers_are_wrong(operation):
    task = TASKS[operation]
    problem, _ = drawn(operation)
    random = np.random.default_rng(1)
    rows = np.zeros((COUNT, task.max_new_tokens), np.int32)
    expected = np.zeros(COUNT, int)
    for row in range(COUNT):
        first, second = map(int, operands(problem, row, operation))
        right = first + second if operation == "+" else first * second
        wrong = max(right + int(random.choice([-10, -2, -1, 1, 2, 10, 100])), 0)
        expected[row] = wrong
        if wrong == right:
            expected[row] = wrong = right + 1
        ids = token_tasks.from_text(NAMES, " ".join(f"#{wrong}") + " <end>")
        rows[row, : ids.size] = ids
    rewards, answers = judge(operation)(problem, rows, rows != 0)
    np.testing.assert_array_equal(rewards, 0)
    np.testing.assert_array_equal(answers, expected)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("# 1 3 2 <end>", 132),
        ("= > + # 1 3 2 <end>", 132),
        ("# 9 # 1 3 2 <end>", 132),
        ("# 1 3 2 # 9 <end>", 9),
        ("# 0 <end>", 0),
        ("# 1 3 2", -1),
        ("1 3 2 <end>", -1),
        ("# <end>", -1),
        ("# 0 1 3 2 <end>", -1),
        ("# 0 0 <end>", -1),
        ("# 1 3 2 0 0 <end>", -1),
        ("# 1 + 3 <end>", -1),
        ("# 1 <pad> 3 2 <end>", -1),
        ("<end> # 1 3 2 <end>", -1),
    ],
)
def test_answers_by_hand(completion, answer):
    task = TASKS["+"]
    ids = token_tasks.from_text(NAMES, completion)
    row = np.zeros((1, task.max_new_tokens), np.int32)
    row[0, : ids.size] = ids
    mask = np.arange(task.max_new_tokens)[None] < ids.size
    # 47 + 85, digits from the last to the first.
    digits = np.array([[[7, 4, 0], [5, 8, 0]]], np.int32)
    problem = token_tasks.TokenProblem(
        jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 8)), (digits, np.array([2]))
    )
    rewards, answers = judge("+")(problem, row, mask)
    assert (int(answers[0]), float(rewards[0])) == (answer, float(answer == 132))


@pytest.mark.parametrize(
    ("task", "largest"),
    [
        (token_arithmetic.addition(max_digits=8), 2 * 99_999_999),
        (token_arithmetic.multiplication(max_digits=4), 9999**2),
    ],
)
def test_the_largest_numbers_fit(task, largest):
    size = task.max_difficulty
    nines = token_tasks.TokenProblem(
        jnp.zeros(1, jnp.int32),
        jnp.zeros(1),
        (jnp.full((2, size), 9, jnp.int32), jnp.asarray(size)),
    )
    tokens, mask = jax.jit(task.demonstration)(nines)
    assert int(jax.jit(task.answer)(nines, tokens, mask)) == largest
    assert int(task.correct_answer(nines)) == largest
    assert int(mask.sum()) == task.max_new_tokens
