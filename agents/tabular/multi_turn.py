r"""A preference game of many turns, evaluated exactly: laws of states, values, divergences, gaps.

A conversation of H turns starts at one state x_1. In turn h the policy takes action y at state x,
and the other side moves to x' with probability p_h(x' | x, y). Only the states reached at the end
are compared, each with that of another conversation from the same start:

.. math:: P_\alpha(\pi \succ \pi') = P(\pi \succ \pi') - \alpha \mathrm{KL}_p(\pi, \mu)
          + \alpha \mathrm{KL}_p(\pi', \mu)

Arrays: `transition` [H, X, Y, X], policies and `reference` [H, X, Y], `final_preference` [X, X].
States carry one numbering a turn; a row that no conversation reaches may hold any law. Several
starts or several games are a `jax.vmap`.

Source: Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
https://arxiv.org/abs/2405.14655
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import rel_entr
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks
from bellmax.losses._checks import Knob

# Where conversations start: an index, which may be traced.
StateIndex = int | Int[Array, ""]


def arguments(transition: Array, **others: Array) -> tuple[Float[Array, "..."], ...]:
    """Checks the arrays of a multi-turn game, by their names, and promotes them.

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      **others: `final_preference` [X, X], `final_values` and `final_rewards` [X]; any other name is
        a policy [H, X, Y].

    Returns:
      The arrays in the order given, in one dtype.

    Raises:
      ValueError: a shape is wrong.
      TypeError: an array is not floating point.
    """
    moves = _checks.as_float("transition", transition)
    if moves.ndim != 4 or moves.shape[1] != moves.shape[3]:
        raise ValueError(f"transition must have shape [H, X, Y, X], got {moves.shape}.")
    states = moves.shape[1]
    shapes = {"final_preference": (states, states)}
    shapes |= dict.fromkeys(("final_values", "final_rewards"), (states,))
    arrays = [moves]
    for name, value in others.items():
        array = _checks.as_float(name, value)
        expected = shapes.get(name, moves.shape[:3])
        if array.shape != expected:
            raise ValueError(
                f"{name} must have shape {expected} where transition has {moves.shape}, got "
                f"{array.shape}."
            )
        arrays.append(array)
    dtype = jnp.result_type(*arrays)
    return tuple(array.astype(dtype) for array in arrays)


def occupancy(
    policy: Float[Array, "H X Y"],
    transition: Float[Array, "H X Y X"],
    initial_state: StateIndex = 0,
) -> Float[Array, "H+1 X"]:
    """Returns the law of the state at each turn and at the end.

    Args:
      policy: probabilities of actions. [H, X, Y].
      transition: probabilities of the next state. [H, X, Y, X].
      initial_state: where every conversation starts. May be traced.

    Returns:
      Laws of x_1 to x_{H+1}. [H + 1, X].

    Raises:
      ValueError: a shape is wrong.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    moves, pi = arguments(transition, policy=policy)
    return _occupancy(pi, moves, initial_state)


@jax.jit
def _occupancy(pi, moves, initial_state):
    start = jax.nn.one_hot(initial_state, moves.shape[1], dtype=moves.dtype)

    def turn(law, inputs):
        chosen, move = inputs
        flow = law[:, None] * chosen
        return jnp.einsum("xy,xyz->z", flow, move, precision="highest"), law

    last, earlier = jax.lax.scan(turn, start, (pi, moves))
    return jnp.concatenate([earlier, last[None]])


