r"""Exact optima of games of many turns: of a reward, of preferences, and turn by turn.

The arguments `(transition, final_preference, reference, initial_state)` are those of
`bellmax.envs.PreferenceMDP`, in its order.

Source: Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
https://arxiv.org/abs/2405.14655
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.agents.tabular import _games, equilibria, multi_turn
from bellmax.agents.tabular.multi_turn import StateIndex
from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def multi_turn_rlhf(
    transition: Float[Array, "H X Y X"],
    final_rewards: Float[Array, " X"],
    reference: Float[Array, "H X Y"],
    *,
    alpha: Knob,
) -> Float[Array, "H X Y"]:
    r"""Returns the policy of the highest expected final reward less alpha KL_p to the reference.

    In closed form, by soft value iteration backwards from the end.

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_rewards: reward of each final state. [X].
      reference: mu. [H, X, Y].
      alpha: > 0, weight of the divergence, 1/nats. May be traced.

    Returns:
      The policy, the best one from every state. [H, X, Y].

    Raises:
      ValueError: a shape is wrong, or `alpha` is not positive.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    _checks.positive("alpha", alpha)
    moves, rewards, mu = multi_turn.arguments(
        transition, final_rewards=final_rewards, reference=reference
    )
    return multi_turn.soft_optimum(moves, rewards, mu, *_games.constants(moves, alpha))[0]


def multi_turn_equilibrium(
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    initial_state: StateIndex = 0,
    *,
    alpha: Knob,
) -> Float[Array, "H X Y"]:
    r"""Returns the one equilibrium of the regularised game of many turns.

    .. math:: \pi^*(y \mid x) \propto \mu(y \mid x) \exp(Q^{\pi^*, \pi^*}(x, y) / \alpha)

    The unknown is the worth of each final state, not the policy: against an opponent whose
    conversations end by the law d, final states are worth r = P d, the best response is the
    soft-optimal policy for r, and its final law is the gradient of the soft value, a convex
    function of r. So `equilibria.monotone_fixed_point` finds r, from anywhere.

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's; it plus its
        transpose is 1, which is not checked. [X, X].
      reference: mu. [H, X, Y].
      initial_state: where every conversation starts. May be traced.
      alpha: > 0, weight of the divergence, 1/nats. May be traced.

    Returns:
      The policy, to rounding error, at unreached states too. [H, X, Y].

    Raises:
      ValueError: a shape is wrong, or `alpha` is not positive.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    _checks.positive("alpha", alpha)
    moves, matrix, mu = multi_turn.arguments(
        transition, final_preference=final_preference, reference=reference
    )
    return _equilibrium(moves, matrix, mu, initial_state, *_games.constants(moves, alpha))


@jax.jit
def _equilibrium(moves, matrix, mu, initial_state, alpha):
    def respond(worth):
        policy, _ = multi_turn.soft_optimum(moves, worth, mu, alpha)
        return multi_turn.final_law(policy, moves, initial_state)

    worth = equilibria.monotone_fixed_point(respond, matrix - 0.5)
    return multi_turn.soft_optimum(moves, worth, mu, alpha)[0]


def per_turn_equilibrium(
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    *,
    alpha: Knob,
) -> Float[Array, "H X Y"]:
    r"""Returns the policy of somebody who compares single turns, not whole conversations.

    At every state, two actions are compared by how conversations end that go on from each of them
    under the reference; the policy of the state is the `regularised_nash` of that game. What the
    policy itself will do in later turns, and which conversation the opponent has had, are not seen.

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's. [X, X].
      reference: mu. [H, X, Y].
      alpha: > 0, temperature of each state's game, nats. May be traced.

    Returns:
      The policy. [H, X, Y].

    Raises:
      ValueError: a shape is wrong, or `alpha` is not positive.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024: the
      baseline with single-turn feedback. https://arxiv.org/abs/2405.14655
    """
    _checks.positive("alpha", alpha)
    moves, matrix, mu = multi_turn.arguments(
        transition, final_preference=final_preference, reference=reference
    )

    return _per_turn(moves, matrix, mu, *_games.constants(moves, alpha))


@jax.jit
def _per_turn(moves, matrix, mu, alpha):
    def turn(ends, inputs):
        move, chosen = inputs
        by_action = jnp.einsum("xyz,zw->xyw", move, ends, precision="highest")
        return jnp.einsum("xy,xyw->xw", chosen, by_action, precision="highest"), by_action

    ends = jnp.eye(moves.shape[1], dtype=moves.dtype)
    by_action = jax.lax.scan(turn, ends, (moves, mu), reverse=True)[1]
    games = jnp.einsum("hxyv,vw,hxzw->hxyz", by_action, matrix, by_action, precision="highest")
    solve = functools.partial(equilibria.regularised_nash, tau=alpha)
    return jax.vmap(jax.vmap(solve))(games, mu)
