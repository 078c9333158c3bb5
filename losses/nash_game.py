r"""The regularised preference game of Nash learning from human feedback, where its table is known.

Laws over A actions enter as probabilities, the game as a table :math:`P_{ij}`, the probability that
i beats j. What is impossible under a law has probability 0 and never gives NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def regularised_preference(
    policy: Float[Array, "*B A"],
    opponent: Float[Array, "*B A"],
    preference: Float[Array, "*B A A"],
    reference: Float[Array, "*B A"],
    *,
    tau: Knob,
) -> Float[Array, "*B"]:
    r"""Returns what a policy scores against an opponent in the regularised preference game.

    .. math:: P_\tau(\pi \succ \pi') = \sum_{i, j} \pi_i P_{ij} \pi'_j
              - \tau KL(\pi, \pi_{ref}) + \tau KL(\pi', \pi_{ref})

    It is 1/2 where the two players agree. Gradients flow to all arrays.

    Args:
      policy: probabilities of the first player's actions. [..., A].
      opponent: probabilities of the second player's. [..., A].
      preference: P[i, j], the probability that i beats j: P plus its transpose is 1. [..., A, A].
      reference: probabilities of the reference. [..., A].
      tau: >= 0, the weight of the KL divergences, 1/nats; 0 is the plain game, in which the
        reference has no say. A scalar or [...]; may be traced.

    Returns:
      Scores: -inf where the policy alone leaves the support of the reference, inf where the
      opponent alone does; where both do, their infinite penalties cancel. [...].

    Raises:
      ValueError: the shapes do not fit, or `tau` is negative.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    game, weight, first, second, anchor = _game(
        preference, tau, policy=policy, opponent=opponent, reference=reference
    )
    # Products and sums, not a matrix product: an accelerator would round its inputs.
    wins = jnp.sum(first * jnp.sum(game * second[..., None, :], axis=-1), axis=-1)
    penalty, other = _kl(first, anchor), _kl(second, anchor)
    cancel = jnp.isinf(penalty) & jnp.isinf(other)
    penalty, other = (jnp.where(cancel, 0, kl) for kl in (penalty, other))
    return wins - _times(weight, penalty) + _times(weight, other)


def regularised_best_response(
    policy: Float[Array, "*B A"],
    preference: Float[Array, "*B A A"],
    reference: Float[Array, "*B A"],
    *,
    tau: Knob,
) -> Float[Array, "*B A"]:
    r"""Returns the law that scores highest against a policy in the regularised preference game.

    .. math:: \pi^{br}_i \propto \pi_{ref, i} \exp \left( \tfrac1\tau \sum_j P_{ij} \pi_j \right)

    The equilibrium is the one policy that is its own best response. At tau 0 it is the limit of
    tau to 0: the reference, restricted to its actions that win most often. Gradients flow to all
    arrays.

    Args:
      policy: probabilities of the opponent's actions. [..., A].
      preference: P[i, j], the probability that i beats j. [..., A, A].
      reference: probabilities of the reference; an action of probability 0 stays at 0. [..., A].
      tau: >= 0, the weight of the KL divergence, 1/nats. A scalar or [...]; may be traced.

    Returns:
      Probabilities. [..., A].

    Raises:
      ValueError: the shapes do not fit, or `tau` is negative.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    game, weight, opponent, anchor = _game(preference, tau, policy=policy, reference=reference)
    wins = jnp.sum(game * opponent[..., None, :], axis=-1)
    regular, _, tilts = _tilts(wins, anchor, weight)
    best = jnp.where(regular[..., None], tilts, jnp.where(tilts == anchor, anchor, 0))
    return best / jnp.sum(best, axis=-1, keepdims=True)


def duality_gap(
    policy: Float[Array, "*B A"],
    preference: Float[Array, "*B A A"],
    reference: Float[Array, "*B A"],
    *,
    tau: Knob,
) -> Float[Array, "*B"]:
    r"""Returns how far a policy is from the equilibrium of the regularised preference game.

    .. math:: \max_p P_\tau(p \succ \pi) - \min_q P_\tau(\pi \succ q), \qquad
              \max_p P_\tau(p \succ \pi) = \tau \log \sum_i \pi_{ref, i}
              e^{\sum_j P_{ij} \pi_j / \tau} + \tau KL(\pi, \pi_{ref})

    Both sides are closed forms, so a `tau` that is traced costs nothing. At tau 0 the log-sum-exp
    is its limit, the highest win-rate of an action of the reference's support. Gradients flow to
    all arrays; that of `tau` itself holds above 0 only.

    Args:
      policy: probabilities of actions. [..., A].
      preference: P[i, j], the probability that i beats j. [..., A, A].
      reference: probabilities of the reference; an action of probability 0 is open to no player.
        [..., A].
      tau: >= 0, the weight of the KL divergences, 1/nats; 0 is the plain game. A scalar or [...];
        may be traced.

    Returns:
      Gaps, >= 0 up to rounding, and 0 at the equilibrium alone; inf where tau is positive and the
      policy leaves the support of the reference. [...].

    Raises:
      ValueError: the shapes do not fit, or `tau` is negative.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    game, weight, player, anchor = _game(preference, tau, policy=policy, reference=reference)
    wins = jnp.sum(game * player[..., None, :], axis=-1)
    defeats = jnp.sum(game * player[..., :, None], axis=-2)
    penalty = _times(weight, _kl(player, anchor))
    return _best_value(wins, anchor, weight) + _best_value(-defeats, anchor, weight) + 2 * penalty


def _best_value(
    payoffs: Float[Array, "*B A"], reference: Float[Array, "*B A"], tau: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """Returns the maximum over laws p of p . payoffs - tau KL(p, reference). [...]."""
    regular, highest, tilts = _tilts(payoffs, reference, tau)
    return highest + jnp.where(regular, tau * jnp.log(jnp.sum(tilts, axis=-1)), 0)


def _tilts(
    payoffs: Float[Array, "*B A"], reference: Float[Array, "*B A"], tau: Float[Array, "*B"]
) -> tuple[Array, Float[Array, "*B"], Float[Array, "*B A"]]:
    """Returns whether tau > 0, the highest payoff m, and reference * exp((payoffs - m) / tau).

    With 1 in the place of a tau of 0, so that nothing is divided by 0 and the best are those whose
    tilt is the reference itself.
    """
    regular, possible = tau > 0, reference > 0
    highest = jnp.max(jnp.where(possible, payoffs, -jnp.inf), axis=-1)
    # The closed form does not depend on m, which is there against overflow; the limit is m.
    highest = jnp.where(regular, jax.lax.stop_gradient(highest), highest)
    behind = jnp.where(possible, payoffs - highest[..., None], 0)
    return regular, highest, reference * jnp.exp(behind / jnp.where(regular, tau, 1)[..., None])


def _kl(first: Float[Array, "*B A"], second: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Returns KL(first, second); inf outside the support of `second`, 0 log 0 = 0. [...]."""
    taken, inside = first > 0, second > 0
    both = taken & inside
    logs = jnp.log(jnp.where(both, first, 1)) - jnp.log(jnp.where(both, second, 1))
    return jnp.sum(jnp.where(both, first * logs, jnp.where(taken, jnp.inf, 0)), axis=-1)


def _times(weight: Float[Array, "*B"], penalty: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns their product, 0 where the weight is 0: 0 times infinity would be NaN. [...]."""
    return weight * jnp.where((weight > 0) | jnp.isfinite(penalty), penalty, 0)


def _game(preference: Array, tau: Knob, **laws: Array) -> tuple[Array, ...]:
    """Checks a game and laws over its actions: the game, tau as [...], then the laws, promoted."""
    promoted = _checks.floats(**laws)
    game = _checks.as_float("preference", preference)
    shape = promoted[0].shape
    if not shape or game.shape != (*shape, shape[-1]):
        raise ValueError(
            f"preference must be [..., A, A] where {next(iter(laws))} is [..., A], got "
            f"{game.shape} and {shape}."
        )
    _checks.in_range("tau", tau, 0, float("inf"))
    weight = _checks.knob("tau", tau, promoted[0][..., 0])
    return game, jnp.broadcast_to(weight, shape[:-1]), *promoted
