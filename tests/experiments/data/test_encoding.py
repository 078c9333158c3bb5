"""Tokens of pairs: what is kept, what is cut, what is counted."""

import numpy as np
import pytest

from bellmax.experiments import errors
from bellmax.experiments.data import encoding, tokenizers
from bellmax.experiments.data.records import PreferenceRecord

LETTERS = tokenizers.CharacterTokenizer("abcdefghijklmnopqrstuvwxyz")
END = LETTERS.end_id


def encode(*rows, **kwargs):
    return encoding.tokenise([PreferenceRecord(*row) for row in rows], LETTERS, **kwargs)


def texts(encoded, row):
    """The three texts of a row, with a dot for each end token."""
    columns = (encoded.prompt_tokens, encoded.chosen_tokens, encoded.rejected_tokens)
    return tuple("".join([*LETTERS.alphabet, "."][i] for i in column(row)) for column in columns)


# max_length 10, max_prompt_length 4; worked by hand from the rule in the docstring.
CUTS = {
    # Everything fits, the end token included: 6 + 3 + 1 = 10.
    ("abcdef", "xyz", "y"): ("abcdef", "xyz.", "y."),
    # The prompt is short: kept whole, and the completion loses its end.
    ("abc", "xyzxyzxyz", "y"): ("abc", "xyzxyzx", "y."),
    # One token too long for the end token: it is cut, and the letters stay.
    ("abcd", "xyzxyz", "y"): ("abcd", "xyzxyz", "y."),
    # The prompt is too long, but the completions leave it 10 - 4 = 6.
    ("abcdefghijkl", "xyz", "y"): ("ghijkl", "xyz.", "y."),
    # Both are too long: 4 of the prompt's last, 6 of the completion.
    ("abcdefghijkl", "xyzxyzxyz", "yz"): ("ijkl", "xyzxyz", "yz."),
}


@pytest.mark.parametrize("row", CUTS, ids="/".join)
def test_prompt_is_kept_and_completion_cut(row):
    encoded = encode(row, max_length=10, max_prompt_length=4)
    kept = texts(encoded, 0)
    assert kept == CUTS[row]
    statistics = encoded.statistics
    assert statistics.num_prompts_cut == (kept[0] != row[0])
    assert statistics.num_chosen_cut == ("." not in kept[1])
    assert statistics.num_rejected_cut == ("." not in kept[2])


@pytest.mark.parametrize("seed", range(5))
def test_random_rows_obey_the_rule(seed):
    generator = np.random.default_rng(seed)

    def word(longest):
        return "".join(generator.choice(list("abc"), generator.integers(1, longest)))

    rows = [(word(30), "x" + word(20), "y" + word(20)) for _ in range(100)]
    encoded = encode(*rows, max_length=20)
    assert len(encoded) == 100
    for row, (prompt, chosen, rejected) in enumerate(rows):
        kept_prompt, *kept = texts(encoded, row)
        assert prompt.endswith(kept_prompt)
        assert len(kept_prompt) >= min(len(prompt), 10)
        for whole, part in zip((chosen, rejected), kept, strict=True):
            assert f"{whole}.".startswith(part)
            assert len(kept_prompt + part) <= 20
            # Nothing is cut that would have fitted.
            assert part == f"{whole}." or len(kept_prompt + part) == 20
        longest = max(map(len, kept))
        assert kept_prompt == prompt or len(kept_prompt) + longest == 20
        assert encoded.lengths[row] == len(kept_prompt) + longest
    np.testing.assert_array_equal(encoded.source_rows, np.arange(100))


def test_padded_rows_give_back_prompt_and_completion():
    rows = [("ab", "xyz", "q"), ("c", "x", "zz"), ("abcdef", "z", "xy")]
    encoded = encode(*rows, max_length=16)
    order = np.array([2, 0, 0, 1])
    sides: list[tuple[encoding.Side, int]] = [("chosen", 1), ("rejected", 2)]
    for side, column in sides:
        tokens, mask = encoded.padded(order, side, 12)
        assert tokens.shape == mask.shape == (4, 12)
        assert tokens.dtype == np.int32
        for place, row in enumerate(order):
            start = int(np.argmax(mask[place]))
            assert LETTERS.decode(tokens[place, :start]) == rows[row][0]
            completion = tokens[place][mask[place]]
            assert LETTERS.decode(completion) == rows[row][column]
            # The mask ends with the end token, and what follows is padding.
            assert completion[-1] == END
            assert mask[place].sum() == len(rows[row][column]) + 1
            np.testing.assert_array_equal(tokens[place, start + completion.size :], LETTERS.pad_id)


def test_pairs_without_preference_are_left_out_and_counted():
    encoded = encode(
        ("a", "x", "y"),
        ("a", "x", "x"),
        ("a", " ", "y"),
        ("a", "xxxxxxxxxy", "xxxxxxxxxz"),
        ("b", "y", "x"),
        max_length=8,
    )
    assert encoded.statistics == encoding.EncodingStatistics(
        num_records=5,
        num_pairs=2,
        num_empty=1,
        num_identical=1,
        num_identical_after_cut=1,
        num_prompts_cut=0,
        num_chosen_cut=0,
        num_rejected_cut=0,
    )
    np.testing.assert_array_equal(encoded.source_rows, [0, 4])
    assert texts(encoded, 1) == ("b", "y.", "x.")


def test_share_of_completions_cut():
    encoded = encode(("a", "xxxxx", "y"), ("a", "x", "y"), max_length=4)
    assert encoded.statistics.share_of_completions_cut == 0.25


def test_nothing_left_is_an_error():
    with pytest.raises(errors.UserError, match="No pair is left of 1"):
        encode(("a", "x", "x"), max_length=8)
    with pytest.raises(errors.UserError, match="has no tokens"):
        encode(("", "x", "y"), max_length=8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length must be from 1 to"),
        ({"max_length": 8, "max_prompt_length": 0}, "max_prompt_length must be from 1 to"),
    ],
)
def test_bad_lengths_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        encode(("a", "x", "y"), **kwargs)
