r"""Conversations of several turns that are compared at their end: preference MDPs.

A conversation starts at a state, and in each of H turns the policy acts and the other side answers:
x' is drawn from p_h(x' | x, y). No turn has a reward. Two conversations from the same start are
compared by their final states alone: P(x_{H+1} over x'_{H+1}) is `final_preference`. The tables of
a `PreferenceMDP` are what exact solvers read (`bellmax.agents.tabular`), and `reset`, `step` and
`prefer` sample from the same tables.

Source of the setting: Shani et al., Multi-turn Reinforcement Learning from Preference Human
Feedback, 2024. https://arxiv.org/abs/2405.14655
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bellmax.envs.preference_games import random_antisymmetric
from bellmax.envs.types import TimeStep


class PreferenceMDP(NamedTuple):
    """The tables; states have one numbering in each turn, and unused rows hold any law.

    Attributes:
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state is preferred to the column's; it and
        its transpose sum to 1. [X, X].
      reference: probabilities of the reference policy. [H, X, Y].
      initial_state: where every conversation starts. [].
    """

    transition: Float[Array, "H X Y X"]
    final_preference: Float[Array, "X X"]
    reference: Float[Array, "H X Y"]
    initial_state: Int[Array, ""]

    @property
    def horizon(self) -> int:
        """Number H of turns."""
        return self.transition.shape[0]

    @property
    def num_states(self) -> int:
        """Number X of states of a turn."""
        return self.transition.shape[1]

    @property
    def num_actions(self) -> int:
        """Number Y of actions of a state."""
        return self.transition.shape[2]


class State(NamedTuple):
    """Where a conversation stands.

    Attributes:
      place: the state x. [].
      turn: turns taken so far, 0 to H. [].
    """

    place: Int[Array, ""]
    turn: Int[Array, ""]


def tree(
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    branching: Float[Array, "H X Y Y"] | None = None,
) -> PreferenceMDP:
    """Makes a tree: every state of a turn has Y children, which no other state shares.

    The children of state x are Y x, ..., Y x + Y - 1 of the next turn, and the start is state 0, so
    that turn h has Y^h states (h from 0) and there are X = Y^H final states.

    Args:
      final_preference: preferences of final states, in that order. [X, X].
      reference: the reference policy; only the first Y^h rows of turn h are read. [H, X, Y].
      branching: probability of going to child b after action y; None where action y leads to child
        y. [H, X, Y, Y].

    Returns:
      The tree.

    Raises:
      ValueError: the sizes do not fit.
    """
    if reference.ndim != 3:
        raise ValueError(f"reference must have shape [H, X, Y], got {reference.shape}.")
    horizon, num_states, num_actions = reference.shape
    if num_states != num_actions**horizon or final_preference.shape != (num_states, num_states):
        raise ValueError(
            f"a tree of {horizon} turns with {num_actions} actions has {num_actions**horizon} "
            f"final states, got reference {reference.shape} and final_preference "
            f"{final_preference.shape}."
        )
    if branching is None:
        branching = jnp.broadcast_to(
            jnp.eye(num_actions, dtype=reference.dtype), (*reference.shape, num_actions)
        )
    if branching.shape != (*reference.shape, num_actions):
        raise ValueError(
            f"branching must have shape {(*reference.shape, num_actions)}, got {branching.shape}."
        )
    return PreferenceMDP(
        _tree_moves(branching), final_preference, reference, jnp.zeros((), jnp.int32)
    )


@jax.jit
def _tree_moves(branching: Float[Array, "H X Y Y"]) -> Float[Array, "H X Y X"]:
    """Sends branch b of state x to state Y x + b, modulo X beyond the states of a turn."""
    _, num_states, num_actions, _ = branching.shape
    children = jnp.arange(num_states * num_actions).reshape(num_states, num_actions) % num_states
    places = jax.nn.one_hot(children, num_states, dtype=branching.dtype)
    return jnp.einsum("hxyb,xbz->hxyz", branching, places, precision="highest")


# Two turns of two actions: the smallest tree whose final states can be preferred in cycles.
_SMALL_PREFERENCE = (
    (0.5, 0.8, 0.3, 0.6),
    (0.2, 0.5, 0.9, 0.4),
    (0.7, 0.1, 0.5, 0.8),
    (0.4, 0.6, 0.2, 0.5),
)
_SMALL_REFERENCE = ((0.6, 0.4), (0.5, 0.5), (0.7, 0.3))


def _small_tree(follow: tuple[tuple[float, float], tuple[float, float]]) -> PreferenceMDP:
    reference = np.full((2, 4, 2), 0.5)
    reference[0, 0], reference[1, 0], reference[1, 1] = _SMALL_REFERENCE
    branching = np.broadcast_to(np.eye(2), (2, 4, 2, 2)).copy()
    branching[0, 0] = follow
    return tree(*(jnp.asarray(a, float) for a in (_SMALL_PREFERENCE, reference, branching)))


def deterministic_tree() -> PreferenceMDP:
    """Returns a tree of two turns and four cyclic final states; an action leads to its own child.

    Since the other side adds nothing, it is a game of one turn over four sequences.

    Returns:
      The tree. H = 2, Y = 2, X = 4.
    """
    return _small_tree(((1.0, 0.0), (0.0, 1.0)))


def stochastic_tree() -> PreferenceMDP:
    """Returns the tree of `deterministic_tree` with a first turn that may be misunderstood.

    Action 0 leads to the left child with probability 0.8, action 1 with 0.3.

    Returns:
      The tree. H = 2, Y = 2, X = 4.
    """
    return _small_tree(((0.8, 0.2), (0.3, 0.7)))


def _laws(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws laws over the last axis, uniform on the simplex."""
    draws = jax.random.exponential(key, shape)
    return draws / jnp.sum(draws, axis=-1, keepdims=True)


