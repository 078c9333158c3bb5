"""Steps of a fitted preference model for device_layouts.py, on the pairs of preference learning."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import optax

from bellmax.agents import judges

CASE = runpy.run_path(str(pathlib.Path(__file__).with_name("device_layouts_preference.py")))
WIDTH, RANK = 6, 2


def hidden_states(params, tokens, *, mask):
    """A running mean of embeddings: what comes before decides, too. [B, T, D]."""
    embedded = params["embedding"][tokens] * mask[..., None]
    return jnp.tanh(jnp.cumsum(embedded, axis=1) / (1 + jnp.cumsum(mask, axis=1)[..., None]))


def make_agent(axis_name, accumulate_steps=1):
    return judges.pairwise.make(
        hidden_states,
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.05)),
        init_network=lambda key: {"embedding": jax.random.normal(key, (CASE["VOCAB"], WIDTH))},
        embed_dim=WIDTH,
        rank=RANK,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), CASE["make_batch"](), 5e-6
