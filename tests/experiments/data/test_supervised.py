import numpy as np
import pytest

from bellmax.experiments.data import pipeline, records, supervised, tokenizers

RECORDS = [records.PreferenceRecord("ab", "a" * (1 + i % 3), "b" * (1 + i % 2)) for i in range(7)]
END = 2


@pytest.fixture(scope="module")
def encoded():
    return pipeline.tokenise(RECORDS, tokenizers.CharacterTokenizer("ab"), max_length=8)


def iterator(encoded, sides, **kwargs):
    options = {"batch_size": 4, "bucket_lengths": (4, 8), "seed": 0, "num_steps": 6}
    return supervised.make_supervised_iterator(
        encoded, sides=supervised.SIDES[sides], **{**options, **kwargs}
    )


@pytest.mark.parametrize(("sides", "names"), [("chosen", 1), ("both", 2)])
def test_every_completion_is_imitated_once_an_epoch(encoded, sides, names):
    rows = len(RECORDS) * names
    seen = []
    for batch in iterator(encoded, sides, num_steps=40):
        for tokens, mask, index, weight in zip(*batch, strict=True):
            if not weight:
                continue
            record = RECORDS[index // names]
            text = (record.chosen, record.rejected)[index % names]
            completion = ["ab".index(letter) for letter in text] + [END]
            np.testing.assert_array_equal(tokens[mask > 0], completion)
            np.testing.assert_array_equal(tokens[:2], [0, 1])
            assert not mask[:2].any()
            seen.append(int(index))
        if len(seen) >= rows:
            break
    assert sorted(seen) == list(range(rows))


def test_position_and_slices(encoded):
    whole = list(iterator(encoded, "both"))
    resumed = iterator(encoded, "both")
    for _ in range(3):
        next(resumed)
    position = resumed.get_state()
    later = iterator(encoded, "both")
    later.set_state(position)
    np.testing.assert_array_equal(next(later).tokens, whole[3].tokens)

    parts = [list(iterator(encoded, "both", process_index=i, process_count=2)) for i in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(batch.tokens, np.concatenate([first.tokens, second.tokens]))