def random_tree(key: PRNGKeyArray, *, horizon: int, num_actions: int) -> PreferenceMDP:
    """Draws a tree: preferences of final states, answers and reference are all random.

    Preferences are independent and uniform, hence cyclic as soon as there are a few final states.
    Answers and reference are uniform on the simplex.

    Args:
      key: randomness; consumed.
      horizon: turns H, at least 1.
      num_actions: actions Y, at least 2; also answers.

    Returns:
      The tree, with Y^H final states.

    Raises:
      ValueError: a size is too small.
    """
    if horizon < 1 or num_actions < 2:
        raise ValueError(
            f"horizon must be at least 1 and num_actions at least 2, got {horizon} and "
            f"{num_actions}."
        )
    return _draw_tree(key, horizon, num_actions)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw_tree(key: PRNGKeyArray, horizon: int, num_actions: int) -> PreferenceMDP:
    num_states = num_actions**horizon
    keys = jax.random.split(key, 3)
    game = random_antisymmetric(keys[0], num_actions=num_states)
    shape = (horizon, num_states, num_actions)
    return tree(
        game.preference,
        reference=_laws(keys[2], shape),
        branching=_laws(keys[1], (*shape, num_actions)),
    )


def random_mdp(
    key: PRNGKeyArray, *, horizon: int, num_states: int, num_actions: int
) -> PreferenceMDP:
    """Draws a preference MDP in which every state can lead to every state.

    Args:
      key: randomness; consumed.
      horizon: turns H, at least 1.
      num_states: states X of each turn, at least 2.
      num_actions: actions Y, at least 2.

    Returns:
      The MDP: preferences of final states uniform and independent, transition and reference uniform
      on the simplex.

    Raises:
      ValueError: a size is too small.
    """
    if horizon < 1 or num_states < 2 or num_actions < 2:
        raise ValueError(
            "horizon must be at least 1, num_states and num_actions at least 2, got "
            f"{horizon}, {num_states} and {num_actions}."
        )
    keys = jax.random.split(key, 3)
    shape = (horizon, num_states, num_actions)
    return PreferenceMDP(
        transition=_laws(keys[0], (*shape, num_states)),
        final_preference=random_antisymmetric(keys[1], num_actions=num_states).preference,
        reference=_laws(keys[2], shape),
        initial_state=jnp.zeros((), jnp.int32),
    )


def reset(key: PRNGKeyArray, params: PreferenceMDP) -> tuple[State, TimeStep]:
    """Starts a conversation.

    Args:
      key: randomness; not used, since every conversation starts alike.
      params: the tables.

    Returns:
      The state, and what the agent sees: observation (turn, place), integers [2].
    """
    del key
    state = State(params.initial_state.astype(jnp.int32), jnp.zeros((), jnp.int32))
    return state, _time_step(state, params)


def step(
    key: PRNGKeyArray, state: State, action: Int[Array, ""], params: PreferenceMDP
) -> tuple[State, TimeStep]:
    """Takes one turn; after the last one the conversation stays where it ended.

    Args:
      key: randomness; consumed.
      state: where the conversation stands.
      action: 0 to Y - 1. [].
      params: the tables.

    Returns:
      The state, and what the agent sees. The reward is always 0: conversations are compared, by
      `prefer`, and not scored.
    """
    over = state.turn >= params.horizon
    law = params.transition[jnp.minimum(state.turn, params.horizon - 1), state.place, action]
    drawn = jax.random.categorical(key, jnp.log(law)).astype(jnp.int32)
    following = State(
        place=jnp.where(over, state.place, drawn), turn=jnp.where(over, state.turn, state.turn + 1)
    )
    return following, _time_step(following, params)


def _time_step(state: State, params: PreferenceMDP) -> TimeStep:
    return TimeStep(
        observation=jnp.stack([state.turn, state.place]),
        reward=jnp.zeros((), params.transition.dtype),
        terminated=state.turn >= params.horizon,
        truncated=jnp.zeros((), bool),
    )


def prefer(key: PRNGKeyArray, state: State, other: State, params: PreferenceMDP) -> Bool[Array, ""]:
    """Draws which of two conversations that have ended is preferred.

    Args:
      key: randomness; consumed.
      state: end of the first conversation.
      other: end of the second.
      params: the tables.

    Returns:
      Whether the first is preferred. [].
    """
    return jax.random.bernoulli(key, params.final_preference[state.place, other.place])
