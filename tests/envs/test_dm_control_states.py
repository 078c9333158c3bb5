"""Steps from states of MuJoCo, and rewards of what is seen, are the suite's own."""

import numpy as np
import pytest

from bellmax.envs.adapters import dm_control_states

suite = pytest.importorskip("dm_control.suite", reason="needs the extra 'dm-control'")

TASKS = [(domain, task) for domain, tasks in dm_control_states.TASKS.items() for task in tasks]


def episode(domain, task, num_steps):
    """An episode that nothing of ours has a part in: states and all that follows them."""
    theirs = suite.load(domain, task, environment_kwargs={"flat_observation": True})
    theirs.task.random.seed(3)
    theirs.reset()
    own = theirs.action_spec()
    actions = np.random.default_rng(0).uniform(-1, 1, (num_steps, *own.shape))
    states, seen, rewards = [theirs.physics.get_state()], [], []
    for action in actions:
        share = (action + 1) / 2
        moved = theirs.step((1 - share) * own.minimum + share * own.maximum)
        states.append(theirs.physics.get_state())
        (shown,) = moved.observation.values()
        seen.append(shown)
        rewards.append(moved.reward)
    return np.stack(states), actions, np.stack(seen), np.asarray(rewards)


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_an_episode_step_by_step_from_its_states(domain, task):
    states, actions, seen, rewards = episode(domain, task, 30)
    simulator = dm_control_states.Simulator(domain, task)
    assert (simulator.observation_size, simulator.action_size) == (seen.shape[1], actions.shape[1])
    found = simulator.step(states[:-1], actions)
    # The episode's solver begins at the step before, ours does not: its tolerance is between them.
    np.testing.assert_allclose(found.states, states[1:], atol=1e-5)
    np.testing.assert_allclose(found.rewards, rewards, atol=1e-5)
    # Of state and action alone, to the last bit, whatever was simulated in between.
    again = simulator.step(states[4:5], actions[4:5])
    for first, second in zip(found, again, strict=True):
        np.testing.assert_array_equal(first[4:5], second)


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_what_is_seen_pays_what_the_suite_pays(domain, task):
    _, _, seen, rewards = episode(domain, task, 30)
    simulator = dm_control_states.Simulator(domain, task)
    np.testing.assert_allclose(simulator.rewards(seen), rewards, rtol=1e-9, atol=1e-12)
    assert np.ptp(rewards) > 0
    rows = np.float32(seen).reshape(2, 15, -1)
    rows[1, 3, 0] = np.inf
    found = simulator.rewards(rows)
    assert np.isnan(found[1, 3])
    found[1, 3] = rewards[18]
    np.testing.assert_allclose(found.reshape(-1), rewards, atol=1e-5)


def test_episodes_begin_as_the_suite_begins_them():
    simulator = dm_control_states.Simulator("walker", "walk")
    states, seen = simulator.begin(np.asarray([5, 6]))
    theirs = suite.load("walker", "walk", environment_kwargs={"flat_observation": True})
    theirs.task.random.seed(6)
    (shown,) = theirs.reset().observation.values()
    np.testing.assert_array_equal(seen[1], shown)
    np.testing.assert_array_equal(states[1], theirs.physics.get_state())


def test_tasks_without_a_reward_of_what_is_seen_are_refused():
    with pytest.raises(ValueError, match="quadruped run, got 'quadruped', 'fetch'"):
        dm_control_states.Simulator("quadruped", "fetch")
