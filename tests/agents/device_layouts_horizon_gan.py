"""Steps of the adversarial horizon model for device_layouts.py, on the flow's transitions."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import optax

from bellmax.agents import followers, horizon_gan
from bellmax.agents.networks import mlp

CASE = runpy.run_path(str(pathlib.Path(__file__).with_name("device_layouts_td_flow.py")))
# States of 2 numbers, as many latents, and a condition of state and action.
GENERATOR, DISCRIMINATOR = mlp.MLPConfig(5, 2, (5,)), mlp.MLPConfig(5, 1, (5,))


def generator(params, latents, condition):
    return mlp.apply(GENERATOR, params, jnp.concatenate([latents, condition], axis=-1))


def discriminator(params, points, condition):
    inputs = jnp.concatenate([points, condition], axis=-1)
    return mlp.apply(DISCRIMINATOR, params, inputs)[..., 0]


def make_agent(axis_name, accumulate_steps=1):
    return horizon_gan.make(
        generator,
        discriminator,
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
        latent_size=2,
        discount=0.9,
        init_params=lambda key: (
            mlp.init(GENERATOR, key),
            mlp.init(DISCRIMINATOR, jax.random.fold_in(key, 1)),
        ),
        penalty_weight=optax.constant_schedule(0.05),
        target_rule=followers.average(0.5),
        policy_fn=lambda observations, tasks: observations[:, :1],
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), CASE["make_batch"](), 5e-6