def final_law(
    policy: Float[Array, "H X Y"],
    transition: Float[Array, "H X Y X"],
    initial_state: StateIndex = 0,
) -> Float[Array, " X"]:
    """Returns the law of the state at the end, the last row of `occupancy`.

    Args:
      policy: probabilities of actions. [H, X, Y].
      transition: probabilities of the next state. [H, X, Y, X].
      initial_state: where every conversation starts. May be traced.

    Returns:
      Law of x_{H+1}. [X].

    Raises:
      ValueError: a shape is wrong.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    return occupancy(policy, transition, initial_state)[-1]


def _divergences(policy: Array, reference: Array) -> Array:
    return jnp.sum(rel_entr(policy, reference), axis=-1)


def _penalty(alpha: Array, divergence: Array) -> Array:
    """Returns their product, 0 where alpha is 0: 0 times infinity would be NaN."""
    return alpha * jnp.where((alpha > 0) | jnp.isfinite(divergence), divergence, 0)


def _expected(law: Array, values: Array) -> Array:
    """Returns the mean of values under laws on the last axis; what has no chance may be -inf."""
    return jnp.sum(jnp.where(law > 0, law * values, 0), axis=-1)


def action_values(
    policy: Float[Array, "H X Y"],
    transition: Float[Array, "H X Y X"],
    final_values: Float[Array, " X"],
    reference: Float[Array, "H X Y"],
    *,
    alpha: Knob,
) -> Float[Array, "H X Y"]:
    r"""Returns the regularised value of every action, by backward induction.

    .. math:: Q(x_h, y) = \sum_{x'} p(x' \mid x_h, y) V(x') - \alpha \mathrm{KL}(\pi, \mu)[x_h],
              \qquad V(x_h) = \sum_y \pi(y \mid x_h) Q(x_h, y)

    with V the final values after the last turn. The divergence of a state's own turn is the same
    for all its actions; it counts in the turns before.

    Args:
      policy: pi. [H, X, Y].
      transition: probabilities of the next state. [H, X, Y, X].
      final_values: what a final state is worth. [X].
      reference: mu. [H, X, Y].
      alpha: >= 0, weight of the divergence, 1/nats. May be traced.

    Returns:
      Q, in the unit of the final values; -inf where the policy leaves the reference's support. [H,
      X, Y].

    Raises:
      ValueError: a shape is wrong, or `alpha` is negative.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    _checks.in_range("alpha", alpha, 0, float("inf"))
    moves, pi, mu, last = arguments(
        transition, policy=policy, reference=reference, final_values=final_values
    )
    return _action_values(pi, moves, last, mu, jnp.asarray(alpha, moves.dtype))


@jax.jit
def _action_values(pi, moves, last, mu, alpha):
    penalties = _penalty(alpha, _divergences(pi, mu))

    def turn(values, inputs):
        chosen, move, penalty = inputs
        q = _expected(move, values) - penalty[:, None]
        return _expected(chosen, q), q

    return jax.lax.scan(turn, last, (pi, moves, penalties), reverse=True)[1]


