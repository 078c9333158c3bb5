r"""Laws of the return on a support that does not move: categorical dynamic programming and DCFP.

The categorical fixed point is the law of the return that is its own backup, projected:

.. math:: p(x) = \Pi \, (b_{r(x), \gamma})_\# \sum_y P(y \mid x) \, p(y)

Dynamic programming (CDP) iterates the right side; the direct categorical fixed point (DCFP) solves
the linear equation (I - M) F = b in the K - 1 free values of each cumulative function. Its mean is
the value function, exactly, as long as r + gamma z stays inside the support.

The functions of pairs (state, action) evaluate a policy: its law of actions is mixed at the next
state, so that rewards may differ between actions.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.agents.tabular import _categorical, _resolvent
from bellmax.losses._checks import Knob

# Unknowns up to which a system is solved by elimination: beyond, sweeps are faster on 2 cores.
MAX_DENSE = 256
MAX_SWEEPS = 100_000


def categorical_dp_step(
    probs: Float[Array, "S K"],
    transition: Float[Array, "S S"],
    reward: Float[Array, " S"],
    discount: Knob,
    support: Float[Array, " K"],
) -> Float[Array, "S K"]:
    """Returns laws after one sweep of categorical dynamic programming: the module's right side.

    Contracts by `discount` in W1 and by its square root in Cramer distance.

    Args:
      probs: weights of the laws, of any sign. [S, K].
      transition: probabilities of the next state. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1]. May be traced.
      support: z, strictly increasing. [K].

    Returns:
      Weights, of the same total mass. [S, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Rowland et al., An Analysis of Categorical Distributional Reinforcement Learning, 2018.
      https://arxiv.org/abs/1802.08163
    """
    backup, (laws,) = _categorical.chain(transition, reward, discount, support, probs=probs)
    return _step(backup, laws)


def categorical_action_dp_step(
    probs: Float[Array, "S A K"],
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    policy: Float[Array, "S A"],
    discount: Knob,
    support: Float[Array, " K"],
) -> Float[Array, "S A K"]:
    """Returns laws of pairs after one sweep of categorical dynamic programming.

    Args:
      probs: weights of the laws, of any sign. [S, A, K].
      transition: probabilities of the next state. [S, A, S].
      reward: of each pair. [S, A].
      policy: probabilities of actions, of the policy to evaluate. [S, A].
      discount: gamma, in [0, 1]. May be traced.
      support: z, strictly increasing. [K].

    Returns:
      Weights. [S, A, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    (backup,), (laws,) = _categorical.pairs(
        transition, reward, {"policy": policy}, discount, support, probs=probs
    )
    return _step(backup, laws)


def categorical_fixed_point(
    transition: Float[Array, "S S"],
    reward: Float[Array, " S"],
    discount: Knob,
    support: Float[Array, " K"],
    *,
    max_dense: int = MAX_DENSE,
    tolerance: float | None = None,
    max_sweeps: int = MAX_SWEEPS,
) -> Float[Array, "S K"]:
    r"""Returns the categorical fixed point of a Markov chain with rewards (DCFP).

    Up to `max_dense` unknowns, S (K - 1), by elimination; beyond, matrix-free, by sweeps with a
    coarse equation of one state. Both are differentiable in both modes with respect to transition,
    reward and discount (by the implicit function theorem; piecewise, since the projection is), and
    can be jitted and vmapped. `categorical_error_bound` of the result says how exact it is.

    Args:
      transition: probabilities of the next state; rows sum to 1. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1). May be traced.
      support: z, strictly increasing. [K].
      max_dense: unknowns up to which the system is solved by elimination.
      tolerance: of the matrix-free solver, largest W1 error over the length of the support; None
        for about 100 rounding errors of the dtype. It stops before where rounding ends progress.
      max_sweeps: of the matrix-free solver.

    Returns:
      Probabilities, negative ones at most by rounding. [S, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Rowland et al., Near-Minimax-Optimal Distributional Reinforcement Learning with a Generative
      Model, 2024. https://arxiv.org/abs/2402.07598
    """
    backup, _ = _categorical.chain(transition, reward, discount, support)
    return _solve(
        backup,
        discount,
        max_dense=max_dense,
        tolerance=tolerance,
        max_sweeps=max_sweeps,
    )


def categorical_action_fixed_point(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    policy: Float[Array, "S A"],
    discount: Knob,
    support: Float[Array, " K"],
    *,
    max_dense: int = MAX_DENSE,
    tolerance: float | None = None,
    max_sweeps: int = MAX_SWEEPS,
) -> Float[Array, "S A K"]:
    """Returns the categorical fixed point of a policy: the laws of the return of all pairs.

    Args:
      transition: probabilities of the next state; rows sum to 1. [S, A, S].
      reward: of each pair. [S, A].
      policy: probabilities of actions. [S, A].
      discount: gamma, in [0, 1). May be traced.
      support: z, strictly increasing. [K].
      max_dense: as in `categorical_fixed_point`, of S A (K - 1) unknowns.
      tolerance: as there.
      max_sweeps: as there.

    Returns:
      Probabilities. [S, A, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    (backup,), _ = _categorical.pairs(transition, reward, {"policy": policy}, discount, support)
    found = _solve(
        backup,
        discount,
        max_dense=max_dense,
        tolerance=tolerance,
        max_sweeps=max_sweeps,
    )
    return found.reshape(*jnp.shape(reward), found.shape[-1])


def categorical_error_bound(
    probs: Float[Array, "S K"],
    transition: Float[Array, "S S"],
    reward: Float[Array, " S"],
    discount: Knob,
    support: Float[Array, " K"],
) -> Float[Array, ""]:
    r"""Returns a bound on how far laws of mass 1 are from the categorical fixed point, in W1.

    .. math:: \sup_x W_1(p(x), p^*(x)) \le \frac{1}{1 - \gamma} \sup_x W_1(p(x), (\Pi T p)(x))

    Infinite at discount 1; NaN if anything is NaN.

    Args:
      probs: weights of the laws, of mass 1 and any sign. [S, K].
      transition: probabilities of the next state. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1]. May be traced.
      support: z, strictly increasing. [K].

    Returns:
      The bound, in the unit of the support. [].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    backup, (laws,) = _categorical.chain(transition, reward, discount, support, probs=probs)
    moved = _step(backup, laws)
    size = _resolvent.wasserstein_norm(_categorical.to_differences(moved - laws), backup.support)
    return size / (1 - _resolvent.rate(backup, discount))


def categorical_cdf_matrix(
    reward: Float[Array, " S"], discount: Knob, support: Float[Array, " K"]
) -> tuple[Float[Array, "S J J"], Float[Array, "S J"]]:
    r"""Returns what moving and projecting does to cumulative functions: F -> W F + h.

    .. math:: W^x_{ij} = H^x_{ij} - H^x_{i,j+1}, \quad h^x_i = H^x_{iK}, \quad
              H^x_{ij} = \sum_{l \le i} h_l(r(x) + \gamma z_j)

    with h_l the hat functions of the support. W is non-negative, with at most two entries a column
    more than there are clipped atoms.

    Args:
      reward: of each state. [S].
      discount: gamma, in [0, 1]. May be traced.
      support: z, strictly increasing. [K].

    Returns:
      W [S, K - 1, K - 1] and h [S, K - 1], of the K - 1 values before the last, which is 1.

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    transition = jnp.eye(jnp.shape(reward)[0], dtype=jnp.result_type(reward))
    backup, _ = _categorical.chain(transition, reward, discount, support)
    matrices = _categorical.cdf_matrices(backup)
    last = jnp.zeros_like(backup.atoms).at[:, -1].set(1)
    return matrices, _categorical.to_differences(_step(backup, last))


@jax.jit
def _step(backup, probs):
    flat = probs.reshape(backup.atoms.shape)
    return _categorical.on_weights(backup, flat).reshape(probs.shape)


@functools.partial(jax.jit, static_argnames=("max_dense", "tolerance", "max_sweeps"))
def _solve(backup, discount, **options):
    start = jnp.full_like(backup.atoms, 1 / backup.atoms.shape[-1])
    moved = _categorical.on_weights(backup, start)
    right = _categorical.to_differences(moved - start)
    return start + _categorical.to_weights(_resolvent.resolvent(backup, right, discount, **options))
