"""Collected transitions are the environment's, without those between episodes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import ArraySpec, DiscreteSpec, Environment, TimeStep, maze
from bellmax.experiments import collecting

PUSH = ArraySpec((1,), low=-1.0, high=1.0)


def counter(length, *, action_spec: ArraySpec | DiscreteSpec = PUSH):
    """Shows the steps taken and pays the action; ends by itself after `length` of them."""

    def show(time, reward):
        over = time >= length
        return time, TimeStep(time[None].astype(float), reward, over, jnp.zeros((), bool))

    return Environment(
        reset=lambda key, params: show(jnp.zeros((), jnp.int32), jnp.zeros(())),
        step=lambda key, time, action, params: show(time + 1, action[0]),
        params=(),
        observation_spec=ArraySpec((1,)),
        action_spec=action_spec,
    )


def test_episodes_are_cut_where_they_end():
    table = collecting.collect(
        counter(3),
        lambda seen, key: seen / 10,
        jax.random.key(0),
        num_steps=8,
        num_environments=2,
    )
    # Three steps, one that begins the next episode and is left out, three again: six of eight.
    expected = np.repeat([0, 1, 2, 0, 1, 2], 2)
    np.testing.assert_array_equal(table.observations[:, 0], expected)
    np.testing.assert_array_equal(table.next_observations[:, 0], expected + 1)
    assert table.rewards is not None
    np.testing.assert_allclose(table.rewards, expected / 10, rtol=1e-6)
    np.testing.assert_array_equal(table.terminated, expected == 2)


def test_noise_is_clipped_to_the_range():
    table = collecting.collect(
        counter(1000),
        lambda seen, key: jnp.full((64, 1), 0.9),
        jax.random.key(0),
        num_steps=50,
        num_environments=64,
        noise=0.3,
    )
    assert table.actions.max() == 1
    # A third of N(.9, .3) lies above 1: its median is not moved by the clipping.
    np.testing.assert_allclose(np.median(table.actions), 0.9, atol=0.03)
    np.testing.assert_allclose(np.mean(table.actions == 1), 0.369, atol=0.05)


def test_noise_keeps_its_size_and_remembers_the_step_before():
    table = collecting.collect(
        counter(1000),
        lambda seen, key: jnp.zeros((64, 1)),
        jax.random.key(0),
        num_steps=100,
        num_environments=64,
        noise=0.2,
        correlation=0.8,
    )
    pushes = table.actions.reshape(100, 64)
    # 6,400 values, one in nine of which counts: deviations within four standard errors.
    np.testing.assert_allclose([pushes[0].std(), pushes.std()], 0.2, rtol=4 * (2 / 64) ** 0.5 / 2)
    found = np.corrcoef(pushes[:-1].reshape(-1), pushes[1:].reshape(-1))[0, 1]
    np.testing.assert_allclose(found, 0.8, atol=4 * 0.6 / 6336**0.5)


def test_a_scripted_policy_moves_through_the_maze_as_the_maze_says():
    table = collecting.collect(
        maze.make("loop"),
        lambda seen, key: maze.controller("loop")(seen),
        jax.random.key(0),
        num_steps=20,
        num_environments=4,
    )
    seen, actions, following = (jnp.asarray(leaf) for leaf in table[:3])
    moved = maze.next_state(seen, actions, maze.EXORL)
    np.testing.assert_allclose(following, moved, atol=1e-6)
    assert table.rewards is not None
    paid = maze.reward("loop", following, actions)
    np.testing.assert_allclose(table.rewards, paid, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_environments": 0}, "num_environments must be at least 1"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"correlation": 1.0}, r"correlation must be in \[0, 1\), got 1.0"),
        ({"environment": counter(3, action_spec=DiscreteSpec(2))}, "arrays as actions"),
    ],
)
def test_refusals(change, message):
    keys: dict[str, Any] = {
        "environment": counter(3),
        "num_steps": 1,
        "num_environments": 1,
    } | change
    with pytest.raises(ValueError, match=message):
        collecting.collect(
            keys.pop("environment"), lambda seen, key: seen, jax.random.key(0), **keys
        )
