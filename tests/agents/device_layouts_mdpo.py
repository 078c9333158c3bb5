"""Iterations of on-policy MDPO for device_layouts.py, of several steps each, on PPO's rollouts."""

import functools
import pathlib
import runpy

import jax
import optax

from bellmax.agents import action_laws, mdpo
from bellmax.agents.networks import mlp

CASE = runpy.run_path(str(pathlib.Path(__file__).with_name("device_layouts_ppo.py")))


def make_agent(axis_name, accumulate_steps=1):
    return mdpo.make(
        CASE["apply"],
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
        law=action_laws.gaussian(CASE["ACTION"]),
        init_params=functools.partial(mlp.init, CASE["NETWORK"]),
        num_inner_steps=2,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), CASE["make_batch"](), 5e-6
