"""Padding ids that are no tokens, such as -100 or the vocabulary's size, change no agent's step.

The network is a transformer: a lookup outside its embedding is NaN, and attention would spread it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents, losses
from bellmax.agents import conversations, duels, mtpo, nash, networks, preference, supervised
from bellmax.agents.language import LanguageModel, without_padding

VOCAB, LENGTH = 7, 6
CONFIG = networks.TransformerConfig(VOCAB, 1, 2, 1, 4, 8, 12)
MODEL = LanguageModel(
    functools.partial(networks.apply, CONFIG),
    functools.partial(networks.hidden_states, CONFIG),
    functools.partial(networks.unembedding, CONFIG),
)
PARAMS = networks.init(CONFIG, jax.random.key(0))
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
    updated = []
    for padding in (0, VOCAB, -100):
        agent, batch = make(padding)
        start = agent.init(jax.random.key(1))
        updated.append(agent.update(start, batch, jax.random.key(2)))
    state, metrics = updated[0]
    assert np.isfinite(metrics["loss"])
    assert float(metrics["grad_norm"]) > 0
    for other in updated[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, updated[0])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_only_what_follows_the_last_counted_token_is_cleared():
    ids = jnp.array([[5, 6, 3, 9], [5, 6, 3, 9], [5, 6, 3, 9]])
    mask = jnp.array([[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    cleared = [[5, 6, 0, 0], [5, 6, 3, 9], [0, 0, 0, 0]]
    np.testing.assert_array_equal(without_padding(ids, mask), cleared)
    cleared[1] = [0, 0, 0, 0]
    weight = jnp.array([0.5, 0.0, 1.0])
    np.testing.assert_array_equal(without_padding(ids, mask, weight), cleared)
