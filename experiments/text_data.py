"""GSM8K as a table of tokens: read, encoded and split once, then handed out row by row."""

import functools
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from bellmax.envs.token_tasks import TokenProblem
from bellmax.experiments import errors, numbered, text_config
from bellmax.experiments.data import gsm8k, tokenizers
from bellmax.experiments.text_tasks import Solution, Stored


class Table(NamedTuple):
    """What a stage learns from, as arrays on the host.

    Attributes:
      problem: problems. [M, ...].
      stored: completions of each, where they are not sampled. [M, ...].
    """

    problem: TokenProblem
    stored: Stored | None = None


class TextRows(NamedTuple):
    """A step's rows of a table.

    Attributes:
      index: their global numbers, which with the step's key decide their randomness. [B].
      problem: their problems. [B, ...].
      stored: completions of each, or None. [B, ...].
    """

    # Fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Any
    problem: TokenProblem
    stored: Stored | None = None


class TextData(NamedTuple):
    """Problems of a run, as arrays on the host.

    Attributes:
      train: to learn from.
      held_out: for evaluation. [H, ...].
      numbers: the right number of each, by `Solution.row`.
      questions: the right number of each question of the two files.
      kept_back: questions that are held out.
      about: what was read and left out, in words.
    """

    train: Table
    held_out: TokenProblem
    numbers: tuple[str, ...]
    questions: dict[str, str]
    kept_back: frozenset[str]
    about: str


class _Encoded(NamedTuple):
    prompt: list[int]
    solution: list[int]
    number: str


def load(
    config: text_config.DataConfig, tokenizer: tokenizers.Tokenizer, workdir: pathlib.Path
) -> TextData:
    """Reads and encodes the questions that a config asks for.

    Args:
      config: the data group.
      tokenizer: of the run.
      workdir: folder of the run.

    Returns:
      The problems. A question that is held out is not among those to learn from.

    Raises:
      UserError: a file is missing, a row is malformed, or too few prompts are short enough.
    """
    cache_dir = pathlib.Path(config.cache_dir or workdir / "data")
    rows = {
        key: gsm8k.load(getattr(config, key), cache_dir=cache_dir)
        for key in ("held_out_path", "path")
    }
    held_out, long_held_out = _encode(rows["held_out_path"], config, tokenizer, config.num_held_out)
    kept_back = frozenset(question for question, _ in held_out)
    fresh = [row for row in rows["path"] if row.question not in kept_back]
    train, long_train = _encode(fresh, config, tokenizer, len(fresh))
    for key, found, least in (("held_out_path", held_out, 2), ("path", train, 1)):
        if len(found) < least:
            raise errors.UserError(
                f"config.data.{key} {getattr(config, key)} has {len(found)} questions of at most "
                f"config.data.max_prompt_tokens {config.max_prompt_tokens} tokens that can be used,"
                f" and needs {least}."
            )
    encoded = [row for _, row in (*train, *held_out)]
    cut = sum(len(row.solution) > config.max_new_tokens for row in encoded[: len(train)])
    table = _table(encoded, config.max_new_tokens)
    about = (
        f"questions: {len(train)} of {config.path}, {len(held_out)} held out of "
        f"{config.held_out_path}; left out: {long_train} and {long_held_out} with more than "
        f"{config.max_prompt_tokens} tokens, {len(rows['path']) - len(fresh)} that are held out; "
        f"{cut} solutions longer than {config.max_new_tokens} tokens are imitated in part"
    )
    return TextData(
        train=Table(jax.tree.map(lambda leaf: leaf[: len(train)], table)),
        held_out=jax.tree.map(lambda leaf: leaf[len(train) :], table),
        numbers=tuple(row.number for row in encoded),
        questions={row.question: row.number for side in rows.values() for row in side},
        kept_back=kept_back,
        about=about,
    )


def _encode(
    rows: Sequence[gsm8k.Gsm8kRecord],
    config: text_config.DataConfig,
    tokenizer: tokenizers.Tokenizer,
    most: int,
) -> tuple[list[tuple[str, _Encoded]], int]:
    """The first so many rows whose prompts are short enough, and how many on the way were not."""
    found: list[tuple[str, _Encoded]] = []
    too_long = 0
    for row in rows:
        if len(found) == most:
            break
        prompt = tokenizer.encode(fill(config.prompt, question=row.question))
        if len(prompt) > config.max_prompt_tokens:
            too_long += 1
            continue
        words = fill(config.solution, steps=row.steps, number=row.number)
        solution = [*tokenizer.encode(words), tokenizer.end_id]
        found.append((row.question, _Encoded(prompt, solution, row.number)))
    return found, too_long


def fill(template: str, **values: str) -> str:
    """Returns a template with every {name} replaced; other braces stay.

    Args:
      template: the text.
      **values: what is put in, by name.

    Returns:
      The text.
    """
    pattern = "{(" + "|".join(values) + ")}"
    return re.sub(pattern, lambda found: values[found[1]], template)


def _table(encoded: Sequence[_Encoded], max_new_tokens: int) -> TokenProblem:
    prompt, prompt_mask = padded([row.prompt for row in encoded])
    tokens, mask = padded([row.solution[:max_new_tokens] for row in encoded])
    rows = np.arange(len(encoded), dtype=np.int32)
    return TokenProblem(prompt, prompt_mask, Solution(rows, tokens, mask))


def padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Any, "M N"], Float[Any, "M N"]]:
    """Returns rows of ids as one array, as wide as the longest.

    Args:
      rows: ids of each.

    Returns:
      Tokens, 0 on padding, and a mask that is 1 on the others. [M, N] each.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return tokens, mask.astype(np.float32)


class ProblemBatches:
    """Rows of a table in epochs, each row once an epoch, in an order that the names decide."""

    def __init__(self, table: Table, batch_size: int, *, seed: int, name: str):
        """Makes the iterator.

        Args:
          table: the rows.
          batch_size: rows of a batch over all processes; may exceed the table's.
          seed: the run's.
          name: of the stage, whose order is alike alone and among others.
        """
        self._table, self._batch_size = table, batch_size
        self._step, size = 0, len(table.problem.prompt)
        names = seed, zlib.crc32(name.encode())

        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng((*names, epoch)).permutation(size)

        # A batch ends one epoch and begins the next.
        self._order = functools.lru_cache(maxsize=2)(order)

    def __next__(self) -> TextRows:
        """Returns this process's rows of the next batch."""
        index = numbered.local_rows(self._batch_size).index
        size = len(self._table.problem.prompt)
        epochs, places = np.divmod(self._step * self._batch_size + index.astype(np.int64), size)
        rows = np.zeros(len(index), np.int64)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._order(int(epoch))[places[epochs == epoch]]
        self._step += 1
        return TextRows(index, *jax.tree.map(lambda leaf: leaf[rows], self._table))

    def get_state(self) -> dict[str, Any]:
        """Returns the number of batches so far."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        self._step = int(state["step"])
