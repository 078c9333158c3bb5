"""Enumerated problems for agents of rollouts: every sample with its probability as weight."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.agents import RolloutBatch, action_laws

# Two steps from state 0; after the first one state 1 or 2, after the second one the end, 3.
NEXT = np.array([[0.8, 0.2], [0.3, 0.7]])  # P(state 1), P(state 2) after each action.
REWARD = np.array([[1.0, 0.0], [2.0, -1.0], [0.5, 3.0]])  # [state, action].
LAW = action_laws.categorical(2)


def apply(params, observations):
    """A table of logits and of values, read by one-hot states."""
    return observations @ params["logits"], observations @ params["values"]


def start(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "logits": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32),
        "values": jnp.asarray(rng.normal(size=4), jnp.float32),
    }


PATHS = list(itertools.product(range(2), (1, 2), range(2)))  # First action, state, second action.


def objective(logits):
    """The expected return, by enumeration."""
    probs = jax.nn.softmax(logits, axis=-1)
    return sum(
        probs[0, first] * NEXT[first, state - 1] * probs[state, second]
        * (REWARD[0, first] + REWARD[state, second])
        for first, state, second in PATHS
    )  # fmt: skip


def values_of(logits):
    """V of every state."""
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))
    later = (probs[1:3] * REWARD[1:]).sum(axis=1)
    return np.array([probs[0] @ (REWARD[0] + NEXT @ later), *later, 0.0])


def batch_of(logits):
    """All paths, each weighed by its probability; the third step begins another episode."""
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))
    first, state, second = np.array(PATHS).T
    weight = probs[0, first] * NEXT[first, state - 1] * probs[state, second]
    zeros = np.zeros_like(first)
    places = np.stack([zeros, state, zeros + 3, zeros], axis=1)
    chosen = np.stack([probs[0, first], probs[state, second], zeros + 0.5], axis=1)
    flags = np.array([[False, True, False], [False, False, True]])
    return RolloutBatch(
        observations=jnp.asarray(np.eye(4)[places], jnp.float32),
        actions=jnp.asarray(np.stack([first, second, zeros], axis=1)),
        rewards=jnp.asarray(
            np.stack([REWARD[0, first], REWARD[state, second], zeros], axis=1), jnp.float32
        ),
        terminated=jnp.asarray(np.broadcast_to(flags[0], (8, 3))),
        truncated=jnp.zeros((8, 3), bool),
        begins=jnp.asarray(np.broadcast_to(flags[1], (8, 3))),
        behaviour_log_probs=jnp.log(jnp.asarray(chosen, jnp.float32)),
        weight=jnp.asarray(weight, jnp.float32),
    )


def bandit(probs, advantages):
    """One state, every action once, weighed by its probability; advantages are given."""
    count = len(advantages)
    ones = jnp.ones((count, 1))
    return RolloutBatch(
        observations=jnp.ones((count, 2, 1)),
        actions=jnp.arange(count)[:, None],
        rewards=0 * ones,
        terminated=ones > 0,
        truncated=ones < 0,
        begins=ones < 0,
        behaviour_log_probs=jnp.log(jnp.asarray(probs, jnp.float32))[:, None],
        behaviour_values=0 * ones,
        advantages=jnp.asarray(advantages, jnp.float32)[:, None],
        value_targets=0 * ones,
        weight=jnp.asarray(probs, jnp.float32),
    )
