r"""A lock of tokens: one secret continuation of each prompt is right, and nothing else is paid.

A prompt names a length T and P letters x; the combination is

    y_t = (x_{t mod P} + t) mod V,    t = 0 .. T - 1

and then the end token. T letters at random open the lock with probability V^-T, so that a reward is
never seen without help: a guide that is right in each place with probability p opens it with p^T.
The difficulty is T. `dense_reward` pays every right place instead. The setting is one for
methods that continue what a guide has begun, such as those of Chang et al., Learning to Generate
Better Than Your LLM, 2023, https://arxiv.org/abs/2306.11816.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import END, Row, TokenProblem, TokenTask

FIRST_LETTER = len(token_tasks.SPECIAL_NAMES)  # Id of letter 0; lengths follow the letters.


def make(*, max_length: int = 8, num_letters: int = 6, prompt_letters: int = 1) -> TokenTask:
    """Returns the task of opening locks of up to T letters.

    Args:
      max_length: T, at least 1.
      num_letters: V, at least 2.
      prompt_letters: P, at least 1: there are V^P combinations of each length.

    Returns:
      The task, whose completions are the combination and the end token, without steps; its
      difficulty is the length. `solution` is the combination and its end as ids, 0 behind them
      [T + 1], and its length. Numbers of answers tell all combinations apart where V^T is at most
      2^31, and nearly all beyond; `verify` compares the combinations themselves.

    Raises:
      ValueError: a size is out of its range.
    """
    token_tasks.check_range("max_length", max_length, 1)
    token_tasks.check_range("num_letters", num_letters, 2)
    token_tasks.check_range("prompt_letters", prompt_letters, 1)
    letters = (f"x{letter}" for letter in range(num_letters))
    lengths = (f"T{length}" for length in range(1, max_length + 1))
    # An odd factor spreads wherever the exact number does not fit.
    base = num_letters if num_letters**max_length <= 2**31 else 16777619
    return TokenTask(
        vocabulary=(*token_tasks.SPECIAL_NAMES, *letters, *lengths),
        marker=None,
        max_prompt=prompt_letters + 1,
        max_new_tokens=max_length + 1,
        max_answer=max_length + 1,
        max_difficulty=max_length,
        sample=functools.partial(
            _sample,
            max_length=max_length,
            num_letters=num_letters,
            prompt_letters=prompt_letters,
        ),
        demonstration=_demonstration,
        reference=_demonstration,
        verify=_verify,
        answer=functools.partial(_answer, num_letters=num_letters, base=base),
        correct_answer=functools.partial(_correct_answer, base=base),
    )


def _sample(
    key: PRNGKeyArray,
    difficulty: int | Int[Array, ""],
    *,
    max_length: int,
    num_letters: int,
    prompt_letters: int,
) -> TokenProblem:
    length = jnp.clip(jnp.asarray(difficulty, jnp.int32), 1, max_length)
    letters = jax.random.randint(key, (prompt_letters,), 0, num_letters, jnp.int32)
    places = jnp.arange(max_length + 1, dtype=jnp.int32)
    secret = FIRST_LETTER + (letters[places % prompt_letters] + places) % num_letters
    secret = jnp.where(places < length, secret, jnp.where(places == length, END, token_tasks.PAD))
    prompt, mask = token_tasks.concatenate(
        [(FIRST_LETTER + num_letters + length - 1, True), (FIRST_LETTER + letters, True)],
        prompt_letters + 1,
    )
    return TokenProblem(prompt, mask, (secret, length))


def _demonstration(problem: TokenProblem) -> Row:
    secret, length = problem.solution
    return secret, (jnp.arange(secret.shape[0]) <= length).astype(jnp.float32)


def _right_places(problem: TokenProblem, tokens: Int[Array, " N"], mask: Array) -> Array:
    """Whether each place of the combination, its end included, is right. [T + 1]."""
    secret, length = problem.solution
    size = secret.shape[0]
    counted = jnp.where(jnp.asarray(mask) != 0, tokens, token_tasks.PAD)
    given = jnp.zeros(size, counted.dtype).at[: tokens.shape[0]].set(counted[:size])
    return (given == secret) & (jnp.arange(size) <= length)


def _verify(problem: TokenProblem, tokens: Int[Array, " N"], mask: Array) -> Float[Array, ""]:
    _, length = problem.solution
    return (jnp.sum(_right_places(problem, tokens, mask)) == length + 1).astype(jnp.float32)


def dense_reward(problem: TokenProblem, tokens: Int[Array, " N"], mask: Array) -> Float[Array, ""]:
    """Returns the third power of the share of places that are right: a lock that is not sparse.

    It takes `verify`'s place with `task._replace(verify=token_lock.dense_reward)`.

    Args:
      problem: the lock.
      tokens: the completion; what the mask leaves out is not read. [N].
      mask: anything but 0 on the tokens that count. [N].

    Returns:
      A reward in [0, 1], over the T letters and the end token; 1 where `verify` gives 1.
    """
    _, length = problem.solution
    share = jnp.sum(_right_places(problem, tokens, mask)) / (length + 1)
    return share.astype(jnp.float32) ** 3


def guide_log_probs(
    task: TokenTask, problem: TokenProblem, accuracy: float | Float[Array, ""]
) -> Float[Array, "N V"]:
    """Returns the law of a guide that finds each letter with a given probability.

    Args:
      task: the task.
      problem: the lock.
      accuracy: probability p of the right letter in each place, in [0, 1]; the other letters share
        the rest. The guide always ends in the right place, so that it opens the lock with p^T.

    Returns:
      Log-probabilities of the next token by place, whatever came before; padding is certain behind
      the end. [T + 1, vocab_size].
    """
    secret, length = problem.solution
    num_letters = task.vocab_size - task.max_difficulty - FIRST_LETTER
    tokens = jnp.arange(task.vocab_size)
    is_letter = (tokens >= FIRST_LETTER) & (tokens < FIRST_LETTER + num_letters)
    is_right = tokens == secret[:, None]
    wrong = jnp.where(is_letter, (1 - accuracy) / (num_letters - 1), 0.0)
    in_letters = (jnp.arange(secret.shape[0]) < length)[:, None]
    return jnp.log(jnp.where(in_letters, jnp.where(is_right, accuracy, wrong), is_right))


def _number(letters: Int[Array, " N"], length: Int[Array, ""], base: int) -> Int[Array, ""]:
    def add(total, letter_and_place):
        letter, place = letter_and_place
        # Unsigned numbers overflow into each other, as a sum modulo 2^32.
        longer = total * jnp.uint32(base) + letter.astype(jnp.uint32)
        return jnp.where(place < length, longer, total), None

    places = jnp.arange(letters.shape[0])
    total, _ = jax.lax.scan(add, jnp.zeros((), jnp.uint32), (letters, places))
    return (total & jnp.uint32(2**31 - 1)).astype(jnp.int32)


def _answer(
    problem: TokenProblem, tokens: Int[Array, " N"], mask: Array, *, num_letters: int, base: int
) -> Int[Array, ""]:
    _, length = problem.solution
    written = token_tasks.written_answer(tokens, mask, None)
    letters = written.tokens - FIRST_LETTER
    is_read = jnp.arange(letters.shape[0]) < length
    are_letters = jnp.all(~is_read | ((letters >= 0) & (letters < num_letters)))
    # The prompt names the length: what is longer or shorter is no combination.
    is_answer = written.is_whole & (written.length == length) & are_letters
    return jnp.where(is_answer, _number(letters, length, base), -1)


def _correct_answer(problem: TokenProblem, *, base: int) -> Int[Array, ""]:
    secret, length = problem.solution
    return _number(secret - FIRST_LETTER, length, base)
