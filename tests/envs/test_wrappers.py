"""Wrappers over a corridor whose every step is known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import TimeStep, wrappers
from bellmax.envs.environment import ArraySpec, DiscreteSpec, Environment


class Place(NamedTuple):
    cell: jax.Array
    steps: jax.Array


def corridor(length, limit):
    """Action 1 goes right and 0 stays; the end terminates with reward 1, the limit truncates."""

    def show(place, reward):
        terminated = place.cell == length
        truncated = ~terminated & (place.steps == limit)
        return place, TimeStep(place.cell.astype(jnp.float32)[None], reward, terminated, truncated)

    def reset(key, params):
        del key, params
        return show(Place(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)), jnp.zeros(()))

    def step(key, place, action, params):
        del key, params
        moved = Place(place.cell + action, place.steps + 1)
        return show(moved, (moved.cell == length).astype(jnp.float32))

    return Environment(reset, step, (), ArraySpec((1,)), DiscreteSpec(2))


def run(environment, actions):
    state, first = environment.reset(jax.random.key(0), environment.params)

    def body(state, inputs):
        key, action = inputs
        state, timestep = environment.step(key, state, action, environment.params)
        return state, timestep

    keys = jax.random.split(jax.random.key(1), len(actions))
    state, timesteps = jax.lax.scan(body, state, (keys, jnp.asarray(actions)))
    assert jax.tree.structure(first) == jax.tree.structure(timesteps)
    return state, timesteps


def test_the_last_observation_is_handed_over_and_the_next_step_begins_anew():
    _, seen = run(wrappers.auto_reset(corridor(2, 99)), [1, 1, 1, 1, 1, 1])
    # The third step ignores its action and shows the first cell.
    np.testing.assert_array_equal(seen.observation[:, 0], [1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(seen.terminated, [0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(seen.reward, [0, 1, 0, 0, 1, 0])
    assert not seen.truncated.any()


def test_a_limit_truncates_and_does_not_terminate():
    _, seen = run(wrappers.auto_reset(corridor(9, 2)), [1, 1, 0, 1])
    np.testing.assert_array_equal(seen.truncated, [0, 1, 0, 0])
    np.testing.assert_array_equal(seen.observation[:, 0], [1, 2, 0, 1])
    assert not seen.terminated.any()


def test_episodes_are_recorded_without_the_steps_between_them():
    recorded = wrappers.record_episodes(wrappers.auto_reset(corridor(2, 3)))
    state, _ = run(recorded, [1, 1, 0, 0, 0, 1, 0, 1])
    # Two steps to the end; a reset; three steps to the limit; a reset; one more step.
    assert int(state.episodes) == 2
    assert float(state.last_total) == 0.0
    assert int(state.last_length) == 3
    assert int(state.length) == 1
    state, _ = run(recorded, [1, 1])
    assert float(state.last_total) == 1.0
    assert int(state.last_length) == 2


def test_sticky_actions_repeat_the_last_one_as_often_as_told():
    environment = wrappers.sticky_actions(corridor(10**6, 10**6), 0.25)
    actions = jnp.arange(4000) % 2
    _, seen = run(environment, actions)
    moved = jnp.diff(seen.observation[:, 0], prepend=0.0)
    # An action that differs from the last one taken is replaced with probability 1/4.
    previous = jnp.concatenate([jnp.zeros(1), moved[:-1]])
    differs = actions != previous
    share = float((moved != actions)[differs].mean())
    assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / int(differs.sum())))
    assert not (moved != actions)[~differs].any()


def test_a_probability_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\), got 1.0"):
        wrappers.sticky_actions(corridor(2, 3), 1.0)


def numbered(length):
    """The corridor, which shows the number of its cell."""
    inner = corridor(length, 3)

    def show(state, timestep):
        return state, timestep._replace(observation=timestep.observation[0].astype(jnp.int32))

    return inner._replace(
        reset=lambda *arguments: show(*inner.reset(*arguments)),
        step=lambda *arguments: show(*inner.step(*arguments)),
        observation_spec=DiscreteSpec(length + 1),
    )


def test_numbers_are_shown_as_vectors_with_a_single_1():
    environment = wrappers.one_hot_observations(numbered(2))
    assert environment.observation_spec == ArraySpec((3,), low=0.0, high=1.0)
    assert environment.action_spec == DiscreteSpec(2)
    _, first = environment.reset(jax.random.key(0), environment.params)
    np.testing.assert_array_equal(first.observation, [1, 0, 0])
    assert first.observation.dtype == jnp.float32
    # Everything else is as it was, and other wrappers go around it.
    actions = [0, 1, 1, 1, 1, 0]
    _, seen = run(wrappers.auto_reset(environment), actions)
    _, plain = run(wrappers.auto_reset(numbered(2)), actions)
    np.testing.assert_array_equal(seen.observation, np.eye(3)[plain.observation])
    for name in ("reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(plain, name))


def test_one_hot_observations_need_numbers():
    with pytest.raises(ValueError, match=r"environment must show numbers \(a DiscreteSpec\)"):
        wrappers.one_hot_observations(corridor(2, 3))
