r"""Addition and multiplication of many digits, with the steps written out.

The demonstrations compute as on paper, from the last digits to the first, and write every step with
all that it needs, so that no step asks for more than a table of digits:

    addition        4 7 + 8 5 =   7 5 0 > 1 2   4 8 1 > 1 3   # 1 3 2 <end>
    multiplication  6 * 7 =       6 7 0 0 > 4 2               # 4 2 <end>

A step of an addition is digit, digit, carry > new carry, digit of the sum. A step of a
multiplication is digit of a, digit of b, digit accumulated so far, carry > new carry, digit
accumulated now; it runs over a's digits for each digit of b. The difficulty is the number of digits
of both numbers. An answer with superfluous zeros in front is no answer.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import MARKER, Row, TokenProblem, TokenTask

ZERO = len(token_tasks.STEP_NAMES)  # Id of digit 0; the others follow.
VOCABULARY = (*token_tasks.STEP_NAMES, *"0123456789", "+", "*", "=", ">")
PLUS, TIMES, EQUALS, YIELDS = range(ZERO + 10, ZERO + 14)
# The digits of an answer must fit into int32.
MAX_ADDITION_DIGITS = 8
MAX_MULTIPLICATION_DIGITS = 4

Digits = Int[Array, " D"]


def addition(*, max_digits: int = 4) -> TokenTask:
    """Returns the task of adding two numbers of up to D digits.

    Args:
      max_digits: D, 1 to 8.

    Returns:
      The task; its difficulty is the number of digits of both numbers. `solution` is the two
      numbers' digits, the last one first [2, D], and their number.

    Raises:
      ValueError: `max_digits` is out of its range.
    """
    token_tasks.check_range("max_digits", max_digits, 1, MAX_ADDITION_DIGITS)
    return _make(PLUS, max_digits, max_digits + 1, 6 * max_digits)


def multiplication(*, max_digits: int = 2) -> TokenTask:
    """Returns the task of multiplying two numbers of up to D digits.

    Args:
      max_digits: D, 1 to 4.

    Returns:
      The task; its difficulty is the number of digits of both numbers. `solution` is as that of
      `addition`.

    Raises:
      ValueError: `max_digits` is out of its range.
    """
    token_tasks.check_range("max_digits", max_digits, 1, MAX_MULTIPLICATION_DIGITS)
    return _make(TIMES, max_digits, 2 * max_digits, 7 * max_digits**2)


def _make(operation: int, max_digits: int, answer_digits: int, step_tokens: int) -> TokenTask:
    max_answer = answer_digits + 1
    max_new_tokens = step_tokens + 1 + max_answer
    answer = functools.partial(_answer, answer_digits=answer_digits)
    correct_answer = functools.partial(_result, operation=operation)
    return TokenTask(
        vocabulary=VOCABULARY,
        marker=MARKER,
        max_prompt=2 * max_digits + 2,
        max_new_tokens=max_new_tokens,
        max_answer=max_answer,
        max_difficulty=max_digits,
        sample=functools.partial(_sample, operation=operation, max_digits=max_digits),
        demonstration=functools.partial(
            _demonstration, operation=operation, size=max_new_tokens, answer_digits=answer_digits
        ),
        reference=functools.partial(
            _reference, operation=operation, size=max_answer, answer_digits=answer_digits
        ),
        verify=token_tasks.verify_by_answer(answer, correct_answer),
        answer=answer,
        correct_answer=correct_answer,
    )


def _sample(
    key: PRNGKeyArray, difficulty: int | Int[Array, ""], *, operation: int, max_digits: int
) -> TokenProblem:
    count = jnp.clip(jnp.asarray(difficulty, jnp.int32), 1, max_digits)
    places = jnp.arange(max_digits)
    # Numbers of several digits do not begin with 0.
    least = jnp.where((places == count - 1) & (count > 1), 1, 0)
    digits = jax.random.randint(key, (2, max_digits), least, 10, jnp.int32)
    digits = jnp.where(places < count, digits, 0)
    kept = places[::-1] < count
    prompt, mask = token_tasks.concatenate(
        [
            (ZERO + digits[0, ::-1], kept),
            (operation, True),
            (ZERO + digits[1, ::-1], kept),
            (EQUALS, True),
        ],
        2 * max_digits + 2,
    )
    return TokenProblem(prompt, mask, (digits, count))


def _value(digits: Digits) -> Int[Array, ""]:
    return jnp.sum(digits * 10 ** jnp.arange(digits.shape[0]), dtype=jnp.int32)


def _result(problem: TokenProblem, *, operation: int) -> Int[Array, ""]:
    first, second = (_value(digits) for digits in problem.solution[0])
    return first + second if operation == PLUS else first * second


def _addition_steps(digits: Int[Array, "2 D"], count: Int[Array, ""]) -> tuple[Array, Array]:
    rows, carry = [], jnp.zeros((), jnp.int32)
    for first, second in digits.T:
        total = first + second + carry
        rows.append([first, second, carry, total // 10, total % 10])
        carry = total // 10
    return jnp.array(rows), jnp.arange(digits.shape[1]) < count


def _multiplication_steps(digits: Int[Array, "2 D"], count: Int[Array, ""]) -> tuple[Array, Array]:
    size = digits.shape[1]
    zero = jnp.zeros((), jnp.int32)
    rows, accumulated = [], [zero] * (2 * size)
    for j, second in enumerate(digits[1]):
        carry = zero
        for i, first in enumerate(digits[0]):
            total = first * second + accumulated[i + j] + carry
            rows.append([first, second, accumulated[i + j], carry, total // 10, total % 10])
            accumulated[i + j], carry = total % 10, total // 10
        # Beyond a's digits there is only the carry; in the steps left out it has moved already.
        accumulated[size + j] = carry
    is_digit = jnp.arange(size) < count
    return jnp.array(rows), (is_digit[:, None] & is_digit).reshape(-1)


def _answer_part(problem: TokenProblem, operation: int, answer_digits: int) -> tuple[Array, Array]:
    """The result's digits, the first one first, and which of them are written."""
    powers = 10 ** jnp.arange(answer_digits)[::-1]
    value = _result(problem, operation=operation)
    return ZERO + value // powers % 10, (value >= powers) | (powers == 1)


