"""A batch that is learnt from in parts, one after another, is one batch, in less memory."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents
from bellmax.agents import (
    completion_losses,
    duels,
    language,
    nash,
    optimizers,
    policy_gradient,
    updates,
)

# One small case of every agent; rows carry unequal weights, and those that do not count hold NaN.
SCRIPTS = pathlib.Path(__file__).parent.glob("device_layouts_*.py")
AGENTS = {path.stem[15:]: path for path in sorted(SCRIPTS)}
# Seconds to compile. Nash and policy gradients have smaller cases below, preferences and flows
# several devices; the others resemble TD3, PPO and flows.
LONG = {
    "horizon_gan",
    "horizon_vae",
    "mdpo",
    "mdpo_off_policy",
    "nash",
    "policy_gradient",
    "preference",
    "td_flow",
}
every_agent = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in AGENTS],
)
VOCAB, SIZE, LENGTH, GROUP = 7, 12, 6, 3
MODEL = language.LanguageModel(
    apply=lambda params, tokens: jnp.tanh(params["in"][tokens]) @ params["out"]
)
# Parts whose counted rows and tokens differ: a mean of means would not do. The first of four parts
# has no counted row at all.
WEIGHT = jnp.array([0.0, 1, 2, 1, 0, 1, 0, 3, 0, 0, 1, 1])


def init_params(key):
    keys = jax.random.split(key)
    return {"in": jax.random.normal(keys[0], (VOCAB, 5)), "out": jax.random.normal(keys[1], (5, 7))}


def numbers(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def tokens(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (*shape, LENGTH)), jnp.int32)


def mask(seed, *shape):
    ends = np.random.default_rng(seed).integers(3, LENGTH + 1, (*shape, 1))
    places = np.arange(LENGTH)
    return jnp.asarray((places >= 2) & (places < ends))


def case_of_nash(optimizer, **kwargs):
    agent = nash.make(
        MODEL,
        optimizer,
        loss_fn=duels.nash_md_pg(tau=0.1),
        init_params=init_params,
        max_new_tokens=1,
        **kwargs,
    )
    sides = tokens(0, SIZE), tokens(1, SIZE), mask(2, SIZE), mask(3, SIZE)
    return agent, agents.DuelBatch(*sides, jnp.asarray(numbers(4, SIZE)), weight=WEIGHT)


def case_of_policy_gradient(optimizer, **kwargs):
    agent = policy_gradient.make(
        MODEL,
        optimizer,
        loss_fn=completion_losses.clipped(
            completion_losses.leave_one_out(), tokens="sum", beta=0.1
        ),
        init_params=init_params,
        average="tokens",
        **kwargs,
    )
    batch = agents.CompletionBatch(
        tokens(0, SIZE, GROUP),
        mask(1, SIZE, GROUP),
        jnp.asarray(-1 - numbers(2, SIZE, GROUP, LENGTH)),
        rewards=jnp.asarray(numbers(3, SIZE, GROUP)),
        weight=WEIGHT,
    )
    return agent, batch


def make_case(name, count):
    return runpy.run_path(str(AGENTS[name]))["make_case"](None, accumulate_steps=count)


def assert_same_steps(whole, parts, start, batch, *, rtol, atol):
    both = jax.jit(lambda one, other, key: (whole(one, batch, key), parts(other, batch, key)))
    expected = found = (start, {})
    for number in range(3):
        expected, found = both(expected[0], found[0], jax.random.key(number))
    assert np.isfinite(expected[1]["loss"])
    assert float(expected[1]["grad_norm"]) > 0
    equal = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(equal, found, expected)


@every_agent
def test_parts_take_the_step_of_the_whole(name):
    whole, parts, start, batch, atol = make_case(name, 8)
    # The first of the eight parts has no counted row at all: a mean of means would not do.
    batch = batch._replace(weight=batch.weight.at[::8].set(0))
    assert_same_steps(whole, parts, start, batch, rtol=2e-5, atol=atol)


@every_agent
def test_rows_must_fall_into_parts(name):
    _, parts, start, batch, _ = make_case(name, 3)
    with pytest.raises(ValueError, match=r"accumulate_steps must divide the \d+ rows"):
        jax.eval_shape(parts, start, batch, jax.random.key(0))


@pytest.mark.parametrize("case", [case_of_nash, case_of_policy_gradient])
def test_parts_of_several_rows_take_the_step_of_the_whole(case):
    # Not linear in the gradient, so that an error of its size would show.
    optimizer = optax.chain(optax.clip_by_global_norm(0.05), optimizers.adan(0.05))
    (agent, batch), (parts, _) = (case(optimizer, accumulate_steps=count) for count in (1, 4))
    start = agent.init(jax.random.key(0))
    assert_same_steps(agent.update, parts.update, start, batch, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("coupled", [False, True])
def test_activations_are_those_of_a_part(coupled):
    held = {}
    batch = {"x": jnp.ones((64, 256)), "y": jnp.ones(64)}

    def network(params, hidden):
        for kernel in params:
            hidden = jnp.tanh(hidden @ kernel)
        return hidden[:, 0]

    def step(params, opt_state, batch, count):
        def objective(params, rows):
            found = updates.map_parts(
                functools.partial(network, params), rows["x"], count if coupled else 1
            )
            return updates.weighted_sums(jnp.square(found - rows["y"]), jnp.ones_like(found))

        return updates.gradient_step(
            objective,
            params,
            opt_state,
            batch=batch,
            optimizer=optax.sgd(0.1),
            accumulate_steps=1 if coupled else count,
        )

    params = [jnp.eye(256)[:, :8], *[jnp.ones((8, 8))] * 2, jnp.ones((8, 4096))]
    for count in (1, 16):
        lowered = jax.jit(step, static_argnums=3).lower(
            params, (optax.EmptyState(),) * 2, batch, count
        )
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        held[count] = memory.temp_size_in_bytes
    # The last layer's 64 rows of 4,096 activations, against 4 rows of them and its gradient twice.
    assert held[16] < held[1] / 2


def test_gradients_are_added_in_float32():
    params = {"w": jnp.zeros((), jnp.bfloat16)}
    # Parts of 1 and of many much smaller ones: bfloat16 would round all of those away.
    slopes = jnp.array([1.0] + [2.0**-9] * 255)

    def objective(params, rows):
        return updates.weighted_sums(params["w"].astype(jnp.float32) * rows, jnp.ones_like(rows))

    _, _, metrics = updates.gradient_step(
        objective,
        params,
        optax.sgd(1.0).init(params),
        optimizer=optax.sgd(1.0),
        batch=slopes,
        accumulate_steps=256,
    )
    np.testing.assert_allclose(metrics["grad_norm"], (1 + 255 / 512) / 256, rtol=4e-3)
