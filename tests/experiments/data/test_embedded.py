import jax
import numpy as np
import pytest

from bellmax.envs import gold_bench
from bellmax.experiments.data import embedded


@pytest.fixture(scope="module")
def data():
    return embedded.make(3, num_pairs=2000, num_held_out_pairs=100, num_evaluation_prompts=4)


def test_sizes_and_letters(data):
    assert (len(data.train), len(data.held_out)) == (2000, 100)
    assert data.evaluation_prompts.shape == (4, data.bench.prompt_length)
    for record in data.train:
        assert len(record.prompt) == data.bench.prompt_length
        assert record.chosen != record.rejected
        for text in (record.chosen, record.rejected):
            assert 1 <= len(text) <= data.bench.max_letters
            assert set(text) <= set(embedded.LETTERS)
    assert data.train[:100] != data.held_out


def rewards(bench, prompts, texts):
    width = bench.max_letters + 1
    letters = [[embedded.LETTERS.index(c) for c in text] for text in texts]
    tokens = np.array([row + [bench.num_letters] * (width - len(row)) for row in letters])
    mask = np.array([[1.0] * (len(row) + 1) + [0.0] * (width - len(row) - 1) for row in letters])
    prompt_ids = np.array([[embedded.LETTERS.index(c) for c in prompt] for prompt in prompts])
    return np.asarray(
        gold_bench.gold_reward(bench, *map(jax.numpy.asarray, (prompt_ids, tokens, mask)))
    )


def test_labels_follow_bradley_terry(data):
    prompts = [record.prompt for record in data.train]
    chosen = rewards(data.bench, prompts, [record.chosen for record in data.train])
    rejected = rewards(data.bench, prompts, [record.rejected for record in data.train])
    gap = chosen - rejected
    # P(better completion is chosen) is sigmoid |gap|: the share must match its expectation.
    expected = 1 / (1 + np.exp(-np.abs(gap)))
    error = np.sqrt(np.sum(expected * (1 - expected))) / gap.size
    assert np.mean(gap > 0) == pytest.approx(float(expected.mean()), abs=4 * float(error))


def test_a_seed_decides_everything(data):
    sizes = {"num_pairs": 50, "num_held_out_pairs": 10, "num_evaluation_prompts": 2}
    one, again, other = (embedded.make(seed, **sizes) for seed in (5, 5, 6))
    assert one.train == again.train
    assert one.held_out == again.held_out
    assert one.train != other.train


@pytest.mark.parametrize("key", ["num_pairs", "num_held_out_pairs", "num_evaluation_prompts"])
def test_counts_must_be_positive(key):
    sizes = {"num_pairs": 5, "num_held_out_pairs": 5, "num_evaluation_prompts": 2, key: 0}
    with pytest.raises(ValueError, match=key):
        embedded.make(0, **sizes)
