"""The bench's law and reward against their definitions, by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import gold_bench

BENCH = gold_bench.make(jax.random.key(3), num_letters=3, prompt_length=2, max_letters=2)


def test_enumeration_counts_each_completion_once():
    tokens, mask = gold_bench.enumerate_completions(3, 2)
    # 1 + 3 + 9 that end, 27 that are cut after three letters.
    assert tokens.shape == mask.shape == (40, 3)
    assert len({tuple(row) for row in tokens}) == 40
    np.testing.assert_array_equal(mask[0], [1, 0, 0])


def test_law_of_completions_sums_to_one():
    tokens, _ = gold_bench.enumerate_completions(3, 2)
    prompts = jnp.broadcast_to(jnp.array([2, 0]), (40, 2))
    log_probs = gold_bench.completion_log_probs(BENCH, prompts, jnp.asarray(tokens))
    np.testing.assert_allclose(np.exp(log_probs).sum(), 1.0, rtol=1e-6)
    # mu never draws an empty completion, nor one that is cut.
    assert log_probs[0] == -np.inf
    assert np.all(np.asarray(log_probs[13:]) == -np.inf)


def test_sampler_follows_the_law():
    tokens, _ = gold_bench.enumerate_completions(3, 2)
    prompts = jnp.broadcast_to(jnp.array([1, 2]), (20_000, 2))
    drawn, mask = gold_bench.sample_completions(jax.random.key(0), BENCH, prompts)
    law = np.exp(gold_bench.completion_log_probs(BENCH, prompts[:40], jnp.asarray(tokens)))
    counts = np.array([(np.asarray(drawn) == row).all(axis=1).mean() for row in tokens])
    # Five standard errors of a proportion.
    np.testing.assert_array_less(np.abs(counts - law), 5 * np.sqrt(law * (1 - law) / 20_000) + 1e-9)
    np.testing.assert_array_equal(mask[:, 0], 1)


def test_gold_reward_by_hand():
    prompt, tokens, mask = jnp.array([2, 1]), jnp.array([0, 1, 3]), jnp.array([1.0, 1.0, 1.0])
    raw = (
        BENCH.match_reward[0, 2, 0]
        + BENCH.match_reward[1, 1, 1]
        + BENCH.neighbour_reward[0, 1]
        + BENCH.length_reward[2]
    )
    expected = (raw - BENCH.reward_mean) / BENCH.reward_scale
    np.testing.assert_allclose(
        gold_bench.gold_reward(BENCH, prompt, tokens, mask), expected, rtol=1e-5
    )


def test_gold_reward_reads_nothing_behind_the_mask():
    prompt, mask = jnp.array([2, 1]), jnp.array([1.0, 1.0, 0.0])
    one = gold_bench.gold_reward(BENCH, prompt, jnp.array([0, 3, 0]), mask)
    two = gold_bench.gold_reward(BENCH, prompt, jnp.array([0, 3, 2]), mask)
    assert one == two


def test_reward_is_standardised_under_its_law():
    prompts = gold_bench.sample_prompts(jax.random.key(1), BENCH, 20_000)
    tokens, mask = gold_bench.sample_completions(jax.random.key(2), BENCH, prompts)
    rewards = gold_bench.gold_reward(BENCH, prompts, tokens, mask)
    np.testing.assert_allclose([rewards.mean(), rewards.std()], [0, 1], atol=0.06)


def test_preference_is_bradley_terry():
    np.testing.assert_allclose(
        gold_bench.preference_probs(jnp.array([np.log(3.0)]), jnp.array([0.0])), 0.75, rtol=1e-6
    )


def test_same_key_same_bench():
    again = gold_bench.make(jax.random.key(3), num_letters=3, prompt_length=2, max_letters=2)
    for one, two in zip(BENCH, again, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("sizes", [(1, 2, 2), (3, 0, 2), (3, 2, 0)])
def test_refuses_sizes_that_are_too_small(sizes):
    with pytest.raises(ValueError, match="num_letters"):
        gold_bench.make(
            jax.random.key(0), num_letters=sizes[0], prompt_length=sizes[1], max_letters=sizes[2]
        )
