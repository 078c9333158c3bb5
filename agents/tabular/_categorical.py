r"""What the exact categorical solvers share: the projected backup, and the inverse of one minus it.

A backup takes one law for every state and action, N = S A of them, and gives another:

.. math:: (L \eta)(x, a) = \sum_{x'} P(x' \mid x, a) \, \Pi \, (b_{r(x, a), \gamma})_\#
          \sum_{a'} c(x', a') \, \eta(x', a')

with c the coefficients: a policy, or a policy times traces. A chain of states is the case A = 1,
c = 1. Differences of laws have mass 0; they are held as the K - 1 values of their cumulative
function that are not fixed. There Pi neither moves the mean (unless atoms leave the support) nor
stretches an L1 distance, so that L contracts it by at least gamma times the largest sum of
coefficients.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax import losses
from bellmax.losses import _checks, categorical
from bellmax.losses._checks import Knob


class Backup(NamedTuple):
    """A projected backup.

    Attributes:
      transition: probabilities of the next state. [N, S].
      coefficients: c, what the law of each action counts at the next state. [S, A].
      atoms: r + gamma z, where a backup moves the atoms to. [N, K].
      support: z, increasing. [K].
    """

    transition: Float[Array, "N S"]
    coefficients: Float[Array, "S A"]
    atoms: Float[Array, "N K"]
    support: Float[Array, " K"]


def chain(
    transition: Any, reward: Any, discount: Knob, support: Any, **laws: Any
) -> tuple[Backup, tuple[Array, ...]]:
    """Checks a Markov chain with rewards, a support, and laws of its states.

    Args:
      transition: probabilities. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1].
      support: z, strictly increasing. [K].
      **laws: arrays by argument name. [S, K].

    Returns:
      The backup of the chain, and the laws, in one dtype.

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    table = _checks.as_float("transition", transition)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"transition must have shape [S, S], got {table.shape}.")
    size = table.shape[0]
    ones = jnp.ones((size, 1), table.dtype)
    return _backup(table, reward, (size,), ones, discount, support, laws)


def pairs(
    transition: Any,
    reward: Any,
    coefficients: dict[str, Any],
    discount: Knob,
    support: Any,
    **laws: Any,
) -> tuple[list[Backup], tuple[Array, ...]]:
    """Checks a decision process, what counts at the next state, a support, and laws of its pairs.

    Args:
      transition: probabilities. [S, A, S].
      reward: of each pair. [S, A].
      coefficients: arrays by argument name; a backup is made for each. [S, A].
      discount: gamma, in [0, 1].
      support: z, strictly increasing. [K].
      **laws: arrays by argument name. [S, A, K].

    Returns:
      One backup for each of the coefficients, and the laws, in one dtype.

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    table = _checks.as_float("transition", transition)
    if table.ndim != 3 or table.shape[0] != table.shape[2]:
        raise ValueError(f"transition must have shape [S, A, S], got {table.shape}.")
    num_states, num_actions, _ = table.shape
    backups, found = [], ()
    for name, value in coefficients.items():
        weights = _of_shape(name, value, (num_states, num_actions))
        flat = table.reshape(num_states * num_actions, num_states)
        shape = (num_states, num_actions)
        backup, found = _backup(flat, reward, shape, weights, discount, support, laws)
        backups.append(backup)
    return backups, found


def _of_shape(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    array = _checks.as_float(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}.")
    return array


def _backup(transition, reward, shape, coefficients, discount, support, laws):
    _checks.in_range("discount", discount, 0, 1)
    rewards = _of_shape("reward", reward, shape)
    grid = categorical.as_support(support, dtype=transition.dtype)
    arrays = [_of_shape(name, law, (*shape, grid.size)) for name, law in laws.items()]
    dtype = jnp.result_type(transition, rewards, coefficients, *arrays)
    grid = categorical.as_support(support, dtype=dtype)
    atoms = rewards.astype(dtype).reshape(-1, 1) + jnp.asarray(discount, dtype) * grid
    backup = Backup(transition.astype(dtype), coefficients.astype(dtype), atoms, grid)
    return backup, tuple(array.astype(dtype) for array in arrays)


def mix(backup: Backup, values: Float[Array, "N J"]) -> Float[Array, "N J"]:
    """Averages over next states and actions; nothing is moved yet.

    Args:
      backup: the backup.
      values: weights or cumulative values of laws. [N, J].

    Returns:
      The same of the mixtures. [N, J].
    """
    num_states, num_actions = backup.coefficients.shape
    per_action = values.reshape(num_states, num_actions, values.shape[-1])
    counted = jnp.sum(backup.coefficients[..., None] * per_action, axis=1)
    return jnp.matmul(backup.transition, counted, precision="highest")


def on_weights(backup: Backup, weights: Float[Array, "N K"]) -> Array:
    """Applies the backup to laws.

    Args:
      backup: the backup.
      weights: of the laws, signed ones allowed. [N, K].

    Returns:
      Weights. [N, K].
    """
    mixed = mix(backup, weights)
    return losses.categorical_projection(backup.atoms, mixed, backup.support)


def on_differences(backup: Backup, values: Float[Array, "N J"]) -> Array:
    """Applies the backup to differences of laws.

    Args:
      backup: the backup.
      values: cumulative values of the differences, but for the last, which is 0. [N, K - 1].

    Returns:
      Cumulative values. [N, K - 1].
    """
    moved = losses.categorical_projection(
        backup.atoms, to_weights(mix(backup, values)), backup.support
    )
    return to_differences(moved)


def to_differences(weights: Float[Array, "*B K"]) -> Float[Array, "*B J"]:
    """Returns cumulative values, but for the last.

    Args:
      weights: of mass 0. [..., K].

    Returns:
      Cumulative sums. [..., K - 1].
    """
    return jnp.cumsum(weights, axis=-1)[..., :-1]


def to_weights(values: Float[Array, "*B J"]) -> Float[Array, "*B K"]:
    """Returns the weights of cumulative values: the inverse of `to_differences`.

    Args:
      values: cumulative sums. [..., K - 1].

    Returns:
      Weights of mass 0. [..., K].
    """
    zero = jnp.zeros_like(values[..., :1])
    return jnp.diff(jnp.concatenate([zero, values, zero], axis=-1), axis=-1)


def matrix(backup: Backup) -> Float[Array, "M M"]:
    """Returns the backup of differences as a matrix, M = N (K - 1).

    Args:
      backup: the backup.

    Returns:
      Row and column (K - 1) n + i: value i of the difference at pair n. [M, M].
    """
    num_pairs, num_atoms = backup.atoms.shape
    laws = backup.transition[:, :, None] * backup.coefficients
    laws = laws.reshape(num_pairs, num_pairs)
    moves = cdf_matrices(backup)
    size = num_pairs * (num_atoms - 1)
    return jnp.einsum("xy,xij->xiyj", laws, moves, precision="highest").reshape(size, size)


def cdf_matrices(backup: Backup) -> Float[Array, "N J J"]:
    """Returns what moving and projecting does to the cumulative values of a difference, by pair.

    Args:
      backup: the backup.

    Returns:
      W, non-negative. [N, K - 1, K - 1].
    """
    num_pairs, num_atoms = backup.atoms.shape
    units = to_weights(jnp.eye(num_atoms - 1, dtype=backup.atoms.dtype))
    shape = (num_pairs, *units.shape)
    moved = losses.categorical_projection(
        jnp.broadcast_to(backup.atoms[:, None], shape),
        jnp.broadcast_to(units, shape),
        backup.support,
    )
    return jnp.swapaxes(to_differences(moved), 1, 2)
