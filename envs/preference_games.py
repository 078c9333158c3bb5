r"""Preference games of one turn: small cyclic ones with known equilibria, random and measured ones.

A game is a matrix of preferences P and a reference policy: P[i, j] is the probability that action i
is preferred to action j, so that P + P^T = 1 and the diagonal is 1/2. The games with names are
cyclic: no reward explains them. Their equilibria without regularisation are in the docstrings; for
three actions with advantages a of 1 over 2, b of 2 over 3 and c of 3 over 1, all positive, it is
(b, c, a) / (a + b + c).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


class PreferenceGame(NamedTuple):
    """A preference matrix and the policy that regularises.

    Attributes:
      preference: probability that the row's action is preferred to the column's; it and its
        transpose sum to 1. [A, A].
      reference: probabilities of the reference policy. [A].
    """

    preference: Float[Array, "A A"]
    reference: Float[Array, " A"]

    @property
    def num_actions(self) -> int:
        """Number A of actions."""
        return self.preference.shape[0]


def _game(preference: Array, reference: Array | None) -> PreferenceGame:
    """Puts a reference beside a matrix; None is the uniform one."""
    num_actions = preference.shape[0]
    if reference is None:
        reference = jnp.full(num_actions, 1 / num_actions, preference.dtype)
    if reference.shape != (num_actions,):
        raise ValueError(f"reference must have shape ({num_actions},), got {reference.shape}.")
    return PreferenceGame(preference, jnp.asarray(reference, preference.dtype))


def rock_paper_scissors(reference: Float[Array, " 3"] | None = None) -> PreferenceGame:
    """Returns the game in which 1 beats 2, 2 beats 3 and 3 beats 1, always.

    Args:
      reference: the reference policy; None for the uniform one. [3].

    Returns:
      The game; its equilibrium without regularisation is uniform.

    Raises:
      ValueError: `reference` has another shape.
    """
    return _game(jnp.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]), reference)


def dice(reference: Float[Array, " 3"] | None = None) -> PreferenceGame:
    """Returns the game of three non-transitive dice: 1 beats 2 beats 3 beats 1, in 5 throws of 9.

    Args:
      reference: the reference policy; None for the uniform one. [3].

    Returns:
      The game; its equilibrium without regularisation is uniform.

    Raises:
      ValueError: `reference` has another shape.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    more, less = 5 / 9, 4 / 9
    matrix = jnp.array([[0.5, more, less], [less, 0.5, more], [more, less, 0.5]])
    return _game(matrix, reference)


def asymmetric_cycle(reference: Float[Array, " 3"] | None = None) -> PreferenceGame:
    """Returns a cycle of advantages 0.4, 0.3 and 0.3.

    Args:
      reference: the reference policy; None for the uniform one. [3].

    Returns:
      The game; its equilibrium without regularisation is (0.3, 0.3, 0.4).

    Raises:
      ValueError: `reference` has another shape.
    """
    return _game(jnp.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]), reference)


def four_actions(reference: Float[Array, " 4"] | None = None) -> PreferenceGame:
    """Returns a game of four actions with cycles, one of which is never worth playing.

    Args:
      reference: the reference policy; None for the uniform one. [4].

    Returns:
      The game; its equilibrium without regularisation is (1, 4, 0, 2) / 7.

    Raises:
      ValueError: `reference` has another shape.
    """
    matrix = jnp.array(
        [
            [0.5, 0.6, 0.7, 0.3],
            [0.4, 0.5, 0.65, 0.55],
            [0.3, 0.35, 0.5, 0.8],
            [0.7, 0.45, 0.2, 0.5],
        ]
    )
    return _game(matrix, reference)


def rater_types(
    imbalance: float | Float[Array, ""], reference: Float[Array, " 3"] | None = None
) -> PreferenceGame:
    r"""Returns the preferences of a population of three types of raters.

    Types have probabilities (1/3 - e, 1/3 + e/2, 1/3 + e/2). The first prefers 2 to 1, the second 1
    to 3, the third 3 to 2; all other pairs are ties, labelled by a fair coin. A reward fitted to
    uniform pairs prefers 1 to 2 where e > 0 and 2 to 1 where e < 0: a policy that maximises it
    jumps. The equilibrium, (1/3 + e/2, 1/3 + e/2, 1/3 - e), moves with e.

    Args:
      imbalance: e, in [-1/3, 1/3]. May be traced.
      reference: the reference policy; None for the uniform one. [3].

    Returns:
      The game.

    Raises:
      ValueError: `imbalance` is a number out of range, or `reference` has another shape.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023, section 3.2.
      https://arxiv.org/abs/2312.00886
    """
    if isinstance(imbalance, int | float) and not abs(imbalance) <= 1 / 3:
        raise ValueError(f"imbalance must be in [-1/3, 1/3], got {imbalance}.")
    first = 1 / 3 - jnp.asarray(imbalance, float)
    other = 1 / 3 + jnp.asarray(imbalance, float) / 2
    # The advantage of a preferred action is half the share of the type that prefers it.
    zero = jnp.zeros(())
    advantages = jnp.stack(
        [
            jnp.stack([zero, -first, other]),
            jnp.stack([first, zero, -other]),
            jnp.stack([-other, other, zero]),
        ]
    )
    return _game(0.5 + advantages / 2, reference)


