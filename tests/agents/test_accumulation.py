"""A batch that is learnt from in parts, one after another, is one batch, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents, losses
from bellmax.agents import (
    completion_losses,
    duels,
    language,
    nash,
    optimizers,
    policy_gradient,
    preference,
    supervised,
    updates,
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


def case_of_preference(optimizer, **kwargs):
    agent = preference.make(
        MODEL,
        optimizer,
        loss_fn=preference.on_log_ratios(functools.partial(losses.dpo_loss, beta=0.5)),
        init_params=init_params,
        **kwargs,
    )
    sides = tokens(0, SIZE), tokens(1, SIZE), mask(2, SIZE), mask(3, SIZE)
    return agent, agents.PreferenceBatch(*sides, weight=WEIGHT)


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


def case_of_supervised(optimizer, **kwargs):
    agent = supervised.make(MODEL, optimizer, init_params=init_params, **kwargs)
    return agent, agents.SupervisedBatch(tokens(0, SIZE), mask(1, SIZE), weight=WEIGHT)


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


CASES = {
    "preference": case_of_preference,
    "nash": case_of_nash,
    "supervised": case_of_supervised,
    "policy_gradient": case_of_policy_gradient,
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_parts_take_the_step_of_the_whole(case):
    found = {}
    for count in (1, 2, 4):
        # Not linear in the gradient, so that an error of its size would show.
        optimizer = optax.chain(optax.clip_by_global_norm(0.05), optimizers.adan(0.05))
        agent, batch = case(optimizer, accumulate_steps=count)
        state = agent.init(jax.random.key(0))
        step, metrics = jax.jit(agent.update), {}
        for number in range(2):
            state, metrics = step(state, batch, jax.random.key(number))
        found[count] = state, metrics
    for count in (2, 4):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            found[count],
            found[1],
        )


@every_case
def test_rows_must_fall_into_parts(case):
    agent, batch = case(optax.sgd(0.1), accumulate_steps=5)
    with pytest.raises(ValueError, match="accumulate_steps must divide the 12 rows"):
        agent.update(agent.init(jax.random.key(0)), batch, jax.random.key(0))


def test_activations_are_those_of_a_part():
    held = {}
    batch = {"x": jnp.ones((64, 256)), "y": jnp.ones(64)}

    def objective(params, rows):
        hidden = rows["x"]
        for kernel in params:
            hidden = jnp.tanh(hidden @ kernel)
        return updates.weighted_sums(jnp.square(hidden[:, 0] - rows["y"]), jnp.ones_like(rows["y"]))

    def step(params, opt_state, batch, count):
        return updates.gradient_step(
            objective,
            params,
            opt_state,
            optimizer=optax.sgd(0.1),
            batch=batch,
            accumulate_steps=count,
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
