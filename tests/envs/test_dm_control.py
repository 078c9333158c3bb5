"""Tasks of the control suite step as they do without us."""

import jax
import numpy as np
import pytest

from bellmax.envs import ArraySpec
from bellmax.envs.adapters import dm_control as adapter

suite = pytest.importorskip("dm_control.suite", reason="needs the extra 'dm-control'")


def test_a_walker_steps_as_without_us():
    environment = adapter.make("walker", "walk")
    assert environment.action_spec == ArraySpec((6,), low=-1.0, high=1.0)
    assert environment.observation_spec.shape == (24,)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 6)).astype(np.float32)

    @jax.jit
    def play(key):
        def one(state, action):
            state, timestep = environment.step(key, state, action, environment.params)
            return state, timestep

        state, first = environment.reset(key, environment.params)
        return first, jax.lax.scan(one, state, actions)[1]

    first, steps = jax.device_get(play(jax.random.key(0)))
    seed = int(jax.random.randint(jax.random.key(0), (), 0, np.iinfo(np.int32).max))
    theirs = suite.load("walker", "walk", environment_kwargs={"flat_observation": True})
    theirs.task.random.seed(seed)
    (seen,) = theirs.reset().observation.values()
    np.testing.assert_allclose(first.observation, seen, rtol=1e-6)
    for action, found, reward in zip(actions, steps.observation, steps.reward, strict=True):
        moved = theirs.step(action)
        (seen,) = moved.observation.values()
        np.testing.assert_allclose(found, seen, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reward, moved.reward, rtol=1e-6)
    assert not steps.terminated.any()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_actions_stand_for_the_range_of_each(number):
    theirs = suite.load("quadruped", "walk")
    own = theirs.action_spec()
    # The three joints of a leg.
    assert len({*own.maximum[:3]}) == 3
    for action, limit in ((-1.0, own.minimum), (1.0, own.maximum), (0.0, None)):
        ours = adapter.load("quadruped", "walk")
        actions = np.zeros(12)
        actions[number] = action
        ours.reset()
        ours.step(actions)
        middle = (own.minimum + own.maximum) / 2
        np.testing.assert_allclose(
            np.delete(ours.physics.control(), number), np.delete(middle, number)
        )
        expected = middle if limit is None else limit
        np.testing.assert_allclose(ours.physics.control()[number], expected[number])


def test_a_quadruped_is_within_one_range():
    environment = adapter.make("quadruped", "walk")
    assert environment.action_spec == ArraySpec((12,), low=-1.0, high=1.0)


def test_unknown_tasks_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="walker has run, stand, walk"):
        adapter.make("walker", "fly")
    with pytest.raises(ValueError, match="there is no domain 'wolker'"):
        adapter.make("wolker", "walk")
