r"""Countdown: an expression of given numbers that reaches a target, each number used at most once.

    7 3 2 > 19 =   7 3 * 21   21 2 - 19   # 7 3 * 2 - <end>

Every number is one token. The answer is an expression in postfix order: a number is put aside, `+`,
`-`, `*` and `/` replace the last two numbers x and y put aside by x + y, x - y, x y and x / y. As
in the game, all results are positive and whole, and none may exceed the largest number that has a
token. An expression that breaks a rule, or leaves more than one number, is no answer; one that need
not use all numbers is. The steps are the operations with their results. The difficulty is the
number of operations that made the target: of one number less than are given.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import MARKER, Row, TokenProblem, TokenTask

# Number n has id FIRST_NUMBER + n - 1; after the numbers come the operations.
FIRST_NUMBER = len(token_tasks.STEP_NAMES)
ADD, SUBTRACT, MULTIPLY, DIVIDE = range(4)
OPERATION_NAMES = ("+", "-", "*", "/")
# Products of two values fit into int32 by far, and every value has a name.
MAX_VALUE = 1000


class _Pool(NamedTuple):
    """Numbers that an expression may still use, each with the expression that made it.

    Attributes:
      values: the numbers. [K].
      expressions: ids in postfix order, 0 behind them. [K, 2 K - 1].
      lengths: tokens of each expression. [K].
      is_left: whether the number has not been used yet. [K].
    """

    values: Int[Array, " K"]
    expressions: Int[Array, "K W"]
    lengths: Int[Array, " K"]
    is_left: Bool[Array, " K"]


def make(*, max_operations: int = 3, max_number: int = 12, max_value: int = 99) -> TokenTask:
    """Returns the task of reaching a target with up to K numbers.

    Args:
      max_operations: K - 1, at least 1.
      max_number: the numbers given are 1 to this, at least 2.
      max_value: largest result, intermediate ones included; max_number to 1,000.

    Returns:
      The task; its difficulty is the number of operations. `solution` is the numbers given, 0
      behind them [K], the target, the operations as ids (number, number, operation, result)
      [K - 1, 4], an expression as ids, 0 behind it [2 K - 1], and the number of operations.

    Raises:
      ValueError: a size is out of its range.
    """
    token_tasks.check_range("max_operations", max_operations, 1)
    token_tasks.check_range("max_number", max_number, 2)
    token_tasks.check_range("max_value", max_value, max_number, MAX_VALUE)
    max_answer = 2 * max_operations + 2
    max_new_tokens = 4 * max_operations + 1 + max_answer
    names = (str(number) for number in range(1, max_value + 1))
    answer = functools.partial(_answer, max_value=max_value)
    return TokenTask(
        vocabulary=(*token_tasks.STEP_NAMES, *names, *OPERATION_NAMES, ">", "="),
        marker=MARKER,
        max_prompt=max_operations + 4,
        max_new_tokens=max_new_tokens,
        max_answer=max_answer,
        max_difficulty=max_operations,
        sample=functools.partial(
            _sample, max_operations=max_operations, max_number=max_number, max_value=max_value
        ),
        demonstration=functools.partial(_demonstration, size=max_new_tokens),
        reference=functools.partial(_reference, size=max_answer),
        verify=token_tasks.verify_by_answer(answer, _correct_answer),
        answer=answer,
        correct_answer=_correct_answer,
    )


def _results(x: Array, y: Array, max_value: int) -> tuple[Int[Array, " 4"], Bool[Array, " 4"]]:
    """What the operations make of two positive numbers, and which of them the rules allow."""
    quotient = x // jnp.maximum(y, 1)
    results = jnp.stack([x + y, x - y, x * y, quotient])
    is_whole = jnp.array([True, True, True, False]) | (quotient * y == x)
    return results, is_whole & (results >= 1) & (results <= max_value)


def execute(
    expression: Int[Array, " N"], length: Int[Array, ""], *, max_value: int
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Computes an expression in postfix order, in N steps.

    Args:
      expression: ids; those that are neither number nor operation make it fail. [N].
      length: tokens of the expression, 0 to N; nothing behind them is read.
      max_value: largest result.

    Returns:
      The value, and whether there is one (0 where there is none). Whether the numbers were given is
      not looked at.
    """

    def step(state, token_and_place):
        stack, depth, works = state
        token, place = token_and_place
        number = token - FIRST_NUMBER + 1
        is_number = (number >= 1) & (number <= max_value)
        kind = number - 1 - max_value
        is_operation = (kind >= ADD) & (kind <= DIVIDE) & (depth >= 2)
        results, allowed = _results(stack[depth - 2], stack[depth - 1], max_value)
        kind = jnp.clip(kind, ADD, DIVIDE)
        works_now = is_number | (is_operation & allowed[kind])
        new_depth = jnp.where(is_number, depth + 1, depth - 1)
        # Where it does not work, places may lie outside of the stack: nothing of this is kept.
        changed = stack.at[new_depth - 1].set(jnp.where(is_number, number, results[kind]))
        goes_on = works & works_now & (place < length)
        stack = jnp.where(goes_on, changed, stack)
        depth = jnp.where(goes_on, new_depth, depth)
        return (stack, depth, works & (works_now | (place >= length))), None

    size = expression.shape[0]
    start = (jnp.zeros(size, jnp.int32), jnp.zeros((), jnp.int32), jnp.ones((), bool))
    places = jnp.arange(size)
    (stack, depth, works), _ = jax.lax.scan(step, start, (expression.astype(jnp.int32), places))
    works = works & (depth == 1)
    return jnp.where(works, stack[0], 0), works


