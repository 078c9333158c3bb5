"""Preference pairs as tokens: what is cut, what is left out, and rows padded for a batch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from bellmax.experiments import errors
from bellmax.experiments.data import records as records_lib
from bellmax.experiments.data import tokenizers

Side = Literal["chosen", "rejected"]
# Token ids of one text; every text has its own length.
TokenIds = Int[np.ndarray, " _"]


class EncodingStatistics(NamedTuple):
    """What became of the records.

    Attributes:
      num_records: records read.
      num_pairs: pairs kept; what is counted as cut below is among these.
      num_empty: pairs left out for an empty completion.
      num_identical: pairs left out because both completions are one text: no preference.
      num_identical_after_cut: pairs left out because the completions differ only in what was cut.
      num_prompts_cut: prompts that lost tokens at their beginning.
      num_chosen_cut: chosen completions that lost tokens at their end, and so have no end token.
      num_rejected_cut: the same for rejected completions.
    """

    num_records: int
    num_pairs: int
    num_empty: int
    num_identical: int
    num_identical_after_cut: int
    num_prompts_cut: int
    num_chosen_cut: int
    num_rejected_cut: int

    @property
    def share_of_completions_cut(self) -> float:
        """Cut completions over all completions of the pairs kept."""
        return (self.num_chosen_cut + self.num_rejected_cut) / (2 * self.num_pairs)


class _Ragged:
    """Rows of different lengths in one flat array: a large set costs no Python object a token."""

    def __init__(self, rows: Sequence[TokenIds]):
        self.lengths = np.fromiter((row.size for row in rows), np.int32, len(rows))
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        self._values = np.concatenate(rows)

    def __getitem__(self, row: int) -> TokenIds:
        end = self._ends[row]
        return self._values[end - self.lengths[row] : end]


class EncodedPairs:
    """Pairs as token ids, by row; made by `tokenise`.

    Attributes:
      lengths: tokens of the longer side of each pair, prompt included. [N].
      prompt_lengths: tokens of each prompt. [N].
      chosen_lengths: tokens of each chosen completion, the end token included. [N].
      rejected_lengths: the same for rejected completions. [N].
      source_rows: row of each pair among the records that were tokenised. [N].
      pad_id: id that fills rows.
      statistics: what was cut and left out.
    """

    def __init__(
        self,
        prompts: Sequence[TokenIds],
        chosen: Sequence[TokenIds],
        rejected: Sequence[TokenIds],
        *,
        source_rows: Sequence[int],
        pad_id: int,
        statistics: EncodingStatistics,
    ):
        self._prompts = _Ragged(prompts)
        self._completions = {"chosen": _Ragged(chosen), "rejected": _Ragged(rejected)}
        self.prompt_lengths = self._prompts.lengths
        self.chosen_lengths = self._completions["chosen"].lengths
        self.rejected_lengths = self._completions["rejected"].lengths
        self.lengths = self.prompt_lengths + np.maximum(self.chosen_lengths, self.rejected_lengths)
        self.source_rows = np.asarray(source_rows, np.int64)
        self.pad_id = pad_id
        self.statistics = statistics

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return self.lengths.size

    def prompt_tokens(self, row: int) -> TokenIds:
        """Returns the prompt of a pair."""
        return self._prompts[row]

    def chosen_tokens(self, row: int) -> TokenIds:
        """Returns the chosen completion of a pair, with its end token unless it was cut."""
        return self._completions["chosen"][row]

    def rejected_tokens(self, row: int) -> TokenIds:
        """Returns the rejected completion of a pair, with its end token unless it was cut."""
        return self._completions["rejected"][row]

    def padded(
        self, rows: Int[np.ndarray, " B"], side: Side, length: int
    ) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Returns prompts with one completion each, padded on the right.

        Args:
          rows: row numbers. [B].
          side: which completion.
          length: T, at least the length of every row.

        Returns:
          Tokens (int32), and a mask that is true on the completion and its end token. [B, T].
        """
        completions = self._completions[side]
        tokens = np.full((len(rows), length), self.pad_id, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for place, row in enumerate(rows):
            start = self.prompt_lengths[row]
            end = start + completions.lengths[row]
            tokens[place, :start] = self._prompts[row]
            tokens[place, start:end] = completions[row]
            mask[place, start:end] = True
        return tokens, mask


def tokenise(
    records: Sequence[records_lib.PreferenceRecord],
    tokenizer: tokenizers.Tokenizer,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
) -> EncodedPairs:
    """Encodes pairs; prompts are kept and completions cut to fit.

    A completion is its tokens and an end token. Where the prompt and the longer completion do not
    fit into `max_length`:

    1. a prompt of at most `max_prompt_length` tokens is kept whole; of a longer one the last
       tokens are kept, at least `max_prompt_length` of them and more where the completions leave
       room. Both sides get the same prompt;
    2. a completion keeps its first tokens, as many as fit, and loses its end token: the model is
       not taught to stop where the text was cut.

    This is the rule of DPO's reference implementation (prompts cut at their beginning to 256 of 512
    tokens, then completions at their end), except that no more of a prompt is cut than needed.

    Pairs without a preference are left out and counted: those with an empty completion (readers
    refuse them unless told not to) and those whose two sides are the same, before or after cutting.

    Args:
      records: the pairs.
      tokenizer: text to ids.
      max_length: most tokens of prompt and completion together, at least 2.
      max_prompt_length: tokens of a prompt that no completion can displace, 1 to max_length - 1;
        None for half of `max_length`.

    Returns:
      The encoded pairs, in the order of `records`, with what was cut and left out.

    Raises:
      ValueError: a length is out of its range.
      UserError: a prompt has no tokens, or no pair is left.

    References:
      Rafailov et al., Direct Preference Optimization, 2023. https://arxiv.org/abs/2305.18290
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2 tokens, got {max_length}.")
    max_prompt_length = max_length // 2 if max_prompt_length is None else max_prompt_length
    if not 1 <= max_prompt_length < max_length:
        raise ValueError(
            f"max_prompt_length must be from 1 to max_length - 1 = {max_length - 1} tokens, got "
            f"{max_prompt_length}."
        )
    prompts, chosen, rejected, source_rows = [], [], [], []
    num_empty = num_identical = num_identical_after_cut = 0
    num_cut = np.zeros(3, np.int64)
    for row, record in enumerate(records):
        if records_lib.is_empty(record.chosen) or records_lib.is_empty(record.rejected):
            num_empty += 1
            continue
        if record.chosen == record.rejected:
            num_identical += 1
            continue
        prompt = _encode(tokenizer, record.prompt)
        if not prompt.size:
            raise errors.UserError(f"Row {row}: the prompt {record.prompt!r} has no tokens.")
        sides = [
            np.append(_encode(tokenizer, completion), np.int32(tokenizer.end_id))
            for completion in (record.chosen, record.rejected)
        ]
        kept = _cut(prompt, sides[0], sides[1], max_length, max_prompt_length)
        if np.array_equal(kept[1], kept[2]):
            num_identical_after_cut += 1
            continue
        num_cut += [k.size < full.size for k, full in zip(kept, (prompt, *sides), strict=True)]
        for column, tokens in zip((prompts, chosen, rejected), kept, strict=True):
            column.append(tokens)
        source_rows.append(row)
    if not source_rows:
        raise errors.UserError(
            f"No pair is left of {len(records)}: {num_empty} have an empty completion, "
            f"{num_identical} the same completion twice, and {num_identical_after_cut} differ only "
            f"beyond max_length={max_length} tokens."
        )
    statistics = EncodingStatistics(
        len(records), len(source_rows), num_empty, num_identical, num_identical_after_cut,
        *(int(count) for count in num_cut),
    )  # fmt: skip
    return EncodedPairs(
        prompts,
        chosen,
        rejected,
        source_rows=source_rows,
        pad_id=tokenizer.pad_id,
        statistics=statistics,
    )


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> TokenIds:
    return np.asarray(tokenizer.encode(text), np.int32)


def _cut(
    prompt: TokenIds,
    chosen: TokenIds,
    rejected: TokenIds,
    max_length: int,
    max_prompt_length: int,
) -> tuple[TokenIds, TokenIds, TokenIds]:
    room = max_length - max(chosen.size, rejected.size)
    kept = prompt[-max(room, max_prompt_length) :]
    room = max_length - kept.size
    return kept, chosen[:room], rejected[:room]
