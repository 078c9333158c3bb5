r"""Tasks in tokens whose answers can be checked, as pure functions: prompt, completion, reward.

A task draws problems, shows how to solve them, and says whether a completion does:

    task = token_arithmetic.addition(max_digits=3)
    problem = task.sample(key, difficulty)
    tokens, mask = task.demonstration(problem)
    reward = task.verify(problem, tokens, mask)          # 1.0

Every function takes one problem; `jax.vmap` gives batches and groups. Ids are those of the rest of
the library: 0 is padding, and a completion is what its mask counts, through the end token. Where a
task has a marker, what a completion writes before it is free (the steps), and the answer is what
stands between the last marker and the end token:

    4 + 7 = | 4 7 0 > 1 1 # 1 1 <end>
    prompt  | steps       | answer

Without the end token, or without the marker, there is no answer.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

PAD = 0
END = 1
# How every vocabulary begins.
SPECIAL_NAMES = ("<pad>", "<end>")
MARKER_NAME = "#"
# What every vocabulary of a task with steps begins with, and the marker's id in it.
STEP_NAMES = (*SPECIAL_NAMES, MARKER_NAME)
MARKER = 2

Row = tuple[Int[Array, " N"], Float[Array, " N"]]


class TokenProblem(NamedTuple):
    """One problem.

    Attributes:
      prompt: token ids, 0 on padding. [P].
      prompt_mask: 1 on the prompt's tokens, which come first, 0 on padding. [P].
      solution: what solves and checks it, arrays of the task's own; no policy sees it.
    """

    prompt: Int[Array, " P"]
    prompt_mask: Float[Array, " P"]
    solution: Any


class TokenTask(NamedTuple):
    """A task whose answers are checked.

    A completion is a chain of at most `max_chain` tokens through the marker, and an answer of at
    most `max_answer` through the end token. `verify` gives 1 exactly where `answer` is
    `correct_answer`; another reward can take its place with `_replace`.

    Attributes:
      vocabulary: name of every token.
      marker: id of the token before the answer; None where the whole completion is the answer.
      max_prompt: tokens P of a padded prompt.
      max_new_tokens: tokens N of a padded demonstration, and enough for any right answer with its
        steps.
      max_answer: tokens A of a padded reference answer, the end token included.
      max_difficulty: difficulties are 1 to this.
      sample: `(key, difficulty) -> problem`; the difficulty, an integer that may be traced, is
        clipped to its range.
      demonstration: `(problem) -> (tokens[N], mask[N])`, a right completion with its steps.
      reference: `(problem) -> (tokens[A], mask[A])`, the answer of the demonstration alone.
      verify: `(problem, tokens, mask) -> reward`, 0 or 1, float32; of a completion of any length,
        ids outside of the vocabulary included.
      answer: `(problem, tokens, mask) -> number` of the answer, for votes; -1 where there is none.
      correct_answer: `(problem) -> number` of the right answer, at least 0.
    """

    vocabulary: tuple[str, ...]
    marker: int | None
    max_prompt: int
    max_new_tokens: int
    max_answer: int
    max_difficulty: int
    sample: Callable[[PRNGKeyArray, int | Int[Array, ""]], TokenProblem]
    demonstration: Callable[[TokenProblem], Row]
    reference: Callable[[TokenProblem], Row]
    verify: Callable[[TokenProblem, Int[Array, " N"], Array], Float[Array, ""]]
    answer: Callable[[TokenProblem, Int[Array, " N"], Array], Int[Array, ""]]
    correct_answer: Callable[[TokenProblem], Int[Array, ""]]

    @property
    def vocab_size(self) -> int:
        """Tokens V in all."""
        return len(self.vocabulary)

    @property
    def end_token(self) -> int:
        """Id of the token that ends a completion."""
        return END

    @property
    def max_chain(self) -> int:
        """Most tokens of the steps, the marker included; 0 without a marker."""
        return self.max_new_tokens - self.max_answer


class WrittenAnswer(NamedTuple):
    """What a completion gives as its answer.

    Attributes:
      tokens: the answer, its end token left out, moved to the left; 0 behind it. [N].
      length: its tokens; 0 where there is no answer.
      is_whole: whether there is one: the end token, and the marker before it.
    """

    tokens: Int[Array, " N"]
    length: Int[Array, ""]
    is_whole: Bool[Array, ""]


def written_answer(tokens: Int[Array, " N"], mask: Array, marker: int | None) -> WrittenAnswer:
    """Returns what stands between the last marker and the first end token of a completion.

    Args:
      tokens: the completion; what the mask leaves out is not read. [N].
      mask: anything but 0 on the tokens that count. [N].
      marker: id of the marker; None for an answer that begins with the completion.

    Returns:
      The answer.
    """
    size = tokens.shape[0]
    places = jnp.arange(size, dtype=jnp.int32)
    tokens = jnp.where(jnp.asarray(mask) != 0, tokens, PAD)
    is_end = tokens == END
    is_whole = jnp.any(is_end)
    end = jnp.argmax(is_end).astype(jnp.int32)
    start = jnp.zeros((), jnp.int32)
    if marker is not None:
        start = jnp.max(jnp.where((tokens == marker) & (places < end), places + 1, 0))
        is_whole = is_whole & (start > 0)
    length = jnp.where(is_whole, end - start, 0)
    moved = tokens[jnp.minimum(places + start, size - 1)]
    return WrittenAnswer(jnp.where(places < length, moved, PAD), length, is_whole)


def pack(tokens: Int[Array, " M"], keep: Array, size: int) -> Row:
    """Returns the tokens that are kept, moved to the left.

    Args:
      tokens: ids. [M].
      keep: whether each is kept. [M].
      size: tokens of the row, at least as many as are kept.

    Returns:
      Tokens, 0 behind the kept ones, and a mask that is 1 on them. [size] each.
    """
    keep = jnp.asarray(keep, bool)
    places = jnp.where(keep, jnp.cumsum(keep) - 1, size)
    row = jnp.zeros(size, jnp.int32).at[places].set(tokens.astype(jnp.int32), mode="drop")
    return row, (jnp.arange(size) < jnp.sum(keep)).astype(jnp.float32)


def concatenate(parts: Sequence[tuple[int | Array, bool | Array]], size: int) -> Row:
    """Returns a row made of parts, each kept or left out token by token.

    Args:
      parts: tokens, one id or an array of them, and whether they are kept.
      size: tokens of the row, at least as many as are kept.

    Returns:
      Tokens and mask, as from `pack`. [size] each.
    """
    tokens = [jnp.atleast_1d(jnp.asarray(part, jnp.int32)) for part, _ in parts]
    keeps = [
        jnp.broadcast_to(jnp.asarray(keep, bool), part.shape)
        for part, (_, keep) in zip(tokens, parts, strict=True)
    ]
    return pack(jnp.concatenate(tokens), jnp.concatenate(keeps), size)


def verify_by_answer(
    answer: Callable[[TokenProblem, Int[Array, " N"], Array], Int[Array, ""]],
    correct_answer: Callable[[TokenProblem], Int[Array, ""]],
) -> Callable[[TokenProblem, Int[Array, " N"], Array], Float[Array, ""]]:
    """Returns the verifier that compares the number of the answer with that of the right one.

    Args:
      answer: as in `TokenTask`.
      correct_answer: as in `TokenTask`.

    Returns:
      The verifier.
    """

    def verify(problem: TokenProblem, tokens: Int[Array, " N"], mask: Array) -> Float[Array, ""]:
        return (answer(problem, tokens, mask) == correct_answer(problem)).astype(jnp.float32)

    return verify


def check_range(name: str, value: int, least: int, most: int | None = None) -> None:
    """Refuses a size that is out of its range.

    Args:
      name: the argument's name, for the error.
      value: the size.
      least: smallest size allowed.
      most: largest size allowed; None for any.

    Raises:
      ValueError: the size is out of its range.
    """
    if value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {wanted}, got {value}.")


def as_text(vocabulary: Sequence[str], tokens: Any, mask: Any = None) -> str:
    """Returns a row of tokens for a person to read: names with spaces between.

    Args:
      vocabulary: name of every token.
      tokens: ids. [N].
      mask: anything but 0 on the tokens to show; None for all. [N].

    Returns:
      The text; an id outside of the vocabulary is shown as <id>.
    """
    ids = np.asarray(tokens)
    shown = np.ones(ids.shape, bool) if mask is None else np.asarray(mask) != 0
    names = dict(enumerate(vocabulary))
    return " ".join(names.get(i, f"<{i}>") for i in ids[shown].tolist())


def from_text(vocabulary: Sequence[str], text: str) -> Int[np.ndarray, " N"]:
    """Returns the ids of names with spaces between, the inverse of `as_text`.

    Args:
      vocabulary: name of every token.
      text: names.

    Returns:
      Ids. [N].

    Raises:
      ValueError: a name is not in the vocabulary.
    """
    ids = {name: i for i, name in enumerate(vocabulary)}
    unknown = [name for name in text.split() if name not in ids]
    if unknown:
        raise ValueError(f"text must hold names of the vocabulary, got {unknown[0]!r}.")
    return np.array([ids[name] for name in text.split()], np.int32)
