"""Steps of the variational horizon model for device_layouts.py, on the flow's transitions."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import optax

from bellmax.agents import followers, horizon_vae
from bellmax.agents.networks import mlp

CASE = runpy.run_path(str(pathlib.Path(__file__).with_name("device_layouts_td_flow.py")))
# States of 2 numbers, as many latents, and a condition of state and action.
ENCODER, DECODER = (mlp.MLPConfig(5, 4, (5,)) for _ in range(2))


def moments(config, name, params, values, condition):
    """Mean and log-variance of a network's law. [..., 2] each."""
    outputs = mlp.apply(config, params[name], jnp.concatenate([values, condition], axis=-1))
    return outputs[..., :2], 0.3 * outputs[..., 2:]


def make_agent(axis_name, accumulate_steps=1):
    return horizon_vae.make(
        functools.partial(moments, ENCODER, "encoder"),
        functools.partial(moments, DECODER, "decoder"),
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
        latent_size=2,
        discount=0.9,
        init_params=lambda key: {
            "encoder": mlp.init(ENCODER, key),
            "decoder": mlp.init(DECODER, jax.random.fold_in(key, 1)),
        },
        target_rule=followers.average(0.5),
        policy_fn=lambda observations, tasks: observations[:, :1],
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), CASE["make_batch"](), 5e-6