def _demonstration(problem: TokenProblem, *, operation: int, size: int, answer_digits: int) -> Row:
    compute = _addition_steps if operation == PLUS else _multiplication_steps
    steps, kept = compute(*problem.solution)
    tokens = jnp.insert(ZERO + steps, steps.shape[1] - 2, YIELDS, axis=1)
    return token_tasks.concatenate(
        [
            (tokens.reshape(-1), jnp.repeat(kept, tokens.shape[1])),
            (MARKER, True),
            _answer_part(problem, operation, answer_digits),
            (token_tasks.END, True),
        ],
        size,
    )


def _reference(problem: TokenProblem, *, operation: int, size: int, answer_digits: int) -> Row:
    digits = _answer_part(problem, operation, answer_digits)
    return token_tasks.concatenate([digits, (token_tasks.END, True)], size)


def _answer(
    problem: TokenProblem, tokens: Int[Array, " N"], mask: Array, *, answer_digits: int
) -> Int[Array, ""]:
    del problem
    written = token_tasks.written_answer(tokens, mask, MARKER)
    digits = written.tokens[:answer_digits] - ZERO
    places = jnp.arange(digits.shape[0])
    is_read = places < written.length
    is_number = (
        written.is_whole
        & (written.length >= 1)
        & (written.length <= answer_digits)
        & jnp.all(~is_read | ((digits >= 0) & (digits <= 9)))
        & ((written.length == 1) | (digits[0] != 0))
    )
    powers = 10 ** jnp.clip(written.length - 1 - places, 0)
    value = jnp.sum(jnp.where(is_read & is_number, digits * powers, 0), dtype=jnp.int32)
    return jnp.where(is_number, value, -1)
