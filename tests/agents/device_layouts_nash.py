"""A whole step of Nash learning for device_layouts.py: it samples, judges and updates.

Rows sample by their index, so that every layout draws the same tokens; weights are unequal and one
device sees no counted row at all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax import agents
from bellmax.agents import duels, language, nash, networks, opponents, optimizers, sampling

CONFIG = networks.TransformerConfig(5, 1, 2, 1, 4, 8, 12)
MODEL = language.LanguageModel(apply=functools.partial(networks.apply, CONFIG))
SIZE, PROMPT = 32, 3
LAWS = opponents.policy(MODEL), opponents.mixture(MODEL, 0.3)


def make_step(axis_name, accumulate_steps=1):
    agent = nash.make(
        MODEL,
        optax.chain(optax.clip_by_global_norm(0.1), optimizers.adan(0.05)),
        loss_fn=duels.nash_md_pg(tau=0.1),
        init_params=functools.partial(networks.init, CONFIG),
        max_new_tokens=3,
        stop_tokens=(4,),
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )

    def step(state, prompts, key):
        sides = []
        for law, part in zip(LAWS, jax.random.split(key), strict=True):
            completion = opponents.sample(
                law, state, prompts, part, max_new_tokens=3, stop_tokens=(4,)
            )
            sides.append(
                (*sampling.join(prompts.tokens, completion, prompt_mask=prompts.mask), completion)
            )
        first, second = sides
        judged = jax.nn.sigmoid(
            (first[2].tokens.sum(-1) - second[2].tokens.sum(-1)).astype(jnp.float32)
        )
        batch = agents.DuelBatch(
            first[0], second[0], first[1], second[1], judged, weight=prompts.weight
        )
        return agent.update(state, batch)

    return agent, step


def make_prompts():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:8] = 0
    mask = np.arange(PROMPT) < rng.integers(1, PROMPT + 1, SIZE)[:, None]
    return agents.PromptBatch(
        jnp.asarray(rng.integers(0, 4, (SIZE, PROMPT)), jnp.int32),
        jnp.asarray(mask),
        index=jnp.arange(SIZE),
        weight=jnp.asarray(weight),
    )


def make_case(axis_name, accumulate_steps=2):
    (agent, one), (_, spread) = make_step(None), make_step(axis_name, accumulate_steps)
    return one, spread, agent.init(jax.random.key(0)), make_prompts(), 2e-6