def preference_values(
    policy: Float[Array, "H X Y"],
    opponent: Float[Array, "H X Y"],
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    initial_state: StateIndex = 0,
    *,
    alpha: Knob,
) -> Float[Array, "H X Y"]:
    r"""Returns `action_values` where a final state is worth its win-rate against an opponent.

    .. math:: V(x_{H+1}) = P(x_{H+1} \succ \pi')
              = \sum_{x'} P(x_{H+1} \succ x') \Pr(x'_{H+1} = x' \mid \pi', x_1)

    The policy starts anywhere; the opponent's conversation always starts at the initial state.

    Args:
      policy: pi. [H, X, Y].
      opponent: pi'. [H, X, Y].
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's. [X, X].
      reference: mu. [H, X, Y].
      initial_state: where the opponent's conversation starts. May be traced.
      alpha: >= 0, weight of the divergence, 1/nats. May be traced.

    Returns:
      Q of the policy against the opponent. [H, X, Y].

    Raises:
      ValueError: a shape is wrong, or `alpha` is negative.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    _, matrix = arguments(transition, final_preference=final_preference)
    law = final_law(opponent, transition, initial_state)
    worth = jnp.matmul(matrix, law.astype(matrix.dtype), precision="highest")
    return action_values(policy, transition, worth, reference, alpha=alpha)


def trajectory_kl(
    policy: Float[Array, "H X Y"],
    reference: Float[Array, "H X Y"],
    transition: Float[Array, "H X Y X"],
    initial_state: StateIndex = 0,
) -> Float[Array, ""]:
    r"""Returns the divergence of whole conversations under two policies.

    .. math:: \mathrm{KL}_p(\pi, \mu) = \mathbb E_{\pi, p} \sum_h \mathrm{KL}(\pi, \mu)[x_h]

    The other side's moves are the same under both and cancel.

    Args:
      policy: pi. [H, X, Y].
      reference: mu. [H, X, Y].
      transition: probabilities of the next state. [H, X, Y, X].
      initial_state: where every conversation starts. May be traced.

    Returns:
      The divergence, nats.

    Raises:
      ValueError: a shape is wrong.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024, lemma
      3.1. https://arxiv.org/abs/2405.14655
    """
    moves, pi, mu = arguments(transition, policy=policy, reference=reference)
    return _trajectory_kl(pi, mu, moves, initial_state)


@jax.jit
def _trajectory_kl(pi, mu, moves, initial_state):
    laws = _occupancy(pi, moves, initial_state)[:-1]
    # A state that is never reached may have any divergence, infinity included.
    return jnp.sum(jnp.where(laws > 0, laws * _divergences(pi, mu), 0))


def regularised_win_rate(
    policy: Float[Array, "H X Y"],
    opponent: Float[Array, "H X Y"],
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    initial_state: StateIndex = 0,
    *,
    alpha: Knob,
) -> Float[Array, ""]:
    r"""Returns what a policy scores against another in the regularised game of many turns.

    .. math:: P(\pi \succ \pi') - \alpha \mathrm{KL}_p(\pi, \mu)
              + \alpha \mathrm{KL}_p(\pi', \mu)

    The equilibrium scores at least 1/2 against every policy. A policy that leaves the reference's
    support scores -inf, unless both do: their infinite penalties cancel.

    Args:
      policy: pi. [H, X, Y].
      opponent: pi'. [H, X, Y].
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's. [X, X].
      reference: mu. [H, X, Y].
      initial_state: where every conversation starts. May be traced.
      alpha: >= 0, weight of the divergences, 1/nats; 0 gives the plain win-rate. May be traced.

    Returns:
      The score; 1/2 between equals.

    Raises:
      ValueError: a shape is wrong, or `alpha` is negative.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    _checks.in_range("alpha", alpha, 0, float("inf"))
    moves, matrix, pi, other, mu = arguments(
        transition,
        final_preference=final_preference,
        policy=policy,
        opponent=opponent,
        reference=reference,
    )
    weight = jnp.asarray(alpha, moves.dtype)
    return _regularised_win_rate(pi, other, moves, matrix, mu, initial_state, weight)


@jax.jit
def _regularised_win_rate(pi, other, moves, matrix, mu, initial_state, alpha):
    laws = [_occupancy(player, moves, initial_state)[-1] for player in (pi, other)]
    wins = jnp.sum(laws[0][:, None] * matrix * laws[1])
    kls = jnp.stack([_trajectory_kl(player, mu, moves, initial_state) for player in (pi, other)])
    # Where both leave the reference's support, their infinite penalties cancel.
    penalties = _penalty(alpha, jnp.where(jnp.all(jnp.isinf(kls)), 0, kls))
    return wins - penalties[0] + penalties[1]


@jax.jit
def soft_optimum(
    transition: Float[Array, "H X Y X"],
    final_values: Float[Array, " X"],
    reference: Float[Array, "H X Y"],
    alpha: Float[Array, ""],
) -> tuple[Float[Array, "H X Y"], Float[Array, " X"]]:
    r"""Returns the best policy for fixed final values less alpha KL_p to the reference.

    .. math:: \pi(y \mid x_h) \propto \mu(y \mid x_h) e^{Q(x_h, y) / \alpha}, \qquad
              V(x_h) = \alpha \log \sum_y \mu(y \mid x_h) e^{Q(x_h, y) / \alpha}

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_values: what a final state is worth. [X].
      reference: mu. [H, X, Y].
      alpha: > 0, weight of the divergence.

    Returns:
      The policy [H, X, Y], and the values of the states of the first turn [X].
    """

    def turn(values, inputs):
        move, log_reference = inputs
        logits = log_reference + jnp.matmul(move, values, precision="highest") / alpha
        return alpha * jax.nn.logsumexp(logits, axis=-1), jax.nn.softmax(logits, axis=-1)

    inputs = (transition, jnp.log(reference))
    values, policy = jax.lax.scan(turn, final_values, inputs, reverse=True)
    return policy, values


def multi_turn_duality_gap(
    policy: Float[Array, "H X Y"],
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    initial_state: StateIndex = 0,
    *,
    alpha: Knob,
) -> Float[Array, ""]:
    r"""Returns how far a policy is from the equilibrium of the regularised game of many turns.

    .. math:: \max_p P_\alpha(p \succ \pi) - \min_q P_\alpha(\pi \succ q)
              = 2 \left( \max_p P_\alpha(p \succ \pi) - \tfrac12 \right)

    The best response is a soft-optimal policy, so that the gap is a closed form.

    Args:
      policy: pi. [H, X, Y].
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's; it plus its
        transpose is 1. [X, X].
      reference: mu. [H, X, Y].
      initial_state: where every conversation starts. May be traced.
      alpha: > 0, weight of the divergences, 1/nats. May be traced.

    Returns:
      The gap, at least 0 up to rounding, and 0 at the equilibrium alone.

    Raises:
      ValueError: a shape is wrong, or `alpha` is not positive.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    _checks.positive("alpha", alpha)
    moves, matrix, pi, mu = arguments(
        transition, final_preference=final_preference, policy=policy, reference=reference
    )
    weight = jnp.asarray(alpha, moves.dtype)
    return _duality_gap(pi, moves, matrix, mu, initial_state, weight)


@jax.jit
def _duality_gap(pi, moves, matrix, mu, initial_state, alpha):
    law = _occupancy(pi, moves, initial_state)[-1]
    worth = jnp.matmul(matrix - 0.5, law, precision="highest")
    _, values = soft_optimum(moves, worth, mu, alpha)
    return 2 * (values[initial_state] + alpha * _trajectory_kl(pi, mu, moves, initial_state))
