"""A step of PPO and token averages for device_layouts.py; one device sees no counted row at all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax import agents
from bellmax.agents import (
    completion_losses,
    critics,
    language,
    networks,
    optimizers,
    policy_gradient,
)

CONFIG = networks.TransformerConfig(5, 1, 2, 1, 4, 8, 12)
MODEL = language.LanguageModel(
    apply=functools.partial(networks.apply, CONFIG),
    hidden_states=functools.partial(networks.hidden_states, CONFIG),
    unembedding=functools.partial(networks.unembedding, CONFIG),
)
INIT = functools.partial(networks.init, CONFIG)
SIZE, GROUP, LENGTH = 16, 3, 6
CLIPPED = completion_losses.clipped(completion_losses.leave_one_out(), tokens="sum", beta=0.1)
PPO = completion_losses.ppo(beta=0.1)


def make_agent(axis_name, accumulate_steps=1):
    return policy_gradient.make(
        MODEL,
        optax.chain(optax.clip_by_global_norm(0.1), optimizers.adan(0.05)),
        loss_fn=lambda group: CLIPPED(group) + PPO(group),
        init_params=INIT,
        critic=critics.of_model(MODEL, INIT),
        average="tokens",
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    shape = (SIZE, GROUP, LENGTH)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:6] = 0
    ends = rng.integers(3, LENGTH + 1, (SIZE, GROUP, 1))
    places = np.arange(LENGTH)
    return agents.CompletionBatch(
        jnp.asarray(rng.integers(0, 5, shape), jnp.int32),
        jnp.asarray((places >= 2) & (places < ends)),
        jnp.asarray(-rng.uniform(1, 2, shape), jnp.float32),
        rewards=jnp.asarray(rng.uniform(size=shape[:2]), jnp.float32),
        index=jnp.arange(SIZE),
        weight=jnp.asarray(weight),
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), make_batch(), 3e-5
