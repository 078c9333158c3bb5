"""Run by test_device_layouts.py with 8 forced host devices: a whole step equals one device's.

The step samples, judges and updates. Rows sample by their index, so that every layout draws the
same tokens; weights are unequal and one device sees no counted row at all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bellmax import agents
from bellmax.agents import duels, language, nash, networks, opponents, optimizers, sampling

CONFIG = networks.TransformerConfig(5, 1, 2, 1, 4, 8, 12)
MODEL = language.LanguageModel(apply=functools.partial(networks.apply, CONFIG))
SIZE, PROMPT = 16, 3
LAWS = opponents.policy(MODEL), opponents.mixture(MODEL, 0.3)


def make_step(axis_name):
    agent = nash.make(
        MODEL,
        optax.chain(optax.clip_by_global_norm(0.1), optimizers.adan(0.05)),
        loss_fn=duels.nash_md_pg(tau=0.1),
        init_params=functools.partial(networks.init, CONFIG),
        max_new_tokens=3,
        stop_tokens=(4,),
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
    weight[4:6] = 0
    mask = np.arange(PROMPT) < rng.integers(1, PROMPT + 1, SIZE)[:, None]
    return agents.PromptBatch(
        jnp.asarray(rng.integers(0, 4, (SIZE, PROMPT)), jnp.int32),
        jnp.asarray(mask),
        index=jnp.arange(SIZE),
        weight=jnp.asarray(weight),
    )


def check(name, result, expected):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), result, expected
    )
    print(name)


def steps(step, state, prompts):
    metrics = {}
    for number in range(3):
        state, metrics = step(state, prompts, jax.random.key(number))
    return jax.block_until_ready((state, metrics))


def main():
    assert jax.device_count() == 8
    (agent, one), (_, spread) = make_step(None), make_step("devices")
    prompts = make_prompts()
    start = agent.init(jax.random.key(0))
    expected = jax.device_get(steps(jax.jit(one), start, prompts))

    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("devices"))
    state = jax.device_put(start, NamedSharding(mesh, PartitionSpec()))
    sharded = jax.device_put(prompts, rows)
    check("gspmd", jax.device_get(steps(jax.jit(one), state, sharded)), expected)

    split, same = PartitionSpec("devices"), PartitionSpec()
    mapped = jax.shard_map(spread, mesh=mesh, in_specs=(same, split, same), out_specs=same)
    check("shard_map", jax.device_get(steps(jax.jit(mapped), start, prompts)), expected)

    parts = jax.tree.map(lambda x: x.reshape(8, SIZE // 8, *x.shape[1:]), prompts)
    copies = jax.tree.map(lambda x: jnp.stack([x] * 8), start)
    pmapped = jax.pmap(spread, axis_name="devices", in_axes=(0, 0, None))
    every = jax.device_get(steps(pmapped, copies, parts))
    check("pmap", jax.tree.map(lambda x: x[3], every), expected)


if __name__ == "__main__":
    main()
