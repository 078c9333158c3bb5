r"""Tabular Markov decision processes: tables that exact solvers read and that `step` samples from.

The reward is a function of state and action, known and not random. Where the reward depends on the
state that is reached, that state pays it on the way out: the law of the return is then exact, one
discount later. A terminal state leads to itself and pays nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bellmax.envs.environment import DiscreteSpec, Environment
from bellmax.envs.types import TimeStep

# What stands for "no limit of time".
NO_LIMIT = 2**31 - 1


class TabularMDP(NamedTuple):
    """The tables.

    Attributes:
      transition: probabilities of the next state. [S, A, S].
      reward: of an action in a state. [S, A].
      discount: gamma, in [0, 1). [].
      initial: law of the first state. [S].
      terminal: where an episode ends; such a state leads to itself and pays nothing. [S].
      max_steps: steps after which an episode is cut off. [].
    """

    transition: Float[Array, "S A S"]
    reward: Float[Array, "S A"]
    discount: Float[Array, ""]
    initial: Float[Array, " S"]
    terminal: Bool[Array, " S"]
    max_steps: Int[Array, ""]

    @property
    def num_states(self) -> int:
        """Number S of states, terminal ones included."""
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        """Number A of actions of a state."""
        return self.transition.shape[1]


class State(NamedTuple):
    """Where an episode stands.

    Attributes:
      place: the state. [].
      time: steps taken so far. [].
    """

    place: Int[Array, ""]
    time: Int[Array, ""]


def make(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    discount: float | Float[Array, ""],
    *,
    initial: Float[Array, " S"] | None = None,
    terminal: Bool[Array, " S"] | None = None,
    max_steps: int | None = None,
) -> TabularMDP:
    """Puts tables together; terminal states are made to lead to themselves and to pay nothing.

    Args:
      transition: probabilities of the next state. [S, A, S].
      reward: of an action in a state. [S, A].
      discount: gamma, in [0, 1).
      initial: law of the first state; None for state 0. [S].
      terminal: where an episode ends; None for nowhere. [S].
      max_steps: steps after which an episode is cut off, at least 1; None for never.

    Returns:
      The MDP, in the dtype of `transition`.

    Raises:
      ValueError: the shapes do not fit, or a number is out of range.
    """
    if transition.ndim != 3 or transition.shape[0] != transition.shape[2]:
        raise ValueError(f"transition must have shape [S, A, S], got {transition.shape}.")
    num_states, num_actions, _ = transition.shape
    if reward.shape != (num_states, num_actions):
        raise ValueError(f"reward must have shape {(num_states, num_actions)}, got {reward.shape}.")
    for name, value in (("initial", initial), ("terminal", terminal)):
        if value is not None and value.shape != (num_states,):
            raise ValueError(f"{name} must have shape {(num_states,)}, got {value.shape}.")
    if isinstance(discount, int | float) and not 0 <= discount < 1:
        raise ValueError(f"discount must be in [0, 1), got {discount}.")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}.")
    dtype = transition.dtype
    itself = jnp.eye(num_states, dtype=dtype)
    ends = jnp.zeros(num_states, bool) if terminal is None else jnp.asarray(terminal, bool)
    return TabularMDP(
        transition=jnp.where(ends[:, None, None], itself[:, None, :], transition),
        reward=jnp.where(ends[:, None], 0, jnp.asarray(reward, dtype)),
        discount=jnp.asarray(discount, dtype),
        initial=itself[0] if initial is None else jnp.asarray(initial, dtype),
        terminal=ends,
        max_steps=jnp.asarray(NO_LIMIT if max_steps is None else max_steps, jnp.int32),
    )


def reset(key: PRNGKeyArray, params: TabularMDP) -> tuple[State, TimeStep]:
    """Starts an episode.

    Args:
      key: randomness; consumed.
      params: the tables.

    Returns:
      The state, and what the agent sees: the number of the state, an integer [].
    """
    place = jax.random.categorical(key, jnp.log(params.initial)).astype(jnp.int32)
    state = State(place, jnp.zeros((), jnp.int32))
    return state, _time_step(state, jnp.zeros((), params.reward.dtype), params)


def step(
    key: PRNGKeyArray, state: State, action: Int[Array, ""], params: TabularMDP
) -> tuple[State, TimeStep]:
    """Takes one step; from a terminal state it leads nowhere and pays nothing.

    Args:
      key: randomness; consumed.
      state: where the episode stands.
      action: 0 to A - 1. [].
      params: the tables.

    Returns:
      The state, and what the agent sees.
    """
    law = params.transition[state.place, action]
    place = jax.random.categorical(key, jnp.log(law)).astype(jnp.int32)
    following = State(place, state.time + 1)
    return following, _time_step(following, params.reward[state.place, action], params)


def environment(params: TabularMDP) -> Environment:
    """Returns the MDP with what is seen and done, for wrappers and agents.

    Args:
      params: the tables.

    Returns:
      The environment: observations are states 0 to S - 1, actions 0 to A - 1.
    """
    return Environment(
        reset,
        step,
        params,
        DiscreteSpec(params.num_states),
        DiscreteSpec(params.num_actions),
    )


def _time_step(state: State, reward: Array, params: TabularMDP) -> TimeStep:
    terminated = params.terminal[state.place]
    return TimeStep(
        observation=state.place,
        reward=reward,
        terminated=terminated,
        truncated=~terminated & (state.time >= params.max_steps),
    )


def policy_chain(
    mdp: TabularMDP, policy: Float[Array, "S A"]
) -> tuple[Float[Array, "S S"], Float[Array, " S"]]:
    """Returns the Markov chain of states under a policy.

    Its rewards are averaged over actions: the mean of the return is that of the policy, its law
    only where all actions that a state takes pay alike. `action_chain` keeps them apart.

    Args:
      mdp: the tables.
      policy: probabilities of actions. [S, A].

    Returns:
      Transition [S, S] and reward [S].

    Raises:
      ValueError: `policy` has another shape.
    """
    _check_policy(mdp, policy)
    transition = jnp.einsum("sa,sax->sx", policy, mdp.transition, precision="highest")
    return transition, jnp.sum(policy * mdp.reward, axis=-1)


def action_chain(
    mdp: TabularMDP, policy: Float[Array, "S A"]
) -> tuple[Float[Array, "N N"], Float[Array, " N"]]:
    """Returns the Markov chain of pairs (state, action) under a policy, N = S A of them.

    Pair A s + a is action a in state s; after it the policy acts. The law of the return from a pair
    is exact, whatever the rewards.

    Args:
      mdp: the tables.
      policy: probabilities of actions. [S, A].

    Returns:
      Transition [N, N] and reward [N].

    Raises:
      ValueError: `policy` has another shape.
    """
    _check_policy(mdp, policy)
    size = mdp.num_states * mdp.num_actions
    transition = mdp.transition[:, :, :, None] * policy
    return transition.reshape(size, size), mdp.reward.reshape(size)


def _check_policy(mdp: TabularMDP, policy: Array) -> None:
    if policy.shape != mdp.reward.shape:
        raise ValueError(f"policy must have shape {mdp.reward.shape}, got {policy.shape}.")
