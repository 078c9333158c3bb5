r"""Numbers in increasing order: many right answers, and a reward that grows by the token.

The prompt is a number n; right is every completion of n or more numbers, each larger than the one
before, and the end token:

    3 =   2 5 6 9 <end>

`prefix_reward` is the reward under which the task was published: the length of the increasing
beginning over the number of tokens, of n at least. The difficulty is n.

References:
  Ramamurthy et al., Is Reinforcement Learning (Not) for Natural Language Processing, 2023.
  https://arxiv.org/abs/2210.01241 (the reward is that of the authors' code, whose `min_tokens` is
  2 n)
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import END, Row, TokenProblem, TokenTask

FIRST_NUMBER = len(token_tasks.SPECIAL_NAMES)  # Id of number 0; "=" follows the numbers.


def make(*, num_values: int = 64, max_count: int = 10) -> TokenTask:
    """Returns the task of writing numbers of 0 to V - 1 in increasing order.

    Args:
      num_values: V, more than `max_count`, since the prompt names the count by a number.
      max_count: largest n, at least 1.

    Returns:
      The task; its difficulty is n, its completions have no steps, and `max_new_tokens` leaves room
      for twice as many numbers. `solution` is n of the numbers in order, -1 behind them
      [max_count], and n. The number of an answer is how many numbers it has, n for any more, so
      that all right answers are one in a vote; what is not in order is no answer.

    Raises:
      ValueError: a size is out of its range.
    """
    token_tasks.check_range("max_count", max_count, 1)
    token_tasks.check_range("num_values", num_values, max_count + 1)
    size = 2 * max_count + 1
    names = (str(number) for number in range(num_values))
    answer = functools.partial(_answer, num_values=num_values)
    demonstration = functools.partial(_demonstration, size=size)
    return TokenTask(
        vocabulary=(*token_tasks.SPECIAL_NAMES, *names, "="),
        marker=None,
        max_prompt=2,
        max_new_tokens=size,
        max_answer=size,
        max_difficulty=max_count,
        sample=functools.partial(_sample, max_count=max_count, num_values=num_values),
        demonstration=demonstration,
        reference=demonstration,
        verify=token_tasks.verify_by_answer(answer, _correct_answer),
        answer=answer,
        correct_answer=_correct_answer,
    )


def _sample(
    key: PRNGKeyArray, difficulty: int | Int[Array, ""], *, max_count: int, num_values: int
) -> TokenProblem:
    count = jnp.clip(jnp.asarray(difficulty, jnp.int32), 1, max_count)
    is_shown = jnp.arange(max_count) < count
    drawn = jax.random.permutation(key, num_values)[:max_count].astype(jnp.int32)
    numbers = jnp.where(is_shown, jnp.sort(jnp.where(is_shown, drawn, num_values)), -1)
    prompt, mask = token_tasks.concatenate(
        [(FIRST_NUMBER + count, True), (FIRST_NUMBER + num_values, True)], 2
    )
    return TokenProblem(prompt, mask, (numbers, count))


def _demonstration(problem: TokenProblem, *, size: int) -> Row:
    numbers, _ = problem.solution
    return token_tasks.concatenate([(FIRST_NUMBER + numbers, numbers >= 0), (END, True)], size)


def _increasing(numbers: Int[Array, " N"], length: Int[Array, ""]) -> Int[Array, ""]:
    """How many of the first numbers are in order."""
    is_later = jnp.concatenate([jnp.ones(1, bool), numbers[1:] > numbers[:-1]])
    is_read = jnp.arange(numbers.shape[0]) < length
    return jnp.sum(jnp.cumprod(is_later & is_read))


def _answer(
    problem: TokenProblem, tokens: Int[Array, " N"], mask: Array, *, num_values: int
) -> Int[Array, ""]:
    _, count = problem.solution
    written = token_tasks.written_answer(tokens, mask, None)
    numbers = written.tokens - FIRST_NUMBER
    is_read = jnp.arange(numbers.shape[0]) < written.length
    is_answer = (
        written.is_whole
        & (written.length >= 1)
        & jnp.all(~is_read | ((numbers >= 0) & (numbers < num_values)))
        & (_increasing(numbers, written.length) == written.length)
    )
    return jnp.where(is_answer, jnp.minimum(written.length, count), -1)


def _correct_answer(problem: TokenProblem) -> Int[Array, ""]:
    return problem.solution[1]


def prefix_reward(
    task: TokenTask, problem: TokenProblem, tokens: Int[Array, " N"], mask: Array
) -> Float[Array, ""]:
    """Returns the length of the increasing beginning over the number of tokens, of n at least.

    It takes `verify`'s place with
    `task._replace(verify=functools.partial(token_increasing.prefix_reward, task))`.

    Args:
      task: the task.
      problem: the problem.
      tokens: the completion; what the mask leaves out is not read. [N].
      mask: anything but 0 on the tokens that count. [N].

    Returns:
      A reward in [0, 1]; 1 where `verify` gives 1, and also for a completion in order that was cut
      before its end token. Tokens that are no numbers count, and are passed over.
    """
    _, count = problem.solution
    is_counted = jnp.asarray(mask) != 0
    is_before_end = jnp.cumsum((tokens == END) & is_counted) == 0
    is_counted = is_counted & is_before_end
    num_values = task.vocab_size - FIRST_NUMBER - 1
    is_number = (tokens >= FIRST_NUMBER) & (tokens < FIRST_NUMBER + num_values)
    numbers, _ = token_tasks.pack(tokens, is_counted & is_number, tokens.shape[0])
    in_order = _increasing(numbers, jnp.sum(is_counted & is_number))
    return (in_order / jnp.maximum(jnp.sum(is_counted), count)).astype(jnp.float32)
