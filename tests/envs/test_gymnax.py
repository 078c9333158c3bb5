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


def test_continuous_actions_are_those_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra `environments`")
    environment = adapter.make("Pendulum-v1")
    assert environment.action_spec == ArraySpec((1,), low=-2.0, high=2.0)
    state, timestep = environment.reset(jax.random.key(0), environment.params)
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    cosine, sine, velocity = np.asarray(timestep.observation, np.float64)
    theirs.state = np.array([np.arctan2(sine, cosine), velocity])
    step = jax.jit(environment.step)
    for number, torque in enumerate((1.5, -2.0, 0.3, -0.7, 2.0)):
        action = np.array([torque], np.float32)
        state, timestep = step(jax.random.key(number), state, action, environment.params)
        observation, reward, *_ = theirs.step(action)
        np.testing.assert_allclose(timestep.observation, observation, atol=1e-4)
        np.testing.assert_allclose(timestep.reward, reward, atol=1e-4)


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
