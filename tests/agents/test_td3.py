"""TD3 on a problem with a solution in closed form, and step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import TransitionBatch, optimizers, td3

DECAY, PUSH, EFFORT, DISCOUNT = 0.9, 0.5, 0.5, 0.9
NOISE = 0.1


def actor(params, observations):
    """A linear policy of one state."""
    return params["gain"] * observations


def critic(params, observations, actions):
    """Two quadratic critics of one state and action."""
    square = (observations**2, observations * actions, actions**2, jnp.ones_like(actions))
    return jnp.concatenate(square, axis=-1) @ params["weights"]


def fresh(key):
    return td3.Networks({"gain": jnp.zeros(())}, {"weights": jax.random.normal(key, (4, 2))})


def make(optimizer=None, **options):
    arguments = {
        "init_params": fresh,
        "discount": DISCOUNT,
        "target_decay": 0.9,
        "smoothing_noise": NOISE,
        "smoothing_clip": 0.5,
        **options,
    }
    return td3.make(actor, critic, optimizer or optax.sgd(0.1), **arguments)


def make_batch(size=8, seed=0):
    """s' = .9 s + .5 a, r = -s^2 - .5 a^2."""
    state, action = np.random.default_rng(seed).uniform(-1, 1, (2, size, 1))
    return TransitionBatch(
        observations=jnp.asarray(state, jnp.float32),
        actions=jnp.asarray(action, jnp.float32),
        next_observations=jnp.asarray(DECAY * state + PUSH * action, jnp.float32),
        rewards=jnp.asarray(-(state**2 + EFFORT * action**2)[:, 0], jnp.float32),
        weight=jnp.ones(size),
    )


def same(found, expected, tolerance=1e-6):
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=1e-6)
    jax.tree.map(close, found, expected)


