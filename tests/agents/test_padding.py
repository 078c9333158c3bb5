"""Padding ids that are no tokens, such as -100 or the vocabulary's size, change no agent's step.

A lookup outside an embedding is NaN, and attention would spread it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents, losses
from bellmax.agents import conversations, duels, mtpo, nash, preference, supervised
from bellmax.agents.language import LanguageModel, without_padding

VOCAB, LENGTH, WIDTH = 7, 6, 4


def hidden_states(params, tokens):
    """Reads like attention: a lookup that is NaN outside, and 0 times what is not to be seen."""
    seen = jnp.tril(jnp.ones((tokens.shape[1],) * 2)) / (1 + jnp.arange(tokens.shape[1]))[:, None]
    return jnp.tanh(seen @ jnp.take(params["embedding"], tokens, axis=0))


MODEL = LanguageModel(
    apply=lambda params, tokens: hidden_states(params, tokens) @ params["embedding"].T,
    hidden_states=hidden_states,
    unembedding=lambda params: params["embedding"].T,
)
PARAMS = {"embedding": jax.random.normal(jax.random.key(0), (VOCAB, WIDTH))}
SGD = optax.sgd(0.1)
# The last row does not count; the others end before, at, and without any padding.
LENGTHS = np.array([4, 5, 6, 6])
COUNTED = (np.arange(LENGTH) >= 2) & (np.arange(LENGTH) < LENGTHS[:, None])
MASK = jnp.asarray(COUNTED, jnp.float32)
WEIGHT = jnp.array([1.0, 2.0, 1.0, 0.0])


def tokens(seed, padding):
    drawn = np.random.default_rng(seed).integers(0, VOCAB, MASK.shape)
    read = (np.arange(LENGTH) < LENGTHS[:, None]) & (np.asarray(WEIGHT)[:, None] > 0)
    return jnp.asarray(np.where(read, drawn, padding), jnp.int32)


def step_of_preference(padding):
    agent = preference.make(
        MODEL,
        SGD,
        loss_fn=preference.on_log_ratios(functools.partial(losses.dpo_loss, beta=0.5)),
        init_params=lambda key: PARAMS,
    )
    batch = agents.PreferenceBatch(
        tokens(0, padding), tokens(1, padding), MASK, MASK, weight=WEIGHT
    )
    return agent, batch


def step_of_nash(padding):
    agent = nash.make(
        MODEL,
        SGD,
        loss_fn=duels.nash_md_pg(tau=0.1),
        init_params=lambda key: PARAMS,
        max_new_tokens=2,
    )
    wins = jnp.array([0.2, 0.9, 0.4, 0.5])
    batch = agents.DuelBatch(
        tokens(0, padding), tokens(1, padding), MASK, MASK, wins, weight=WEIGHT
    )
    return agent, batch


def step_of_supervised(padding):
    agent = supervised.make(MODEL, SGD, init_params=lambda key: PARAMS)
    return agent, agents.SupervisedBatch(tokens(0, padding), MASK, weight=WEIGHT)


def step_of_mtpo(padding):
    agent = mtpo.make(MODEL, SGD, init_params=lambda key: PARAMS, alpha=0.1)
    batch = conversations.ConversationBatch(
        tokens=tokens(0, padding),
        mask=MASK,
        turns=jnp.broadcast_to(jnp.array([0, 0, 0, 0, 1, 1]), MASK.shape),
        turn_starts=jnp.broadcast_to(jnp.array([1, 3]), (4, 2)),
        turn_mask=jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),
        preferences=jnp.array([0.2, 0.9, 0.4, 0.5]),
        index=jnp.arange(4),
        weight=WEIGHT,
    )
    return agent, batch


@pytest.mark.parametrize(
    "make", [step_of_preference, step_of_nash, step_of_supervised, step_of_mtpo]
)
def test_padding_may_hold_anything(make):
    agent, batch = make(0)
    start, update = agent.init(jax.random.key(1)), jax.jit(agent.update)
    state, metrics = update(start, batch)
    assert np.isfinite(metrics["loss"])
    assert float(metrics["grad_norm"]) > 0
    for padding in (VOCAB, -100):
        found = update(start, make(padding)[1])
        jax.tree.map(np.testing.assert_array_equal, found, (state, metrics))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_nash_acts_on_a_batch_or_on_tokens_without_padding():
    agent, _ = step_of_nash(0)
    assert agent.act is not None
    state, prompts = agent.init(jax.random.key(1)), jnp.array([[1, 2], [3, 4]])
    found = agent.act(state, prompts, jax.random.key(2))
    batch = agents.PromptBatch(prompts, jnp.ones((2, 2)))
    jax.tree.map(np.testing.assert_array_equal, found, agent.act(state, batch, jax.random.key(2)))


def test_only_what_follows_the_last_counted_token_is_cleared():
    ids = jnp.array([[5, 6, 3, 9], [5, 6, 3, 9], [5, 6, 3, 9]])
    mask = jnp.array([[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    cleared = [[5, 6, 0, 0], [5, 6, 3, 9], [0, 0, 0, 0]]
    np.testing.assert_array_equal(without_padding(ids, mask), cleared)
    cleared[1] = [0, 0, 0, 0]
    weight = jnp.array([0.5, 0.0, 1.0])
    np.testing.assert_array_equal(without_padding(ids, mask, weight), cleared)
