"""What a source of transitions is, and the truth about a policy's future by its rollouts."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.agents import TransitionBatch
from bellmax.experiments.data import transitions
from bellmax.experiments.horizon_config import DataConfig

# Of policies that are trained, and of what they are worth, whatever those of the models.
POLICY_DISCOUNT = 0.99
# The share of a horizon that rollouts may leave out.
_LEFT_OUT = 1e-4

# States [..., D] -> actions [..., A].
Policy = Callable[[Array], Array]
# (states[E, D], policy, T) -> the states after 1 to T steps [T, E, D], and what they pay [T, E].
Rollout = Callable[[Array, Policy, int], tuple[Array, Array]]


class Truth(NamedTuple):
    """What the models are compared with, in the source's own units.

    Attributes:
      samples: of the successor measure of each evaluated state. [E, M, D].
      values: of the source's reward, exact. [E].
    """

    samples: Float[np.ndarray, "E M D"]
    values: Float[np.ndarray, " E"]


class Source(NamedTuple):
    """Fixed transitions and their law.

    Attributes:
      transitions: what is learnt from, on the host, `next_actions` of the evaluated policy.
      states: that are evaluated. [E, D].
      actions: of the evaluated policy there. [E, A].
      reward_fn: of the state that a step leads to, called outside of compiled programs.
        [..., D] -> [...].
      truth: `(discount, num_samples, key) -> Truth`.
      walls: boxes to draw behind samples, or None. [W, 4].
      with_policy: `policy -> Source`, the same with another policy; None where nothing is done.
      value_of: `policy -> its mean value of the reward`, discounted by `POLICY_DISCOUNT`, over the
        states; None likewise.
    """

    transitions: TransitionBatch
    states: Float[Array, "E D"]
    actions: Float[Array, "E A"]
    reward_fn: Callable[[Array], Array]
    truth: Callable[[float, int, PRNGKeyArray], Truth]
    walls: Float[np.ndarray, "W 4"] | None = None
    with_policy: Callable[[Policy], "Source"] | None = None
    value_of: Callable[[Policy], Float[Array, ""]] | None = None


def still(action_size: int) -> Policy:
    """Returns the policy that does nothing, in the place of one that is yet to be trained.

    Args:
      action_size: features of an action.
    """
    return lambda states: jnp.zeros((*states.shape[:-1], action_size))


def read_rows(config: DataConfig, *, state_size: int, action_size: int) -> TransitionBatch:
    """Reads transitions that somebody else has collected.

    Args:
      config: the data group, with a path.
      state_size: features that a state must have.
      action_size: features that an action must have.

    Returns:
      States, actions and next states, on the host.

    Raises:
      UserError: the path cannot be read.
      ValueError: what it holds has other sizes.
    """
    table = transitions.load_files(pathlib.Path(config.path), pathlib.Path(config.cache_dir))
    sizes = table.observations.shape[-1], table.actions.shape[-1]
    if sizes != (state_size, action_size):
        raise ValueError(
            f"path must hold observations of {state_size} features and actions of {action_size}, "
            f"as {config.source} {config.task} has; {config.path} has {sizes[0]} and {sizes[1]}."
        )
    return on_host(table)


def on_host(table: transitions.TransitionTable) -> TransitionBatch:
    """Returns a table as a batch that stays on the host, without rewards and ends.

    Args:
      table: the table.
    """
    # Agents take NumPy's arrays as they take JAX's.
    rows: Any = table[:3]
    return TransitionBatch(*rows)


def of_policy(
    policy: Policy,
    *,
    rows: TransitionBatch,
    states: Float[Array, "E D"],
    reward_fn: Callable[[Array], Array],
    rollout: Rollout,
    walls: Float[np.ndarray, "W 4"] | None = None,
) -> Source:
    """Returns transitions beside what a deterministic policy does, and what comes of it.

    Args:
      policy: the policy.
      rows: the transitions; their `next_actions` are not read.
      states: that are evaluated. [E, D].
      reward_fn: see `Source`.
      rollout: plays a policy from the states; traced, nothing about it is random.
      walls: see `Source`.

    Returns:
      The source.
    """
    common = {
        "rows": rows,
        "states": states,
        "reward_fn": reward_fn,
        "rollout": rollout,
        "walls": walls,
    }

    @functools.cache
    def played(length: int) -> tuple[np.ndarray, np.ndarray]:
        return jax.device_get(jax.jit(lambda states: rollout(states, policy, length))(states))

    def value_of(policy: Policy) -> Float[Array, ""]:
        _, rewards = rollout(states, policy, future_length(POLICY_DISCOUNT))
        return jnp.mean(POLICY_DISCOUNT ** jnp.arange(rewards.shape[0]) @ rewards)

    return Source(
        transitions=rows._replace(next_actions=np.asarray(jax.jit(policy)(rows.next_observations))),
        states=states,
        actions=policy(states),
        reward_fn=reward_fn,
        truth=functools.partial(_of_rollouts, played),
        walls=walls,
        with_policy=functools.partial(of_policy, **common),
        value_of=value_of,
    )


def _of_rollouts(
    played: Callable[[int], tuple[np.ndarray, np.ndarray]],
    discount: float,
    num_samples: int,
    key: PRNGKeyArray,
) -> Truth:
    """Draws places of rollouts by their law; the values are sums over all of them."""
    length = future_length(discount)
    future, rewards = played(length)
    count = future.shape[1]
    # The law of the rollout's places, its rest given to the last.
    weights = discount ** np.arange(length) * (1 - discount)
    weights[-1] = discount ** (length - 1)
    places = jax.random.choice(
        key, length, (count, num_samples), p=jnp.asarray(weights / weights.sum())
    )
    samples = np.moveaxis(future, 0, 1)[np.arange(count)[:, None], np.asarray(places)]
    return Truth(samples, weights @ np.asarray(rewards, np.float64) / (1 - discount))


def future_length(discount: float) -> int:
    """Returns the steps of a rollout after which next to nothing of a horizon is left.

    Args:
      discount: gamma in [0, 1).

    Returns:
      The least T with gamma^T at most 1e-4.
    """
    return 1 if discount == 0 else max(1, math.ceil(math.log(_LEFT_OUT) / math.log(discount)))
