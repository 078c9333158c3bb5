"""The replay of sequences: what it hands out is what was stored, as often as priorities say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import SequenceBatch
from bellmax.experiments.control_replay import Options, Replay, Sample, Step

EVERY = 5  # Each fifth step begins an episode, and the one before truncates or terminates.


def make(**changes):
    options = {
        "num_environments": 2,
        "batch_size": 64,
        "sequence_length": 3,
        "size": 21,  # Ten steps of both environments, and one that has no room.
        "learning_starts": 1,
        "priority_exponent": 0.0,
        "importance_exponent": 0.5,
    }
    return Replay(Options(**(options | changes)))


def step_of(environments, time):
    """What environment e stores at time t; every field says e and t."""
    e = np.arange(environments)
    begins = (time + e) % EVERY == 0
    ends = (time + e) % EVERY == EVERY - 1
    return Step(
        observation=jnp.asarray(np.stack([e, np.full_like(e, time)], axis=1), jnp.uint8),
        action=jnp.asarray((time + e) % 3, jnp.int32),
        reward=jnp.asarray(time + 100.0 * e, jnp.float32),
        terminated=jnp.asarray(ends & (e == 0)),
        truncated=jnp.asarray(ends & (e == 1)),
        probs=jnp.asarray(np.stack([0.001 * e, 1 - 0.01 * (time + e)], axis=1), jnp.float32),
        begins=jnp.asarray(begins),
    )


def start(replay, environments):
    return replay.init(jax.tree.map(lambda leaf: leaf[0], step_of(environments, 0)))


@pytest.mark.parametrize("exponent", [0.0, 0.6])
def test_sequences_are_stretches_of_what_was_stored(exponent):
    """While it fills, when it is full, and wherever the newest step lies in memory."""
    replay = make(priority_exponent=exponent)
    state, add = start(replay, 2), jax.jit(replay.add)
    sample = jax.jit(replay.sample)
    first_times = set()
    for time in range(33):
        assert bool(replay.can_sample(state)) == (time >= 4)
        state = add(state, step_of(2, time))
        if time < 3:
            continue
        batch = sample(state, jax.random.key(time)).batch
        assert batch.observations.shape == (64, 4, 2)
        assert batch.observations.dtype == jnp.float32
        assert batch.actions.shape == (64, 3)
        e, t = np.asarray(batch.observations[:, 0]).T.astype(int)
        # Ten steps are kept, the last of which gives an observation alone.
        assert t.min() >= max(0, time - 9)
        assert t.max() <= time - 3
        steps = t[:, None] + np.arange(4)
        np.testing.assert_array_equal(batch.observations[..., 1], steps)
        np.testing.assert_array_equal(batch.observations[..., 0], np.tile(e[:, None], 4))
        steps, e = steps[:, :-1], e[:, None]
        np.testing.assert_array_equal(batch.actions, (steps + e) % 3)
        np.testing.assert_array_equal(batch.rewards, steps + 100 * e)
        ends = (steps + e) % EVERY == EVERY - 1
        np.testing.assert_array_equal(batch.terminated, ends & (e == 0))
        np.testing.assert_array_equal(batch.truncated, ends & (e == 1))
        np.testing.assert_allclose(batch.behaviour_probs[..., 1], 1 - 0.01 * (steps + e), 1e-6)
        last = np.asarray(batch.last_behaviour_probs)[:, 1:2]
        np.testing.assert_allclose(last, 1 - 0.01 * (steps[:, -1:] + 1 + e), 1e-6)
        begins = (steps + e)[:, 0] % EVERY == 0
        np.testing.assert_array_equal(np.asarray(batch.weight) == 0, begins)
        np.testing.assert_array_equal(np.asarray(batch.weight)[~begins], 1.0)
        first_times |= {(time, int(x)) for x in t}
    # All seven places of a full replay come.
    assert {x for now, x in first_times if now == 32} == set(range(23, 30))


def test_learning_starts_after_as_many_transitions_as_asked_for():
    replay = make(num_environments=4, learning_starts=13, size=40, sequence_length=2)
    state, add = start(replay, 4), jax.jit(replay.add)
    for time in range(4):
        assert not replay.can_sample(state)
        state = add(state, step_of(4, time))
    # Three steps of four environments would be 12.
    assert replay.can_sample(state)


def filled(replay, steps=9):
    state = start(replay, 1)
    add = jax.jit(replay.add)
    for time in range(steps):
        plain = step_of(1, time)
        state = add(state, plain._replace(begins=jnp.asarray([time == 3])))
    return state


def told(replay, state, errors, weight):
    """Sets the errors of the sequences at 0, 1, 2, ..."""
    nothing: Any = None
    batch = SequenceBatch(*[nothing] * 6, weight=jnp.asarray(weight))
    sample = Sample(batch, jnp.arange(len(errors)))
    return jax.jit(replay.with_errors)(state, sample, jnp.asarray(errors))


def first_times(sample):
    return np.asarray(sample.batch.observations[:, 0, 1]).astype(int)


def test_priorities_choose_and_importance_weighs():
    alpha, beta = 0.5, 0.7
    replay = make(
        num_environments=1,
        size=16,
        batch_size=4000,
        sequence_length=1,
        priority_exponent=alpha,
        importance_exponent=beta,
    )
    assert replay.is_prioritised
    state = filled(replay)
    # Sequence 3 begins an episode and has weight 0; the error of sequence 5 went wrong.
    errors = np.array([1.0, -4.0, 0.25, 7.0, 0.0, np.nan, 9.0, 2.0], np.float32)
    state = told(replay, state, errors, np.where(np.arange(8) == 3, 0.0, 1.0))
    sizes = np.array([1.0, 4.0, 0.25, 0.0, 0.0, 0.0, 9.0, 2.0]) + 1e-3
    sizes[3] = 0
    chances = sizes**alpha / (sizes**alpha).sum()
    sample = jax.jit(replay.sample)(state, jax.random.key(1))
    times = first_times(sample)
    found = np.bincount(times, minlength=8) / 4000
    # Stratified: nearer than independent draws would be.
    np.testing.assert_allclose(found, chances, atol=2e-3)
    assert found[3] == 0
    weight = np.asarray(sample.batch.weight)
    expected = (chances[times] / chances[times].min()) ** -beta
    np.testing.assert_allclose(weight, expected, rtol=2e-3)
    assert weight.max() == pytest.approx(1.0)
    # The next sequence comes with the priority of the largest, 9.001^0.5 in whole numbers.
    state = jax.jit(replay.add)(state, step_of(1, 9))
    found = first_times(jax.jit(replay.sample)(state, jax.random.key(2)))
    share = 3.0 / ((sizes**alpha).sum() + 3.0)
    assert (found == 8).mean() == pytest.approx(share, abs=2e-3)


def test_uniform_replay_takes_no_errors():
    replay = make(num_environments=1)
    state = filled(replay)
    sample = jax.jit(replay.sample)(state, jax.random.key(0))
    assert sample.indices is None
    assert replay.with_errors(state, sample, jnp.ones(64)) is state
    assert not replay.is_prioritised


def test_a_place_without_a_chance_has_no_weight():
    """Rounded sums of the tree of priorities lead there now and then: here, on purpose."""
    replay = make(num_environments=1, size=16, sequence_length=1, priority_exponent=1.0)
    state = filled(replay)
    tree = state.sum_tree_state
    state = state.replace(sum_tree_state=tree.replace(nodes=tree.nodes.at[0].mul(1.25)))
    sample = jax.jit(replay.sample)(state, jax.random.key(0))
    times, weight = first_times(sample), np.asarray(sample.batch.weight)
    lost = np.asarray(sample.indices) >= 8
    assert lost.any()
    np.testing.assert_array_equal(weight[lost], 0.0)
    np.testing.assert_allclose(weight[~lost & (times != 3)], 1.0, rtol=1e-6)
    state = jax.jit(replay.with_errors)(state, sample, jnp.ones(64))
    # None of them has become one that can be drawn.
    np.testing.assert_array_equal(state.sum_tree_state.nodes[-8:], 0.0)
