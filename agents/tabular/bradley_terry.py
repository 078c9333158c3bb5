"""Rewards fitted to a preference matrix: what RLHF makes of preferences, cyclic or not."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax import losses
from bellmax.agents.tabular import _games

_HALVINGS = 31
_NUM_STEPS = 50


def bradley_terry_rewards(
    preference: Float[Array, "A A"], law: Float[Array, " A"]
) -> Float[Array, " A"]:
    r"""Returns the rewards of maximum likelihood, over pairs drawn independently from a law.

    .. math:: \max_r \sum_{i, j} w_i w_j P_{ij} \log \sigma(r_i - r_j)

    50 Newton steps with a line search, on a convex function. Where P is itself sigma(r_i - r_j),
    the fit is exact; otherwise it depends on the law.

    Args:
      preference: probability that the row's action beats the column's, such that the maximum
        exists: no group of actions always beats the others. [A, A].
      law: w, the law of both actions of a pair. [A].

    Returns:
      Rewards of mean 0 under the law; 0 for actions that are in no pair. [A].

    Raises:
      ValueError: a shape is wrong.
      TypeError: an array is not floating point.

    References:
      Bradley and Terry, Rank analysis of incomplete block designs, 1952.
    """
    return _fit(*_games.game(preference, law=law))


@jax.jit
def _fit(matrix, weights):
    pairs = weights[:, None] * weights * matrix
    step_sizes = 0.5 ** jnp.arange(_HALVINGS, dtype=matrix.dtype)

    def loss(rewards):
        rows, columns = jnp.broadcast_arrays(rewards[:, None], rewards[None, :])
        return jnp.sum(pairs * losses.bradley_terry_loss(rows, columns))

    # The loss does not see a common constant, nor what is in no pair: both are held.
    held = jnp.outer(weights, weights) + jnp.diag((weights == 0).astype(matrix.dtype))

    def step(_, rewards):
        gradient = jax.grad(loss)(rewards)
        direction = jnp.linalg.solve(jax.hessian(loss)(rewards) + held, gradient)
        trials = rewards - step_sizes[:, None] * direction
        values = jax.vmap(loss)(trials)
        # The longest step among those that are equal to rounding: at the end, a full one.
        least = jnp.min(values)
        good = values <= least + 4 * jnp.finfo(matrix.dtype).eps * jnp.abs(least)
        return trials[jnp.argmax(good)]

    rewards = jax.lax.fori_loop(0, _NUM_STEPS, step, jnp.zeros_like(weights))
    return rewards - jnp.sum(weights * rewards)
