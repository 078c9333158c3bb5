"""A step of multi-turn preference optimisation for device_layouts.py.

The rows carry unequal weights and unequal numbers of turns, and one device sees no counted row at
all, so that a mean of means, of losses or of advantages, would fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax.agents import conversations, mtpo, optimizers
from bellmax.agents.language import LanguageModel

VOCAB, SIZE, TURNS = 5, 16, 2
# A bigram policy with one-hot hidden states.
MODEL = LanguageModel(
    apply=lambda params, tokens: params["logits"][tokens],
    hidden_states=lambda params, tokens: jax.nn.one_hot(tokens, VOCAB),
    unembedding=lambda params: params["logits"],
)


def make_agent(axis_name, accumulate_steps=1):
    return mtpo.make(
        MODEL,
        optax.chain(optax.clip_by_global_norm(0.1), optimizers.adan(0.1)),
        init_params=lambda key: {"logits": jax.random.normal(key, (VOCAB, VOCAB))},
        alpha=0.1,
        normalise_advantages=True,
        legal_tokens=[True, True, True, False, False],
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (SIZE, 7))
    turn_mask = np.stack([np.ones(SIZE), rng.integers(0, 2, SIZE)], axis=1)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:6] = 0
    turns = np.broadcast_to([0, 0, 0, 0, 1, 1, 0], tokens.shape)
    mask = (
        np.broadcast_to([0, 1, 1, 0, 1, 1, 0], tokens.shape)
        * turn_mask[np.arange(SIZE)[:, None], turns]
    )
    rows = (
        tokens,
        mask.astype(np.float32),
        turns,
        np.broadcast_to([0, 3], (SIZE, TURNS)),
        turn_mask.astype(np.float32),
        rng.uniform(size=SIZE).astype(np.float32),
        np.arange(SIZE),
        weight,
    )
    return conversations.ConversationBatch(*map(jnp.asarray, rows))


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    start = one.init(jax.random.key(0), reference_params={"logits": jnp.zeros((VOCAB, VOCAB))})
    return one.update, spread.update, start, make_batch(), 2e-5
