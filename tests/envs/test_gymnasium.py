"""Gymnasium's environments step as they do without us, and their ends are handed over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import ArraySpec, DiscreteSpec, wrappers
from bellmax.envs.adapters import gymnasium as adapter

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra 'environments'")


class Counter(gymnasium.Env):
    """Shows how many steps were taken; ends after `length` by itself, or is cut off."""

    observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length=3, cut=False, space=None):
        self.length, self.cut, self.steps = length, cut, 0
        if space is not None:
            self.action_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == self.length
        return np.full(1, self.steps), float(action), over and not self.cut, over and self.cut, {}


def play(environment, actions):
    """Steps one environment by a scan; returns observations, rewards, ends."""

    def one(state, inputs):
        key, action = inputs
        state, timestep = environment.step(key, state, action, environment.params)
        return state, timestep

    def whole(key):
        state, first = environment.reset(key, environment.params)
        keys = jax.random.split(key, len(actions))
        return first, jax.lax.scan(one, state, (keys, jnp.asarray(actions)))[1]

    return jax.device_get(jax.jit(whole)(jax.random.key(0)))


@pytest.mark.parametrize("cut", [False, True])
def test_episodes_end_and_begin_again(cut):
    environment = wrappers.auto_reset(adapter.adapt(lambda: Counter(cut=cut)))
    first, steps = play(environment, [1, 1, 1, 1, 1, 0])
    assert first.observation.dtype == np.float32
    # The fourth step begins the next episode: its action is not taken and pays nothing.
    np.testing.assert_array_equal(steps.observation[:, 0], [1, 2, 3, 0, 1, 2])
    np.testing.assert_array_equal(steps.reward, [1, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(steps.truncated if cut else steps.terminated, [0, 0, 1, 0, 0, 0])
    assert not np.any(steps.terminated if cut else steps.truncated)


def test_cartpole_steps_as_without_us():
    actions = [0, 1, 1, 0, 1, 0, 0, 1]
    environment = adapter.make("CartPole-v1")
    assert environment.action_spec == DiscreteSpec(2)
    first, steps = play(environment, actions)
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    theirs.state = np.asarray(first.observation, np.float64)
    for action, seen, reward in zip(actions, steps.observation, steps.reward, strict=True):
        expected, paid, *_ = theirs.step(action)
        np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)
        assert reward == paid


def test_maps_of_environments_are_apart():
    environment = wrappers.record_episodes(
        wrappers.auto_reset(adapter.adapt(lambda: Counter(length=100)))
    )
    keys = jax.random.split(jax.random.key(0), 3)
    state, _ = jax.vmap(environment.reset, in_axes=(0, None))(keys, ())
    step = jax.jit(jax.vmap(environment.step, in_axes=(0, 0, 0, None)))
    seen = []
    for _ in range(4):
        state, timestep = step(keys, state, jnp.array([0, 1, 1]), ())
        seen.append(timestep.observation[:, 0])
    np.testing.assert_array_equal(seen[-1], [4, 4, 4])
    np.testing.assert_array_equal(state.total, [0, 4, 4])
    assert len(set(state.inner.inner.slot.tolist())) == 3


def test_state_of_another_process_is_handed_over_as_truncated():
    environment = adapter.adapt(Counter)
    state, _ = environment.reset(jax.random.key(0), ())
    inner = state.inner._replace(slot=state.inner.slot + 50)
    state, timestep = environment.step(
        jax.random.key(1), state._replace(inner=inner), jnp.int32(1), ()
    )
    assert bool(timestep.truncated)
    assert float(timestep.reward) == 0
    # As after any end, the next step begins an episode, and the one after it is its first.
    state, timestep = environment.step(jax.random.key(2), state, jnp.int32(1), ())
    assert float(timestep.observation[0]) == 0
    assert not bool(timestep.truncated)
    _, timestep = environment.step(jax.random.key(3), state, jnp.int32(1), ())
    assert float(timestep.observation[0]) == 1


def test_environments_that_wait_longest_are_closed(monkeypatch):
    monkeypatch.setattr(adapter, "MOST_ENVIRONMENTS", 2)
    closed = []

    class Closing(Counter):
        def close(self):
            closed.append(self)

    environment = adapter.adapt(Closing)
    closed.clear()
    states = [environment.reset(jax.random.key(i), ())[0] for i in range(3)]
    jax.block_until_ready(states)
    assert len(closed) == 1
    _, timestep = environment.step(jax.random.key(0), states[2], jnp.int32(0), ())
    assert not bool(timestep.truncated)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="CartPoleX"):
        adapter.make("CartPoleX-v1")
    with pytest.raises(ValueError, match="discrete actions"):
        adapter.adapt(lambda: Counter(space=gymnasium.spaces.MultiDiscrete([2, 2])))
    with pytest.raises(ValueError, match="must not reset itself"):
        wrappers.sticky_actions(adapter.adapt(Counter))


def test_pendulum_takes_forces_as_without_us():
    forces = np.array([[0.5], [-2.0], [1.7]], np.float32)
    environment = adapter.make("Pendulum-v1")
    assert environment.action_spec == ArraySpec((1,), low=-2.0, high=2.0)
    first, steps = play(environment, forces)
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    cosine, sine, speed = np.asarray(first.observation, np.float64)
    theirs.state = np.array([np.arctan2(sine, cosine), speed])
    for force, seen, reward in zip(forces, steps.observation, steps.reward, strict=True):
        expected, paid, *_ = theirs.step(force)
        np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(reward, paid, rtol=1e-4)


def test_atari_has_the_usual_preprocessing():
    pytest.importorskip("ale_py", reason="needs the extra 'atari'")
    pytest.importorskip("cv2", reason="needs the extra 'atari'")
    from bellmax.envs.adapters import atari

    environment = atari.make("Pong")
    assert environment.observation_spec.shape == (84, 84, 4)
    first, steps = play(environment, [2, 3, 0])
    assert first.observation.dtype == np.uint8
    # Frames move back in the stack by one place a step.
    np.testing.assert_array_equal(steps.observation[1, ..., :3], steps.observation[0, ..., 1:])
    with pytest.raises(ValueError, match="Pongg"):
        atari.make("Pongg")
