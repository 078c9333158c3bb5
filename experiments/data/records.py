"""Preference pairs as text: JSONL readers that name the file and line of a bad row, and the split.

This is the only place where a row of a file becomes a record; the TFDS builders read through it.
"""

import gzip
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bellmax.experiments import errors

# What ends the prompt in Anthropic's published dialogues.
ASSISTANT_TURN = "\n\nAssistant:"


class PreferenceRecord(NamedTuple):
    """A prompt and two completions, of which a person preferred the first.

    The text is kept as the file has it, leading spaces included: `prompt + chosen` is the dialogue.

    Attributes:
      prompt: what both completions answer.
      chosen: the preferred completion.
      rejected: the other completion.
    """

    prompt: str
    chosen: str
    rejected: str


def iterate_lines(path: str | pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file, plain or gzipped.

    Args:
      path: a UTF-8 file; it is decompressed where its name ends in .gz.

    Yields:
      The line's number, from 1, and its text. Blank lines are counted and left out.

    Raises:
      UserError: the file is missing, unreadable, not gzip or not UTF-8; it is named, with the line.
    """
    path = pathlib.Path(path)
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                # A byte order mark is no part of the first row.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, text
    except FileNotFoundError:
        raise errors.UserError(f"There is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise errors.UserError(f"{path}, line {number}: not UTF-8 text ({error}).") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise errors.UserError(
            f"{path}, after line {number}: not a whole gzip file ({error})."
        ) from None
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def parse_object(text: str, place: str) -> dict[str, Any]:
    """Returns the JSON object of a line.

    Args:
      text: the line.
      place: file and line, for messages.

    Raises:
      UserError: the line is no JSON object.
    """
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.UserError(
            f"{place}: not valid JSON ({error.msg} at column {error.colno})."
        ) from None
    except RecursionError:
        raise errors.UserError(f"{place}: JSON nested too deeply.") from None
    if not isinstance(row, dict):
        raise errors.UserError(f"{place}: expected a JSON object, got {type(row).__name__}.")
    return row


def text_field(row: dict[str, Any], name: str, place: str) -> str:
    """Returns a field of an object that must be text.

    Args:
      row: the object.
      name: of the field.
      place: file and line, for messages.

    Raises:
      UserError: the field is missing, or holds something else.
    """
    if name not in row:
        found = ", ".join(repr(key) for key in row) or "none"
        raise errors.UserError(f"{place}: the field {name!r} is missing; the fields are: {found}.")
    value = row[name]
    if not isinstance(value, str):
        raise errors.UserError(
            f"{place}: the field {name!r} must be a string, got {type(value).__name__}."
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise errors.UserError(
            f"{place}: the field {name!r} holds half of a surrogate pair, which is not text."
        ) from None
    return value


def is_empty(completion: str) -> bool:
    """Returns whether a completion holds nothing but white space."""
    return not completion.strip()


def _check_record(record: PreferenceRecord, place: str, allow_empty: bool) -> PreferenceRecord:
    if not record.prompt:
        raise errors.UserError(f"{place}: the prompt is empty.")
    for name in ("chosen", "rejected"):
        if is_empty(getattr(record, name)) and not allow_empty:
            raise errors.UserError(
                f"{place}: the {name} completion is empty. Mend the row, or allow empty "
                "completions: such pairs are then counted and left out."
            )
    return record


def iterate_jsonl(
    path: str | pathlib.Path, *, allow_empty: bool = False
) -> Iterator[PreferenceRecord]:
    """Yields the pairs of a file with `prompt`, `chosen` and `rejected` on each line.

    Args:
      path: a .jsonl or .jsonl.gz file; other fields are ignored.
      allow_empty: let pairs with an empty completion through (`pipeline.tokenise` leaves them out
        and counts them) instead of refusing them.

    Yields:
      Records in the file's order.

    Raises:
      UserError: a row is malformed, lacks a field, has a field that is no string, or has an empty
        prompt or an empty completion (nothing but white space); the message names file and line.
    """
    for number, text in iterate_lines(path):
        place = f"{path}, line {number}"
        row = parse_object(text, place)
        fields = (text_field(row, name, place) for name in PreferenceRecord._fields)
        yield _check_record(PreferenceRecord(*fields), place, allow_empty)


def iterate_hh(
    path: str | pathlib.Path, *, allow_empty: bool = False
) -> Iterator[PreferenceRecord]:
    r"""Yields the pairs of a file in the layout in which Anthropic published HH-RLHF.

    Each line has `chosen` and `rejected`, two whole dialogues. The prompt is what they share, up to
    and with the last "\n\nAssistant:" in it; the completions are the rest, several turns of it
    where the dialogues part early.

    Args:
      path: a .jsonl or .jsonl.gz file; other fields are ignored.
      allow_empty: let pairs with an empty completion through (`pipeline.tokenise` leaves them out
        and counts them) instead of refusing them.

    Yields:
      Records in the file's order.

    Raises:
      UserError: a row is malformed, lacks a field, has a field that is no string, shares no
        "\n\nAssistant:", or has an empty completion; the message names file and line.

    References:
      Bai et al., Training a Helpful and Harmless Assistant with RLHF, 2022.
      https://arxiv.org/abs/2204.05862
    """
    for number, text in iterate_lines(path):
        place = f"{path}, line {number}"
        row = parse_object(text, place)
        chosen, rejected = (text_field(row, name, place) for name in ("chosen", "rejected"))
        shared = _common_prefix_length(chosen, rejected)
        turn = chosen.rfind(ASSISTANT_TURN, 0, shared)
        if turn < 0:
            raise errors.UserError(
                f"{place}: the two dialogues share no {ASSISTANT_TURN!r} that could end a prompt."
            )
        end = turn + len(ASSISTANT_TURN)
        record = PreferenceRecord(chosen[:end], chosen[end:], rejected[end:])
        yield _check_record(record, place, allow_empty)


def _common_prefix_length(first: str, second: str) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:  # Bisection on slices: much faster than a Python loop over characters.
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def read_jsonl(path: str | pathlib.Path, *, allow_empty: bool = False) -> list[PreferenceRecord]:
    """Reads a whole file of `iterate_jsonl`.

    Args:
      path: a .jsonl or .jsonl.gz file.
      allow_empty: let pairs with an empty completion through instead of refusing them.

    Returns:
      Records in the file's order, at least one.

    Raises:
      UserError: as `iterate_jsonl`, or the file has no rows.
    """
    return _non_empty(list(iterate_jsonl(path, allow_empty=allow_empty)), path)


def read_hh(path: str | pathlib.Path, *, allow_empty: bool = False) -> list[PreferenceRecord]:
    """Reads a whole file of `iterate_hh`.

    Args:
      path: a .jsonl or .jsonl.gz file.
      allow_empty: let pairs with an empty completion through instead of refusing them.

    Returns:
      Records in the file's order, at least one.

    Raises:
      UserError: as `iterate_hh`, or the file has no rows.
    """
    return _non_empty(list(iterate_hh(path, allow_empty=allow_empty)), path)


def _non_empty(records: list[PreferenceRecord], path: str | pathlib.Path) -> list[PreferenceRecord]:
    if not records:
        raise errors.UserError(f"{path} has no rows.")
    return records


def split_by_prompt(
    records: Sequence[PreferenceRecord], *, fraction: float, seed: int
) -> tuple[list[PreferenceRecord], list[PreferenceRecord]]:
    """Splits pairs into training and held-out ones, all pairs of a prompt on one side.

    A prompt is held out if a hash of it and the seed, uniform on [0, 1), is below `fraction`: which
    side it is on depends neither on the order of the rows nor on the other rows. Only where that
    would leave a side empty does the prompt nearest to the boundary change sides.

    Args:
      records: the pairs.
      fraction: expected share of the prompts that is held out, in (0, 1).
      seed: another seed draws another split.

    Returns:
      Training and held-out records, each in the order of `records` and neither empty.

    Raises:
      ValueError: `fraction` is outside (0, 1).
      UserError: there are fewer than two different prompts.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}.")
    places = {record.prompt: _uniform_hash(record.prompt, seed) for record in records}
    if len(places) < 2:
        raise errors.UserError(
            f"Holding out prompts needs at least 2 different prompts, got {len(places)}."
        )
    held_out_prompts = {prompt for prompt, place in places.items() if place < fraction}
    if not held_out_prompts:
        held_out_prompts.add(min(places, key=places.__getitem__))
    elif len(held_out_prompts) == len(places):
        held_out_prompts.remove(max(places, key=places.__getitem__))
    train, held_out = [], []
    for record in records:
        (held_out if record.prompt in held_out_prompts else train).append(record)
    return train, held_out


def _uniform_hash(text: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
