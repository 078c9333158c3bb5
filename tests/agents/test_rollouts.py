"""Ends of episodes in advantages, parts of rollouts, and averages over what counts."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import RolloutBatch, rollouts

CASES = runpy.run_path(str(pathlib.Path(__file__).with_name("rollout_cases.py")))
# Terminated after step 1, truncated after step 4: steps 2 and 5 begin episodes.
REWARDS, VALUES = (1.0, 2.0, 0.0, 3.0, 4.0, 0.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)


def rollout(rewards=REWARDS, **changes):
    steps = np.arange(6)
    batch = RolloutBatch(
        observations=jnp.arange(7.0)[None, :, None],
        actions=jnp.asarray(steps[None]),
        rewards=jnp.asarray([rewards]),
        terminated=jnp.asarray(steps[None] == 1),
        truncated=jnp.asarray(steps[None] == 4),
        begins=jnp.asarray((steps[None] == 2) | (steps[None] == 5)),
        behaviour_log_probs=jnp.asarray(-1.0 - 0.1 * steps[None], jnp.float32),
    )
    return batch._replace(**changes)


def estimate(values=VALUES, batch=None):
    found = rollouts.advantages_and_targets(
        jnp.asarray([values]), batch or rollout(), discount=0.5, trace_decay=0.5
    )
    return [np.asarray(leaf)[0] for leaf in found]


COUNTED = [0, 1, 3, 4]


def test_advantages_end_with_their_episode():
    # Step 4, cut off: 4 + .5 * 6 - 5 = 2. Step 3: 3 + .5 * 5 - 4 + .25 * 2 = 2. Step 1, the end:
    # 2 - 2 = 0. Step 0: 1 + .5 * 2 - 1 + .25 * 0 = 1.
    advantages, targets = estimate()
    np.testing.assert_allclose(advantages[COUNTED], [1, 0, 2, 2])
    np.testing.assert_allclose(targets[COUNTED], [2, 2, 6, 7])


def test_nothing_comes_back_from_the_next_episode():
    expected = estimate()
    # The value of a terminal state is not read: x_2 is where the first episode ended.
    for values, rewards in (
        ((1.0, 2.0, np.nan, 4.0, 5.0, 6.0, 7.0), REWARDS),
        ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0), (*REWARDS[:5], 9.0)),
    ):
        found = estimate(values, rollout(rewards))
        for leaf, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(leaf[COUNTED], wanted[COUNTED])


def test_steps_that_are_none_and_padding_count_in_no_average():
    def apply(params, observations):
        return observations, params * observations[..., 0]

    two = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), rollout())
    spoilt = two._replace(
        rewards=two.rewards.at[1].set(jnp.nan),
        observations=two.observations.at[1].set(jnp.nan),
        weight=jnp.asarray([0.5, 0.0]),
    )
    rows = rollouts.prepare(
        jnp.ones(()),
        spoilt,
        apply=apply,
        discount=0.5,
        trace_decay=0.5,
        normalise_advantages=True,
    )
    weight = np.zeros((2, 6))
    weight[0, COUNTED] = 0.5
    np.testing.assert_array_equal(rows.weight, weight)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
    # Values 0 .. 6. Step 4: 4 + .5 * 5 - 4; step 3: 3 + .5 * 4 - 3 + .25 * 2.5; step 1: 2 - 1;
    # step 0: 1 + .5 * 1 - 0 + .25 * 1.
    raw = np.array([1.75, 1.0, 2.625, 2.5])
    np.testing.assert_allclose(rows.spread, raw.std(), rtol=1e-6)
    standard = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(rows.advantages[0, COUNTED], standard, rtol=1e-5)
    np.testing.assert_allclose(rows.value_targets[0, COUNTED], raw + np.array(COUNTED), rtol=1e-6)


def test_minibatches_are_steps_of_the_rollout():
    batch = jax.tree.map(lambda leaf: jnp.concatenate([leaf, 10 + leaf]), rollout())
    flags = {name: getattr(batch, name) > 10 for name in ("terminated", "truncated", "begins")}
    batch = batch._replace(
        **flags, advantages=batch.rewards, behaviour_values=-batch.rewards,
        value_targets=2 * batch.rewards, index=jnp.asarray([7, 8]), weight=jnp.asarray([1.0, 3.0]),
    )  # fmt: skip
    part = rollouts.minibatch(batch, jnp.asarray([11, 3, 0]))
    np.testing.assert_array_equal(part.observations[..., 0], [[15, 16], [3, 4], [0, 1]])
    np.testing.assert_array_equal(part.actions, [[15], [3], [0]])
    np.testing.assert_array_equal(part.value_targets, [[20], [6], [2]])
    np.testing.assert_array_equal(part.index, [8, 7, 7])
    np.testing.assert_array_equal(part.weight, [3, 1, 1])
    with pytest.raises(ValueError, match="batch must hold advantages"):
        rollouts.minibatch(rollout(), jnp.asarray([0]))


def test_all_minibatches_together_are_the_rollout():
    """Whatever the order, the gradient over all steps is that of the whole."""
    params = CASES["start"]()
    full = rollouts.with_advantages(
        params,
        CASES["batch_of"](params["logits"]),
        apply=CASES["apply"],
        discount=0.9,
        trace_decay=0.7,
    )
    shuffled = rollouts.minibatch(full, jax.random.permutation(jax.random.key(0), 24))

    def moments(batch):
        rows = rollouts.prepare(
            params,
            batch,
            apply=CASES["apply"],
            discount=0.9,
            trace_decay=0.7,
            normalise_advantages=False,
        )
        return [jnp.sum(rows.weight * leaf) for leaf in (rows.advantages, rows.value_targets)]

    np.testing.assert_allclose(moments(shuffled), moments(full), rtol=1e-5)


def test_decisions_know_how_likely_they_were():
    params, states = CASES["start"](), jnp.eye(4)[jnp.zeros(5000, int)]
    found = rollouts.decide(
        params, states, jax.random.key(0), apply=CASES["apply"], law=CASES["LAW"]
    )
    probs = jax.nn.softmax(params["logits"][0])
    np.testing.assert_allclose(jnp.exp(found.log_probs), probs[found.actions], rtol=1e-5)
    np.testing.assert_allclose(np.bincount(found.actions) / 5000, probs, atol=0.03)