def test_the_linear_quadratic_optimum_is_learnt():
    # V(s) = -p s^2 - c with a = -k s: p = 1 + e k^2 + g p (d - b k)^2, k = g p d b / (e + g p b^2).
    p, k = 1.0, 0.0
    for _ in range(500):
        k = DISCOUNT * p * DECAY * PUSH / (EFFORT + DISCOUNT * p * PUSH**2)
        p = 1 + EFFORT * k**2 + DISCOUNT * p * (DECAY - PUSH * k) ** 2
    bend = EFFORT + DISCOUNT * p * PUSH**2
    # Smoothing moves no optimum of a parabola; it costs bend * variance in every step to come.
    constant = -DISCOUNT / (1 - DISCOUNT) * bend * NOISE**2
    square, cross = -1 - DISCOUNT * p * DECAY**2, -2 * DISCOUNT * p * DECAY * PUSH
    steps = 4000
    agent = make(
        optax.adam(optax.cosine_decay_schedule(0.05, steps)),
        actor_optimizer=optax.adam(optax.cosine_decay_schedule(0.02, steps // 2)),
    )
    batch = make_batch(512)

    @jax.jit
    def train(state):
        def step(number, state):
            return agent.update(state, batch, jax.random.fold_in(jax.random.key(1), number))[0]

        return jax.lax.fori_loop(0, steps, step, state)

    state = train(agent.init(jax.random.key(0)))
    np.testing.assert_allclose(state.actor_params["gain"], -k, rtol=2e-3)
    np.testing.assert_allclose(state.target_actor_params["gain"], -k, rtol=2e-3)
    weights = np.asarray(state.critic_params["weights"])
    for head in (0, 1):
        np.testing.assert_allclose(weights[:3, head], [square, cross, -bend], rtol=3e-3)
        np.testing.assert_allclose(weights[3, head], constant, rtol=0.1)
    # And what the agent says of states it acts in.
    assert agent.act is not None
    action = agent.act(state, jnp.asarray([[0.5]]), jax.random.key(0))
    np.testing.assert_allclose(action, [[-k / 2]], rtol=2e-3)
    value = td3.action_values(state, jnp.asarray([[0.5]]), action, critic=critic)
    np.testing.assert_allclose(value, [-p / 4 + constant], rtol=1e-2)


def test_one_step_by_hand():
    # One row without noise: s = 1, a = .5, s' = 2, r = 1; target policy a' = .25 s' = .5.
    agent = make(optax.sgd(0.1), smoothing_noise=0.0, policy_delay=1, target_decay=0.25)
    weights = jnp.asarray([[1.0, 2.0], [0.0, 1.0], [0.0, 0.0], [0.0, -1.0]])
    params = td3.Networks({"gain": jnp.asarray(0.5)}, {"weights": weights})
    target = td3.Networks({"gain": jnp.asarray(0.25)}, {"weights": weights})
    state = agent.init(jax.random.key(0), params=params, reference_params=target)
    one = jnp.ones((1, 1))
    batch = TransitionBatch(one, one / 2, 2 * one, rewards=jnp.ones(1))
    state, metrics = jax.jit(agent.update)(state, batch, jax.random.key(0))
    # Target values 4 and 8 + 1 - 1 = 8, so y = 1 + .9 * 4 = 4.6; values 1 and 2 + .5 - 1 = 1.5.
    np.testing.assert_allclose(metrics["loss"], 3.6**2 + 3.1**2, rtol=1e-5)
    np.testing.assert_allclose(metrics["q/mean"], 1.0)
    # Each critic moves by .2 * error * features (1, .5, .25, 1).
    features = np.array([1, 0.5, 0.25, 1])
    moved = weights + 0.2 * features[:, None] * np.array([3.6, 3.1])
    np.testing.assert_allclose(state.critic_params["weights"], moved, rtol=1e-5)
    # The policy ascends the first critic, after its step: dQ/da = w1 s + 2 w2 a.
    slope = float(moved[1, 0] + 2 * moved[2, 0] * 0.5)
    np.testing.assert_allclose(state.actor_params["gain"], 0.5 + 0.1 * slope, rtol=1e-5)
    value = moved[:, 0] @ features
    np.testing.assert_allclose(metrics["policy/loss"], -value, rtol=1e-5)
    expected = 0.75 * (0.5 + 0.1 * slope) + 0.25 * 0.25
    np.testing.assert_allclose(state.target_actor_params["gain"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        state.target_critic_params["weights"], 0.75 * moved + 0.25 * weights, rtol=1e-5
    )


def test_the_policy_waits_for_its_turn():
    agent = make(policy_delay=3)
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    for number in range(1, 7):
        before = state
        state, metrics = update(state, make_batch(), jax.random.key(number))
        moved = float(jnp.abs(state.actor_params["gain"] - before.actor_params["gain"]))
        targets = [(s.target_actor_params, s.target_critic_params) for s in (state, before)]
        if number % 3:
            assert moved == 0.0
            jax.tree.map(np.testing.assert_array_equal, *targets)
        else:
            assert moved > 0.0
            assert float(jnp.abs(targets[0][1]["weights"] - targets[1][1]["weights"]).max()) > 0
        # The critics never wait, and the policy's loss is there in every step.
        assert (
            float(jnp.abs(state.critic_params["weights"] - before.critic_params["weights"]).max())
            > 0
        )
        batch = make_batch()
        own = critic(
            state.critic_params, batch.observations, actor(before.actor_params, batch.observations)
        )
        np.testing.assert_allclose(metrics["policy/loss"], -own[:, 0].mean(), rtol=1e-5)
    assert int(state.step) == 6


def test_an_end_takes_the_rest_of_the_return_away_and_a_missing_one_is_none():
    agent = make(smoothing_noise=0.0, policy_delay=1)
    batch, state = make_batch(), agent.init(jax.random.key(0))
    ended = jnp.asarray([1, 0, 1, 0, 0, 0, 1, 1], bool)
    update = jax.jit(agent.update)
    found = update(state, batch._replace(terminated=ended), jax.random.key(0))
    # At a discount of 0 the next state is not read.
    blind = jax.jit(make(smoothing_noise=0.0, policy_delay=1, discount=0.0).update)
    no_one = update(state, batch._replace(terminated=jnp.ones(8, bool)), jax.random.key(0))
    same(no_one, blind(state, batch, jax.random.key(0)))
    none = update(state, batch._replace(terminated=None), jax.random.key(0))
    same(none, update(state, batch._replace(terminated=jnp.zeros(8, bool)), jax.random.key(0)))
    assert float(found[1]["loss"]) != pytest.approx(float(none[1]["loss"]), rel=1e-3)


def test_rows_of_weight_0_change_nothing_and_the_others_count_by_theirs():
    agent = make(smoothing_noise=0.0, policy_delay=1)
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    batch = make_batch()._replace(weight=jnp.asarray([1, 2, 1, 0.5, 1, 1, 0, 0], jnp.float32))
    spoilt = batch._replace(
        **{
            name: getattr(batch, name).at[6:].set(jnp.nan)
            for name in ("observations", "actions", "next_observations", "rewards")
        }
    )
    expected = update(state, batch, jax.random.key(0))
    found = update(state, spoilt, jax.random.key(0))
    same(found, expected)
    assert all(np.isfinite(value) for value in found[1].values())
    order = jnp.asarray([0, 1, 1, 2, 3, 3, 4, 5])
    repeated = jax.tree.map(lambda leaf: leaf[order], batch)
    repeated = repeated._replace(weight=jnp.asarray([1, 1, 1, 1, 0.25, 0.25, 1, 1], jnp.float32))
    same(update(state, repeated, jax.random.key(0)), expected, tolerance=1e-5)


def test_no_counted_row_leaves_the_networks_as_they_are():
    agent = make(policy_delay=1)
    state = agent.init(jax.random.key(0))
    found, metrics = jax.jit(agent.update)(
        state, make_batch()._replace(weight=jnp.zeros(8)), jax.random.key(0)
    )
    same((found.actor_params, found.critic_params), (state.actor_params, state.critic_params))
    assert float(metrics["loss"]) == 0.0


def test_smoothing_noise_belongs_to_the_row():
    agent = make(policy_delay=1, smoothing_noise=0.5)
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    state = state._replace(target_actor_params={"gain": jnp.asarray(0.1)})
    batch = make_batch()._replace(index=jnp.arange(8) + 100)
    key = jax.random.key(3)
    expected = update(state, batch, key)
    order = jnp.asarray([3, 1, 0, 2, 7, 6, 5, 4])
    same(update(state, jax.tree.map(lambda leaf: leaf[order], batch), key), expected, 1e-5)
    # Another key and other rows have other noise.
    for other in (
        update(state, batch, jax.random.key(4)),
        update(state, batch._replace(index=jnp.arange(8)), key),
    ):
        assert abs(float(other[1]["loss"] - expected[1]["loss"])) > 1e-4
    # Without numbers, rows have their places.
    same(
        update(state, batch._replace(index=None), key),
        update(state, batch._replace(index=jnp.arange(8)), key),
    )


def test_states_hold_every_buffer_once_so_that_updates_may_take_them():
    agent = make()
    given = fresh(jax.random.key(1))
    update = jax.jit(agent.update, donate_argnums=0)
    states = (
        agent.init(jax.random.key(0), params=given),
        agent.init(jax.random.key(0), params=given, reference_params=given),
        jax.jit(agent.init)(jax.random.key(0)),
    )
    for state in states:
        same(state.target_actor_params, state.actor_params)
        same(state.target_critic_params, state.critic_params)
        for number in range(2):
            state, metrics = update(state, make_batch(), jax.random.key(number))
            assert np.isfinite(metrics["loss"])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def test_steps_that_are_not_finite_are_counted_for_both_networks():
    agent = make(optimizers.skip_nonfinite(optax.sgd(0.1)), policy_delay=1)
    state = agent.init(jax.random.key(0))
    batch = make_batch()
    bad = batch._replace(observations=batch.observations.at[0].set(jnp.inf))
    found, metrics = jax.jit(agent.update)(state, bad, jax.random.key(0))
    assert float(metrics["updates/skipped"]) == 2.0
    same(found.critic_params, state.critic_params)


def test_a_batch_without_rewards_is_refused():
    agent = make()
    with pytest.raises(ValueError, match="batch must hold rewards"):
        agent.update(
            agent.init(jax.random.key(0)), make_batch()._replace(rewards=None), jax.random.key(0)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
        ({"target_decay": -0.1}, r"target_decay must be in \[0, 1\], got -0.1"),
        ({"policy_delay": 0}, "policy_delay must be at least 1, got 0"),
        ({"smoothing_noise": -1.0}, "smoothing_noise must be at least 0, got -1.0"),
        ({"smoothing_clip": float("nan")}, "smoothing_clip must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
