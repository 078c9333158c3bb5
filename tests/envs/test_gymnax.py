"""Gymnax's environments as ours, against Gymnax's own step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import wrappers
from bellmax.envs.adapters import gymnax as adapter
from bellmax.envs.environment import ArraySpec

gymnax = pytest.importorskip("gymnax", reason="Gymnax is not installed (extra `environments`)")


@pytest.mark.parametrize("name", ["CartPole-v1", "Breakout-MinAtar"])
def test_steps_are_those_of_gymnax(name):
    environment = adapter.make(name)
    theirs, params = gymnax.make(name)
    key = jax.random.key(0)
    state, timestep = environment.reset(key, environment.params)
    observation, other = theirs.reset_env(key, params)
    step, their_step = jax.jit(environment.step), jax.jit(theirs.step_env)
    for number in range(12):
        np.testing.assert_allclose(timestep.observation, jnp.asarray(observation, jnp.float32))
        if timestep.terminated:
            break
        key, action = jax.random.key(number), jnp.array(number % 2)
        state, timestep = step(key, state, action, environment.params)
        observation, other, reward, terminated, _ = their_step(key, other, action, params)
        assert float(timestep.reward) == float(reward)
        assert bool(timestep.terminated) == bool(terminated)
    assert timestep.observation.shape == environment.observation_spec.shape


def test_pendulum_is_gymnasiums_for_a_whole_episode():
    """Each of its 200 steps, from the same state: forces and speeds beyond the limits, the end."""
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra `environments`")
    environment = adapter.make("Pendulum-v1")
    assert environment.action_spec == ArraySpec((1,), low=-2.0, high=2.0)
    start, _ = environment.reset(jax.random.key(0), environment.params)

    def body(state, size):
        # Pushed the way it goes, a pendulum goes round ever faster.
        action = size * jnp.sign(state.theta_dot)[None]
        moved, timestep = environment.step(jax.random.key(0), state, action, environment.params)
        return moved, (state.theta, state.theta_dot, action, timestep)

    sizes = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 3.0, 200), jnp.float32)
    _, (angles, speeds, actions, steps) = jax.lax.scan(body, start, sizes)
    assert jnp.abs(speeds).max() == 8
    assert jnp.abs(angles).max() > 2 * jnp.pi
    theirs = gymnasium.make("Pendulum-v1", disable_env_checker=True)
    theirs.reset(seed=0)
    expected = []
    for angle, speed, action in zip(angles, speeds, np.asarray(actions), strict=True):
        theirs.unwrapped.state = np.array([angle, speed], np.float64)
        expected.append(theirs.step(action)[:4])
    seen, rewards, terminated, truncated = map(np.array, zip(*expected, strict=True))
    np.testing.assert_allclose(steps.observation, seen, atol=1e-4)
    np.testing.assert_allclose(steps.reward, rewards, rtol=1e-4)
    np.testing.assert_array_equal(steps.terminated, terminated)
    np.testing.assert_array_equal(steps.truncated, truncated)
    assert truncated.nonzero()[0].tolist() == [199]


def test_a_limit_of_time_truncates_and_parameters_can_be_changed():
    environment = wrappers.auto_reset(adapter.make("CartPole-v1", max_steps_in_episode=5))
    state, _ = environment.reset(jax.random.key(0), environment.params)

    def body(state, number):
        state, timestep = environment.step(
            jax.random.key(number), state, number % 2, environment.params
        )
        return state, (timestep.terminated, timestep.truncated)

    _, (terminated, truncated) = jax.lax.scan(body, state, jnp.arange(12))
    np.testing.assert_array_equal(truncated.nonzero()[0], [4, 10])
    assert not terminated.any()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("CartPoll-v1", {}, "must be Gymnax's, got 'CartPoll-v1'"),
        ("CartPole-v1", {"gravitas": 1.0}, "must be Gymnax's, got 'CartPole-v1'"),
    ],
)
def test_bad_names_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        adapter.make(name, **params)