def _combine(
    pool: _Pool, key: PRNGKeyArray, is_made: Array, max_value: int
) -> tuple[_Pool, Int[Array, " 4"]]:
    """Puts the result of an operation in the place of two numbers, if it is made at all."""
    pair_key, kind_key = jax.random.split(key)
    # Numbers that are left come before those that are not, in random order.
    _, (i, j) = jax.lax.top_k(jax.random.uniform(pair_key, pool.is_left.shape) + pool.is_left, 2)
    _, in_order = _results(pool.values[i], pool.values[j], max_value)
    _, reversed_ = _results(pool.values[j], pool.values[i], max_value)
    # There always is one: of two numbers the larger less the smaller, of two equal ones x / x.
    kind = jax.random.categorical(kind_key, jnp.where(in_order | reversed_, 0.0, -jnp.inf))
    i, j = jnp.where(in_order[kind], i, j), jnp.where(in_order[kind], j, i)
    result = _results(pool.values[i], pool.values[j], max_value)[0][kind]
    operation = FIRST_NUMBER + max_value + kind
    width = pool.expressions.shape[1]
    ends = jnp.arange(width)
    joined, _ = token_tasks.concatenate(
        [
            (pool.expressions[i], ends < pool.lengths[i]),
            (pool.expressions[j], ends < pool.lengths[j]),
            (operation, True),
        ],
        width,
    )
    made = _Pool(
        values=pool.values.at[i].set(result),
        expressions=pool.expressions.at[i].set(joined),
        lengths=pool.lengths.at[i].set(pool.lengths[i] + pool.lengths[j] + 1),
        is_left=pool.is_left.at[j].set(False),
    )
    numbers = jnp.stack([pool.values[i], pool.values[j], result])
    x, y, outcome = FIRST_NUMBER + numbers - 1
    new = jax.tree.map(lambda after, before: jnp.where(is_made, after, before), made, pool)
    return new, jnp.stack([x, y, operation, outcome])


def _sample(
    key: PRNGKeyArray,
    difficulty: int | Int[Array, ""],
    *,
    max_operations: int,
    max_number: int,
    max_value: int,
) -> TokenProblem:
    count = jnp.clip(jnp.asarray(difficulty, jnp.int32), 1, max_operations)
    number_key, pool_key = jax.random.split(key)
    keys = jax.random.split(pool_key, max_operations)
    is_given = jnp.arange(max_operations + 1) <= count
    numbers = jax.random.randint(number_key, is_given.shape, 1, max_number + 1, jnp.int32)
    numbers = jnp.where(is_given, numbers, 0)
    expressions = jnp.zeros((max_operations + 1, 2 * max_operations + 1), jnp.int32)
    expressions = expressions.at[:, 0].set(FIRST_NUMBER + numbers - 1)
    pool = _Pool(numbers, expressions, jnp.ones_like(numbers), is_given)

    def make_one(pool, key_and_place):
        key, place = key_and_place
        return _combine(pool, key, place < count, max_value)

    pool, steps = jax.lax.scan(make_one, pool, (keys, jnp.arange(max_operations)))
    last = jnp.argmax(pool.is_left)
    target = pool.values[last]
    yields = FIRST_NUMBER + max_value + len(OPERATION_NAMES)
    prompt, mask = token_tasks.concatenate(
        [
            (FIRST_NUMBER + numbers - 1, is_given),
            (yields, True),
            (FIRST_NUMBER + target - 1, True),
            (yields + 1, True),
        ],
        max_operations + 4,
    )
    solution = (numbers, target, steps, pool.expressions[last], count)
    return TokenProblem(prompt, mask, solution)


def _demonstration(problem: TokenProblem, *, size: int) -> Row:
    _, _, steps, expression, count = problem.solution
    is_step = jnp.arange(steps.shape[0]) < count
    return token_tasks.concatenate(
        [
            (steps.reshape(-1), jnp.repeat(is_step, 4)),
            (MARKER, True),
            (expression, expression != token_tasks.PAD),
            (token_tasks.END, True),
        ],
        size,
    )


def _reference(problem: TokenProblem, *, size: int) -> Row:
    expression = problem.solution[3]
    return token_tasks.concatenate(
        [(expression, expression != token_tasks.PAD), (token_tasks.END, True)], size
    )


def _answer(
    problem: TokenProblem, tokens: Int[Array, " N"], mask: Array, *, max_value: int
) -> Int[Array, ""]:
    written = token_tasks.written_answer(tokens, mask, MARKER)
    value, works = execute(written.tokens, written.length, max_value=max_value)
    used = written.tokens - FIRST_NUMBER + 1
    is_used = (used >= 1) & (used <= max_value)
    times_used = jnp.sum(is_used & (used[:, None] == used), axis=1)
    times_given = jnp.sum(used[:, None] == problem.solution[0], axis=1)
    is_given = jnp.all(~is_used | (times_used <= times_given))
    return jnp.where(written.is_whole & works & is_given, value, -1)


def _correct_answer(problem: TokenProblem) -> Int[Array, ""]:
    return problem.solution[1]
