"""A step of supervised learning for device_layouts.py.

The loss is a mean over tokens: rows have masks of unequal lengths and unequal weights, and one
device sees no counted row at all, so that a mean of means would fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax.agents import SupervisedBatch, supervised
from bellmax.agents.language import LanguageModel

VOCAB, SIZE, LENGTH = 7, 32, 5
MODEL = LanguageModel(apply=lambda params, tokens: params["logits"][tokens])


def make_agent(axis_name, accumulate_steps=1):
    return supervised.make(
        MODEL,
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)),
        init_params=lambda key: {"logits": jax.random.normal(key, (VOCAB, VOCAB))},
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:8] = 0
    mask = np.arange(LENGTH) >= rng.integers(1, LENGTH, SIZE)[:, None]
    tokens = rng.integers(0, VOCAB, (SIZE, LENGTH))
    return SupervisedBatch(*map(jnp.asarray, (tokens, mask)), weight=jnp.asarray(weight))


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), make_batch(), 2e-6
