"""The loop of acting, storing and learning, with agents and environments that are seen through."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import Agent
from bellmax.envs import ArraySpec, DiscreteSpec, Environment, TimeStep
from bellmax.experiments import control_loop
from bellmax.experiments.control_replay import Options, Replay


class Place(NamedTuple):
    cell: jax.Array
    time: jax.Array


def line(length, limit):
    """Action 1 goes right and 0 stays; a step pays 1, the end terminates, the limit truncates."""

    def show(place, reward):
        seen = jnp.stack([place.cell, place.time]).astype(jnp.float32)
        terminated = place.cell == length
        return place, TimeStep(seen, reward, terminated, ~terminated & (place.time >= limit))

    def reset(key, params):
        del key, params
        return show(Place(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)), jnp.zeros(()))

    def step(key, place, action, params):
        del key, params
        return show(Place(place.cell + action, place.time + 1), jnp.ones(()))

    return Environment(reset, step, (), ArraySpec((2,)), DiscreteSpec(2))


def law_of(cells):
    """The further, the more to the right."""
    right = 0.3 + 0.1 * cells
    return jnp.stack([1 - right, right], axis=-1)


def counting_agent():
    """Its state counts updates; the loss of update n is n."""

    def update(state, batch, key):
        del batch, key
        metrics = {"loss": state + 1, "updates/skipped": 2 * (state + 1)}
        return state + 1, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}

    return Agent(init=lambda key: jnp.zeros((), jnp.int32), act=None, update=update)


def make(environment, *, learning_starts=1, size=200, steps_per_update=3, greedy=0, **options):
    return control_loop.Setup(
        environment=control_loop.prepare(environment),
        agent=counting_agent(),
        behaviour=lambda state, seen, key: law_of(seen[..., 0]),
        greedy=lambda state, seen: jnp.full(seen.shape[:-1], greedy),
        td_errors=lambda state, batch, key: jnp.ones(batch.rewards.shape[0]),
        replay=Replay(
            Options(
                num_environments=2,
                batch_size=256,
                sequence_length=4,
                size=size,
                learning_starts=learning_starts,
                priority_exponent=options.get("priority_exponent", 0.0),
                importance_exponent=0.5,
            )
        ),
        num_environments=2,
        steps_per_update=steps_per_update,
        observation_dtype=jnp.uint8,
    )


def test_episodes_reach_the_agent_as_they_were_played():
    """Ends of both kinds, what is seen last, and the steps between episodes that are none."""
    length, limit = 3, 5
    setup = make(line(length, limit))

    @jax.jit
    def play(key):
        def act(state, key):
            return control_loop.act_and_store(setup, state, key), None

        state = control_loop.init(setup, key)
        state, _ = jax.lax.scan(act, state, jax.random.split(key, 90))
        return state, setup.replay.sample(state.replay, key).batch

    state, batch = play(jax.random.key(0))
    assert int(state.env_steps) == 90
    cell, time = np.moveaxis(np.asarray(batch.observations), -1, 0).astype(int)
    ends = (cell == length) | (time == limit)
    over, after = ends[:, :-1], (cell[:, 1:], time[:, 1:])
    action, taken = np.asarray(batch.actions), ~over
    # A transition from within an episode.
    np.testing.assert_array_equal(after[0][taken], (cell[:, :-1] + action)[taken])
    np.testing.assert_array_equal(after[1][taken], (time[:, :-1] + 1)[taken])
    np.testing.assert_array_equal(batch.rewards, taken)
    terminated = taken & (after[0] == length)
    np.testing.assert_array_equal(batch.terminated, terminated)
    np.testing.assert_array_equal(batch.truncated, taken & ~terminated & (after[1] == limit))
    # The step after an end begins the next episode, whatever the action.
    np.testing.assert_array_equal(after[0][over], 0)
    np.testing.assert_array_equal(after[1][over], 0)
    np.testing.assert_array_equal(batch.weight, taken[:, 0])
    np.testing.assert_allclose(batch.behaviour_probs, law_of(cell[:, :-1]), rtol=1e-6)
    # All of this came about.
    assert np.asarray(batch.terminated).any()
    assert np.asarray(batch.truncated).any()
    assert over[:, 1:].any()
    assert (~taken[:, 0]).any()
    shares = [action[taken & (cell[:, :-1] == c)].mean() for c in range(length)]
    np.testing.assert_allclose(shares, [0.3, 0.4, 0.5], atol=0.15)


@pytest.mark.parametrize("exponent", [0.0, 0.6])
def test_a_window_averages_the_updates_that_were_done(exponent):
    # Six steps of two environments an update: the third, fourth and fifth have 25 before them.
    setup = make(
        line(9, 4), learning_starts=25, size=40, steps_per_update=6, priority_exponent=exponent
    )
    window = jax.jit(functools.partial(control_loop.train_window, setup, num_updates=5))
    state = jax.jit(functools.partial(control_loop.init, setup))(jax.random.key(0))
    state, found = window(state, jax.random.key(1))
    assert int(state.agent) == 3
    assert float(found["updates/done"]) == 3.0
    assert float(found["loss"]) == pytest.approx((1 + 2 + 3) / 3)
    # A count, as it stands at the end.
    assert float(found["updates/skipped"]) == 6.0
    # Thirty steps: six times four and one to begin again.
    assert float(found["episodes/count"]) == 12.0
    assert float(found["episodes/length"]) == 4.0
    assert float(found["episodes/return"]) == 4.0
    assert all(leaf.dtype == jnp.float32 for leaf in found.values())
    state, found = window(state, jax.random.key(2))
    assert int(state.agent) == 8
    assert float(found["loss"]) == pytest.approx((4 + 5 + 6 + 7 + 8) / 5)


def test_nothing_is_learnt_before_it_starts():
    setup = make(line(9, 4), learning_starts=100)
    state = control_loop.init(setup, jax.random.key(0))
    window = jax.jit(functools.partial(control_loop.train_window, setup, num_updates=2))
    state, found = window(state, jax.random.key(1))
    assert int(state.agent) == 0
    assert float(found["updates/done"]) == float(found["loss"]) == 0.0
    assert float(found["episodes/count"]) == 2.0


@pytest.mark.parametrize(
    ("environment", "greedy", "max_steps", "expected"),
    [
        (line(3, 9), 1, 50, (3.0, 1.0)),  # Goes to the end.
        (line(3, 9), 0, 50, (9.0, 1.0)),  # Stays until it is cut off.
        (line(3, 9), 0, 4, (4.0, 0.0)),  # Counts as it is.
        (line(3, 9), 1, 3, (3.0, 1.0)),
        (line(3, 9), 1, 2, (2.0, 0.0)),
    ],
)
def test_evaluation_plays_one_greedy_episode_each(environment, greedy, max_steps, expected):
    setup = make(environment, greedy=greedy)
    found = control_loop.evaluate(
        setup.environment,
        setup.greedy,
        None,
        jax.random.key(0),
        num_episodes=3,
        max_steps=max_steps,
    )
    assert tuple(map(float, found)) == expected


def test_episodes_that_end_early_wait_for_the_others():
    """Each goes right with its own chance, so that they end at different times."""

    def step(key, place, action, params):
        inner = line(2, 99)
        return inner.step(key, place, jax.random.bernoulli(key, 0.4).astype(jnp.int32), params)

    setup = make(line(2, 99)._replace(step=step))

    @jax.jit
    def play(key):
        return control_loop.evaluate(
            setup.environment, setup.greedy, None, key, num_episodes=4000, max_steps=300
        )

    returns, ended = play(jax.random.key(0))
    assert float(ended) == 1.0
    # Two successes of chance 0.4 take 5 steps on average, with variance 2 * 0.6 / 0.16.
    assert float(returns) == pytest.approx(5.0, abs=4 * np.sqrt(7.5 / 4000))


def test_a_seed_has_its_key_alone_and_among_others():
    key = jax.random.key(3)
    many = jax.random.key_data(control_loop.seed_keys(key, jnp.arange(4)))
    alone = jax.random.key_data(control_loop.seed_keys(key, jnp.arange(2, 3)))
    np.testing.assert_array_equal(many[2:3], alone)
    assert len(np.unique(many, axis=0)) == 4
