"""Off-policy MDPO: closed-form policies under fixed values, soft values, and what is frozen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import TransitionBatch, action_laws, mdpo_off_policy, td3
from bellmax.agents.action_laws import Gaussian

OLD, VALUES = np.array([0.5, 0.3, 0.2]), np.array([2.0, 1.0, 0.0])
DISCRETE = action_laws.categorical(3)


def actor(params, observations):
    return observations @ params


def critic(params, observations, features):
    """Two tables of values, read by one-hot states and actions."""
    return jnp.einsum("...s,...a,sae->...e", observations, features, params)


def make(law=DISCRETE, actor=actor, critic=critic, optimizer=None, **options):
    return mdpo_off_policy.make(
        actor, critic, optimizer or optax.sgd(0.0), law=law,
        init_params=options.pop("init_params", None) or fresh, **options,
    )  # fmt: skip


def fresh(key):
    del key
    table = jnp.stack([jnp.asarray(VALUES), jnp.asarray(VALUES) + 5], axis=-1)[None]
    return td3.Networks(jnp.log(jnp.asarray(OLD, jnp.float32))[None], table.astype(jnp.float32))


def one_state(size=3):
    ones = jnp.ones((size, 1))
    return TransitionBatch(ones, jnp.eye(3)[:size], ones, rewards=jnp.ones(size))


@functools.partial(jax.jit, static_argnums=(0, 3))
def train(agent_update, state, batch, count):
    def one(number, state):
        return agent_update(state, batch, jax.random.fold_in(jax.random.key(1), number))[0]

    return jax.lax.fori_loop(0, count, one, state)


@pytest.mark.parametrize(
    ("options", "logits"),
    [
        # t = .5 without entropy: pi_k exp(Q / 2).
        ({"inverse_step": 2.0, "entropy_weight": 0.0}, np.log(OLD) + VALUES / 2),
        # The code's 1 and .2: pi_k^.8 exp(Q).
        ({"inverse_step": 1.0, "entropy_weight": 0.2}, 0.8 * np.log(OLD) + VALUES),
        # Soft actor-critic: exp(Q / .2), whatever pi_k is.
        ({"inverse_step": 0.2, "entropy_weight": 0.2}, VALUES / 0.2),
    ],
)
def test_discrete_policies_reach_their_closed_form(options, logits):
    agent = make(num_inner_steps=10_000, actor_optimizer=optax.adam(0.02), **options)
    state = train(agent.update, agent.init(jax.random.key(0)), one_state(), 1000)
    expected = np.exp(logits - logits.max())
    found = jax.nn.softmax(state.actor_params[0])
    np.testing.assert_allclose(found, expected / expected.sum(), atol=2e-3)
    # The critics had a step size of 0, and pi_k waits.
    np.testing.assert_allclose(jax.nn.softmax(state.target_actor_params[0]), OLD, rtol=1e-6)


def test_a_gaussian_policy_reaches_its_closed_form():
    """pi_k = N(.1, .2^2) and Q = -25 (a - .3)^2 at t = .5: precisions add up, 25 + .5 * 50."""
    law = action_laws.gaussian(1)

    def outputs(params, observations):
        zero = 0 * observations
        return Gaussian(params["mean"] + zero, params["log_std"] + zero)

    def values(params, observations, features):
        del observations
        return (params - 25 * jnp.square(features - 0.3)) * jnp.ones(2)

    start = td3.Networks(
        {"mean": jnp.asarray(0.1), "log_std": jnp.log(jnp.asarray(0.2))}, jnp.zeros(())
    )
    agent = make(
        law, outputs, values, init_params=lambda key: start, inverse_step=2.0, entropy_weight=0.0,
        num_inner_steps=10_000, actor_optimizer=optax.adam(optax.cosine_decay_schedule(0.02, 500)),
    )  # fmt: skip
    ones = jnp.ones((256, 1))
    batch = TransitionBatch(ones, 0 * ones, ones, rewards=jnp.ones(256))
    state = train(agent.update, agent.init(jax.random.key(0)), batch, 500)
    np.testing.assert_allclose(state.actor_params["mean"], 0.2, atol=5e-3)
    np.testing.assert_allclose(jnp.exp(state.actor_params["log_std"]), 50**-0.5, rtol=0.03)


def test_one_step_by_hand():
    agent = make(
        optimizer=optax.sgd(0.1), actor_optimizer=optax.sgd(1.0), discount=0.9, entropy_weight=0.2,
        inverse_step=1.0, target_decay=0.25, num_inner_steps=2, output_penalty=0.5,
    )  # fmt: skip
    state = agent.init(jax.random.key(0))
    batch = one_state(2)._replace(terminated=jnp.asarray([False, True]))
    new, metrics = jax.jit(agent.update)(state, batch, jax.random.key(0))
    # E [min Q - .2 log pi] over pi = OLD; the second row has ended.
    soft = OLD @ (VALUES - 0.2 * np.log(OLD))
    targets = 1 + np.array([0.9 * soft, 0.0])
    errors = np.stack([VALUES[:2], VALUES[:2] + 5], axis=-1) - targets[:, None]
    np.testing.assert_allclose(metrics["loss"], (errors**2).sum(1).mean() / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["q/mean"], 1.5, rtol=1e-6)
    table = np.asarray(state.critic_params[0])
    table = table - 0.1 * np.array([*errors / 2, [0, 0]])
    np.testing.assert_allclose(new.critic_params[0], table, rtol=1e-5)
    np.testing.assert_allclose(
        new.target_critic_params[0], 0.25 * np.asarray(state.critic_params[0]) + 0.75 * table,
        rtol=1e-5,
    )  # fmt: skip
    # At pi = pi_k: d/d logits of E [.2 log pi - Q_1] + .5 mean logits^2, after the critics' step.
    cost = 0.2 * np.log(OLD) - table[:, 0]
    slope = OLD * (cost - OLD @ cost) + np.log(OLD) / 3
    np.testing.assert_allclose(new.actor_params[0], np.log(OLD) - slope, rtol=1e-4)
    penalty = 0.5 * np.mean(np.log(OLD) ** 2)
    np.testing.assert_allclose(metrics["policy/loss"], OLD @ cost + penalty, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/log_prob"], OLD @ np.log(OLD), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl/old"], 0, atol=1e-6)
    # pi_k is renewed at every second step.
    np.testing.assert_array_equal(new.target_actor_params, state.target_actor_params)
    later, metrics = jax.jit(agent.update)(new, batch, jax.random.key(1))
    assert float(metrics["kl/old"]) > 1e-4
    np.testing.assert_array_equal(later.target_actor_params, later.actor_params)


def test_soft_values_of_a_small_problem_are_learnt():
    """With lambda = 1 / t it is soft actor-critic, whose fixed point soft value iteration finds."""
    rng = np.random.default_rng(0)
    rewards, following, weight = rng.normal(size=(2, 3)), rng.integers(0, 2, (2, 3)), 0.5
    values = np.zeros((2, 3))
    for _ in range(200):
        soft = weight * np.log(np.exp(values / weight).sum(axis=1))
        values = rewards + 0.8 * soft[following]
    states, actions = np.repeat([0, 1], 3), np.tile([0, 1, 2], 2)
    batch = TransitionBatch(
        jnp.eye(2)[states],
        jnp.eye(3)[actions],
        jnp.eye(2)[following.reshape(-1)],
        rewards=jnp.asarray(rewards.reshape(-1), jnp.float32),
    )
    agent = make(
        optimizer=optax.sgd(1.0), actor_optimizer=optax.adam(0.05), discount=0.8,
        inverse_step=weight, entropy_weight=weight, target_decay=0.5,
        init_params=lambda key: td3.Networks(jnp.zeros((2, 3)), jnp.zeros((2, 3, 2))),
    )  # fmt: skip
    state = train(agent.update, agent.init(jax.random.key(0)), batch, 600)
    for head in (0, 1):
        np.testing.assert_allclose(state.critic_params[..., head], values, rtol=5e-3, atol=5e-3)
    expected = np.exp(values / weight)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(state.actor_params), expected, atol=5e-3)
    assert agent.act is not None
    played = agent.act(state, jnp.eye(2)[jnp.zeros(4000, int)], jax.random.key(0))
    np.testing.assert_allclose(np.bincount(played) / 4000, expected[0], atol=0.04)


def test_samples_belong_to_the_row_and_padding_changes_nothing():
    law = action_laws.gaussian(2, squash=True)

    def outputs(params, observations):
        return Gaussian(params + 0 * observations, 0 * observations)

    def values(params, observations, features):
        return jnp.sum(params * features * (1 + observations), axis=-1, keepdims=True) * jnp.ones(2)

    start = td3.Networks(jnp.asarray([0.1, -0.3]), jnp.asarray([1.0, 2.0]))
    agent = make(
        law, outputs, values, optax.sgd(0.1), init_params=lambda key: start, num_inner_steps=3
    )
    numbers = np.random.default_rng(0).normal(size=(3, 6, 2))
    batch = TransitionBatch(
        *(jnp.asarray(leaf, jnp.float32) for leaf in numbers),
        rewards=jnp.arange(6.0), index=jnp.arange(6) + 20, weight=jnp.ones(6),
    )  # fmt: skip
    update = jax.jit(agent.update, donate_argnums=0)
    key = jax.random.key(3)

    def after(batch, key=key):
        new, metrics = update(agent.init(jax.random.key(0)), batch, key)
        return new.actor_params, new.critic_params, metrics

    def same(found, expected):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, found, expected)

    expected = after(batch)
    order = jnp.asarray([3, 1, 0, 5, 4, 2])
    same(after(jax.tree.map(lambda leaf: leaf[order], batch)), expected)
    assert not np.allclose(after(batch, jax.random.key(4))[0], expected[0], rtol=1e-4)
    there = jnp.arange(6) < 4
    padded = batch._replace(weight=1.0 * there)
    spoilt = padded._replace(
        observations=jnp.where(there[:, None], batch.observations, jnp.nan),
        rewards=jnp.where(there, jnp.arange(6.0), jnp.inf),
    )
    same(after(spoilt), after(padded))


def test_a_batch_without_rewards_is_refused():
    agent = make()
    with pytest.raises(ValueError, match="batch must hold rewards"):
        agent.update(
            agent.init(jax.random.key(0)), one_state()._replace(rewards=None), jax.random.key(0)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
        ({"target_decay": -0.1}, r"target_decay must be in \[0, 1\], got -0.1"),
        ({"inverse_step": -1.0}, "inverse_step must be at least 0, got -1.0"),
        ({"entropy_weight": -0.1}, "entropy_weight must be at least 0, got -0.1"),
        ({"output_penalty": float("nan")}, "output_penalty must be at least 0"),
        ({"num_inner_steps": 0}, "num_inner_steps must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