def bradley_terry(
    rewards: Float[Array, " A"], reference: Float[Array, " A"] | None = None
) -> PreferenceGame:
    r"""Returns the game that a reward explains: P(i over j) = sigmoid(r_i - r_j).

    Args:
      rewards: one for each action. [A].
      reference: the reference policy; None for the uniform one. [A].

    Returns:
      The game; without regularisation its equilibrium is the action of the highest reward.

    Raises:
      ValueError: `rewards` is no vector, or `reference` has another shape.
    """
    if rewards.ndim != 1:
        raise ValueError(f"rewards must have shape [A], got {rewards.shape}.")
    return _game(jax.nn.sigmoid(rewards[:, None] - rewards), reference)


def random_antisymmetric(
    key: PRNGKeyArray, *, num_actions: int, reference: Float[Array, " A"] | None = None
) -> PreferenceGame:
    """Draws a game: each pair's preference is uniform in [0, 1], whatever the others are.

    Args:
      key: randomness; consumed.
      num_actions: number A of actions, at least 1.
      reference: the reference policy; None for the uniform one. [A].

    Returns:
      The game, in the default float dtype; P and its transpose sum to 1 exactly.

    Raises:
      ValueError: `num_actions` is below 1, or `reference` has another shape.
    """
    if num_actions < 1:
        raise ValueError(f"num_actions must be at least 1, got {num_actions}.")
    draws = jnp.triu(
        jax.random.uniform(key, (num_actions, num_actions), minval=-0.5, maxval=0.5), 1
    )
    return _game(0.5 + draws - draws.T, reference)


def from_win_rates(
    win_rates: Float[np.ndarray, "A A"],
    reference: Float[Array, " A"] | None = None,
    *,
    tolerance: float = 1e-6,
) -> PreferenceGame:
    """Makes a game of measured win-rates.

    Args:
      win_rates: share of games that the row has won against the column, a tie counting half; NumPy,
        since its values are checked. [A, A].
      reference: the reference policy; None for the uniform one. [A].
      tolerance: how far the matrix and its transpose may be from summing to 1 at any entry; what is
        off, by rounding or because both sides were measured apart, is divided between the two.

    Returns:
      The game; P and its transpose sum to 1 to rounding error.

    Raises:
      ValueError: the matrix is not square, not finite, out of [0, 1], or does not sum to 1 with its
        transpose; or `reference` has another shape.
    """
    rates = np.asarray(win_rates, np.float64)
    _check_square("win_rates", rates)
    if rates.min() < 0 or rates.max() > 1:
        raise ValueError(
            f"win_rates must be in [0, 1], got values from {rates.min():g} to {rates.max():g}."
        )
    off = np.abs(rates + rates.T - 1)
    if off.max() > tolerance:
        row, column = np.unravel_index(off.argmax(), off.shape)
        raise ValueError(
            f"win_rates and their transpose must sum to 1 within {tolerance:g}, got "
            f"{rates[row, column]:g} at [{row}, {column}] and {rates[column, row]:g} at "
            f"[{column}, {row}]."
        )
    return _game(jnp.asarray(0.5 + (rates - rates.T) / 2, float), reference)


def from_payoffs(
    payoffs: Float[np.ndarray, "A A"],
    reference: Float[Array, " A"] | None = None,
    *,
    scale: float,
    tolerance: float = 1e-6,
) -> PreferenceGame:
    r"""Makes a game of the payoffs of a symmetric zero-sum game: P = 1/2 + payoff / (2 scale).

    Where a payoff is wins minus losses of `scale` rounds, P is the share of rounds that are won, a
    tie counting half.

    Args:
      payoffs: what the row gets against the column; antisymmetric. NumPy, since its values are
        checked. [A, A].
      reference: the reference policy; None for the uniform one. [A].
      scale: > 0, the payoff of one who always wins.
      tolerance: how far from 1 the sum of P and its transpose may be at any entry, as in
        `from_win_rates`.

    Returns:
      The game.

    Raises:
      ValueError: the matrix is not square, not finite, larger than `scale`, or not antisymmetric;
        or `scale` is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}.")
    values = np.asarray(payoffs, np.float64)
    _check_square("payoffs", values)
    if np.abs(values).max() > scale:
        raise ValueError(
            f"payoffs must be at most scale = {scale:g} in size, got {np.abs(values).max():g}."
        )
    return from_win_rates(0.5 + values / (2 * scale), reference, tolerance=tolerance)


def _check_square(name: str, values: np.ndarray) -> None:
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.size:
        raise ValueError(f"{name} must have shape [A, A], got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {np.sum(~np.isfinite(values))} others.")
