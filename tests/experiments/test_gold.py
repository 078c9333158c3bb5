"""The exact evaluator against a policy whose law is known: the bench's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import gold_bench
from bellmax.experiments import gold

LETTERS, PROMPT, DEPTH = 3, 2, 2
BENCH = gold_bench.make(
    jax.random.key(0), num_letters=LETTERS, prompt_length=PROMPT, max_letters=DEPTH
)
PROMPTS = jnp.array([[0, 1], [2, 2], [1, 0]])


def table_policy(params, tokens):
    """A policy whose logits depend on the place and the last two tokens."""
    previous = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    return params[jnp.arange(tokens.shape[1])[None, :], tokens, previous]


@pytest.fixture(scope="module")
def evaluator():
    return gold.make(BENCH, PROMPTS, table_policy)


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    shape = (PROMPT + DEPTH, LETTERS + 1, LETTERS + 1, LETTERS + 1)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)]


def test_probabilities_sum_to_one(evaluator, tables):
    log_probs = evaluator.completion_log_probs(tables[0])
    assert log_probs.shape == (3, 40)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, rtol=1e-5)


def test_each_completion_is_scored_by_its_own_prefix(evaluator, tables):
    log_probs = np.asarray(evaluator.completion_log_probs(tables[0]))
    table = np.asarray(jax.nn.log_softmax(tables[0]))
    for row, (tokens, mask) in enumerate(zip(evaluator.tokens, evaluator.mask, strict=True)):
        history, expected = [2, 2], 0.0
        for token, counts in zip(tokens, mask, strict=True):
            if counts:
                expected += table[len(history) - 1, history[-1], history[-2], token]
                history.append(int(token))
        np.testing.assert_allclose(log_probs[1, row], expected, rtol=1e-4, atol=1e-5)


def test_score_of_the_reference_itself(evaluator, tables):
    log_probs = evaluator.completion_log_probs(tables[0])
    score = gold.score(evaluator, log_probs, log_probs)
    assert score.kl == 0.0
    assert score.gain == 0.0
    assert score.accuracy == pytest.approx(0.5)


def test_score_agrees_with_monte_carlo(evaluator, tables):
    policy, reference = (evaluator.completion_log_probs(table) for table in tables)
    score = gold.score(evaluator, policy, reference)
    drawn = jax.random.categorical(jax.random.key(1), policy, shape=(20_000, 3))
    rewards = np.take_along_axis(np.asarray(evaluator.rewards).T, np.asarray(drawn), axis=0)
    ratios = np.take_along_axis(np.asarray(policy - reference).T, np.asarray(drawn), axis=0)
    np.testing.assert_allclose(score.reward, rewards.mean(), atol=0.05)
    np.testing.assert_allclose(score.kl, ratios.mean(), atol=0.05)


def test_nothing_is_more_accurate_than_the_gold_reward(evaluator, tables):
    policy, reference = (evaluator.completion_log_probs(table) for table in tables)
    best = gold.score(evaluator, reference + evaluator.rewards, reference).accuracy
    assert gold.score(evaluator, policy, reference).accuracy < best < 1.0


def test_frontier_bounds_every_policy(evaluator, tables):
    policy, reference = (evaluator.completion_log_probs(table) for table in tables)
    kls, rewards = gold.optimal_frontier(evaluator, reference, np.geomspace(20.0, 0.02, 80))
    assert np.all(np.diff(kls) > 0)
    assert np.all(np.diff(rewards) > 0)
    score = gold.score(evaluator, policy, reference)
    assert score.reward < np.interp(score.kl, kls, rewards)
