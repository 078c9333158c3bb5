r"""Completions of another policy, read from a file once: what a run learns from without sampling.

Each line of the file, plain or gzipped, is a JSON object:

    {"question": "...", "answer": "... #### 18", "completions": ["so #### 18", "so #### 5"]}

- `question`: the problem, which the template of prompts is filled with.
- `completions`: texts, each what follows the prompt to the letter; the end token is added. Of more
  than a group the first count; fewer are refused.
- `answer` or `ground_truth`: gives the right number (`verifiers`); it may be missing where the
  question is one of `config.data.path` or `config.data.held_out_path`.
- `rewards`: a number for each completion; where it is missing, 1 for the right number and else 0.
- `behaviour_log_probs`: of each completion the log-probabilities of its tokens under the policy
  that wrote it, nats, the end token's with them; in every row or in none. Where they are missing,
  the reference's are taken for them, as if it had written the completions.

The model solutions that were published with GSM8K, whose rows have `samples` of a `solution` each
in the place of `completions`, are read as they are.

References:
  Tang et al., RL-finetuning LLMs from on- and off-policy data with a single algorithm, 2025.
  https://arxiv.org/abs/2503.19612
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bellmax.envs.token_tasks import TokenProblem
from bellmax.experiments import errors, text_config, text_data
from bellmax.experiments.data import records, tokenizers, verifiers
from bellmax.experiments.text_tasks import Stored


class StoredRow(NamedTuple):
    """A question with a group of completions, as the file has them.

    Attributes:
      place: file and line, for messages.
      question: the problem.
      number: the right number, as text.
      completions: texts, one group.
      rewards: of each; None where the file has none.
      log_probs: of the tokens of each; None likewise.
    """

    place: str
    question: str
    number: str
    completions: list[str]
    rewards: list[float] | None
    log_probs: list[list[float]] | None


def read(path: str, group_size: int, numbers: Mapping[str, str]) -> list[StoredRow]:
    """Reads a file of completions.

    Args:
      path: the file.
      group_size: completions of a row that count.
      numbers: right numbers of known questions.

    Returns:
      Its rows, in order.

    Raises:
      UserError: a row is malformed, lacks a field or has fewer completions than a group, or some
        rows have log-probabilities and others not; the message names file and line.
    """
    rows: list[StoredRow] = []
    for line, text in records.iterate_lines(path):
        place = f"{path}, line {line}"
        row = records.parse_object(text, place)
        question = records.text_field(row, "question", place)
        completions = _texts(row, place)
        if len(completions) < group_size:
            raise errors.UserError(
                f"{place}: there must be config.train.group_size {group_size} completions or "
                f"more, got {len(completions)}."
            )
        rewards, log_probs = (
            _floats_of(row, name, len(completions), place)
            for name in ("rewards", "behaviour_log_probs")
        )
        if rewards is not None and not all(map(_is_number, rewards)):
            raise errors.UserError(f"{place}: 'rewards' must be finite numbers, got {rewards}.")
        rows.append(
            StoredRow(
                place,
                question,
                _number(row, question, numbers, place),
                completions[:group_size],
                None if rewards is None else rewards[:group_size],
                None if log_probs is None else log_probs[:group_size],
            )
        )
        if (rows[0].log_probs is None) != (log_probs is None):
            raise errors.UserError(
                f"{place}: 'behaviour_log_probs' must be in every row or in none, and the first "
                f"row has {'none' if rows[0].log_probs is None else 'them'}."
            )
    return rows


def _texts(row: dict[str, Any], place: str) -> list[str]:
    texts: Any = row.get("completions")
    if "completions" not in row and isinstance(row.get("samples"), list):
        texts = [one.get("solution") if isinstance(one, dict) else None for one in row["samples"]]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise errors.UserError(
            f"{place}: 'completions' must be a list of strings, or 'samples' one of objects with a "
            f"'solution'; the fields are: {', '.join(map(repr, row))}."
        )
    return texts


def _floats_of(row: dict[str, Any], name: str, count: int, place: str) -> list[Any] | None:
    found = row.get(name)
    if found is not None and (not isinstance(found, list) or len(found) != count):
        raise errors.UserError(
            f"{place}: {name!r} must be a list of one for each of {count} completions."
        )
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(row: dict[str, Any], question: str, numbers: Mapping[str, str], place: str) -> str:
    for name in ("answer", "ground_truth"):
        if name in row:
            text = records.text_field(row, name, place)
            number = verifiers.extract_number(text)
            if number is None:
                raise errors.UserError(f"{place}: {name!r} gives no number, got {text[-40:]!r}.")
            return format(number, "f")
    if question not in numbers:
        raise errors.UserError(
            f"{place}: there is no 'answer', and the question is in neither config.data.path nor "
            f"config.data.held_out_path: {question[:60]!r}."
        )
    return numbers[question]


def load(
    config: text_config.TextConfig,
    tokenizer: tokenizers.Tokenizer,
    numbers: Mapping[str, str],
    held_out: Collection[str],
) -> tuple[text_data.Table, str]:
    """Reads and encodes the completions that a config asks for.

    Args:
      config: the run.
      tokenizer: its tokenizer.
      numbers: right numbers of known questions.
      held_out: questions that nobody may learn from.

    Returns:
      The table, and what was read and left out, in words.

    Raises:
      UserError: as `read`; log-probabilities do not fit the tokens; or nothing is left.
    """
    data, path = config.data, config.data.completions
    rows = read(path, config.train.group_size, numbers)
    fresh = [row for row in rows if row.question not in held_out]
    kept, prompts, groups = [], [], []
    for row in fresh:
        prompt = tokenizer.encode(text_data.fill(data.prompt, question=row.question))
        group = [[*tokenizer.encode(text), tokenizer.end_id] for text in row.completions]
        if len(prompt) <= data.max_prompt_tokens and _longest(group) <= data.max_new_tokens:
            kept.append(row)
            prompts.append(prompt)
            groups.append(group)
    if not kept:
        raise errors.UserError(
            f"config.data.completions {path} has no row left of {len(rows)}, {len(fresh)} of them "
            f"not held out, with at most config.data.max_prompt_tokens {data.max_prompt_tokens} "
            f"and config.data.max_new_tokens {data.max_new_tokens} tokens."
        )
    prompt, prompt_mask = text_data.padded(prompts)
    scores = _log_probs(kept, groups)
    about = (
        f"completions: {len(kept)} groups of {path}; left out: {len(rows) - len(fresh)} that are "
        f"held out, {len(fresh) - len(kept)} with a prompt or completion that is too long; "
        f"behaviour: {'the reference' if scores is None else 'of the file'}"
    )
    table = text_data.Table(
        TokenProblem(prompt, prompt_mask, ()), _stored(kept, groups, scores, config)
    )
    return table, about


def _longest(group: Sequence[Sequence[int]]) -> int:
    return max(len(ids) for ids in group)


def _stored(
    rows: Sequence[StoredRow],
    groups: Sequence[Sequence[list[int]]],
    scores: list[list[float]] | None,
    config: text_config.TextConfig,
) -> Stored:
    shape = len(rows), config.train.group_size
    tokens, mask = text_data.padded([ids for group in groups for ids in group])
    answers = np.array(
        [verifiers.answer_numbers(row.completions, row.number) for row in rows], np.int32
    )
    rewards = (answers == 0).astype(np.float32)
    for place, row in enumerate(rows):
        if row.rewards is not None:
            rewards[place] = row.rewards
    log_probs = None
    if scores is not None:
        log_probs = np.zeros(mask.shape, np.float32)
        log_probs[mask > 0] = np.concatenate(scores)
        log_probs = log_probs.reshape(*shape, -1)
    return Stored(tokens.reshape(*shape, -1), mask.reshape(*shape, -1), rewards, answers, log_probs)


def _log_probs(
    rows: Sequence[StoredRow], groups: Sequence[Sequence[list[int]]]
) -> list[list[float]] | None:
    """Log-probabilities of one completion after another, each as long as its tokens."""
    if rows[0].log_probs is None:
        return None
    found = []
    for row, group in zip(rows, groups, strict=True):
        for scores, ids in zip(row.log_probs or (), group, strict=True):
            is_list = isinstance(scores, list)
            if not is_list or len(scores) != len(ids) or not all(map(_is_number, scores)):
                raise errors.UserError(
                    f"{row.place}: 'behaviour_log_probs' must be lists of finite numbers, one for "
                    f"each token of the completion and its end token, here {len(ids)}; got "
                    f"{len(scores) if is_list else scores!r}."
                )
            found.append(scores)
    return found
