"""A step of preference learning for device_layouts.py.

The rows carry unequal weights, and one device sees no counted row at all, so that a mean of means
would fail.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax import agents, losses
from bellmax.agents import optimizers, preference
from bellmax.agents.language import LanguageModel

VOCAB, SIZE, LENGTH = 7, 32, 5
MODEL = LanguageModel(apply=lambda params, tokens: params["logits"][tokens])


def make_agent(axis_name, accumulate_steps=1):
    return preference.make(
        MODEL,
        optax.chain(optax.clip_by_global_norm(0.01), optimizers.adan(0.1, weight_decay=0.1)),
        loss_fn=preference.on_log_ratios(
            functools.partial(losses.gpo_loss, convex_fn=losses.exponential, beta=0.5)
        ),
        init_params=lambda key: {"logits": jax.random.normal(key, (VOCAB, VOCAB))},
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (2, SIZE, LENGTH))
    mask = np.broadcast_to(np.arange(LENGTH) >= 2, (SIZE, LENGTH)).astype(np.float32)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:8] = 0
    return agents.PreferenceBatch(
        *map(jnp.asarray, (tokens[0], tokens[1], mask, mask)),
        index=jnp.arange(SIZE),
        weight=jnp.asarray(weight),
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    start = one.init(jax.random.key(0), reference_params={"logits": jnp.zeros((VOCAB, VOCAB))})
    return one.update, spread.update, start, make_batch(), 2e-6
