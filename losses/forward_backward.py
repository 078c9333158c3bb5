r"""Forward-backward representations: successor measures of a family of policies, as products.

The successor measure of a policy counts, discounted, the states that follow,

.. math:: M^\pi(s, a, X) = \sum_{k \ge 0} \gamma^k P(S_{k + 1} \in X \mid S_0 = s, A_0 = a, \pi),

from the NEXT state on and not normalised: its mass is 1 / (1 - gamma), and (1 - gamma) M is the
geometric horizon model of `flow`. It solves :math:`M = P + \gamma P^\pi M`. With features F(s, a)
and B(s) its density with respect to the law rho of the pool's states is modelled as

.. math:: M^\pi(s, a, ds^+) \approx F(s, a)^\top B(s^+) \, \rho(ds^+).

Then the value of any reward r(s'), given for the state that is reached, is
:math:`Q(s, a) = F(s, a)^\top w_r` with :math:`w_r = E_\rho[B(s) r(s)]`.

Both losses couple a batch: an example meets every state of a pool, as a rule the batch's own next
states. The pool has no leading axes; it is the same for all examples, over all devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks, _vectors


def _pool(like: Array, **arrays: Array) -> list[Array]:
    """Checks features of the pool's states, [N, W], and promotes them to the dtype of others."""
    promoted = _vectors.vectors(**arrays)
    for name, array in zip(arrays, promoted, strict=True):
        if array.ndim != 2 or array.shape[1] != like.shape[-1]:
            raise ValueError(f"{name} must be [N, {like.shape[-1]}], got {array.shape}.")
    return [array.astype(like.dtype) for array in promoted]


def _pool_mean(values: Array, pool_weights: Array | None, example: Array) -> Array:
    """Averages values [..., N] over the pool; `example` is [..., W], for the leading shape."""
    if pool_weights is None:
        return jnp.mean(values, axis=-1)
    weights = jax.lax.stop_gradient(_checks.as_float("pool_weights", pool_weights))
    expected = (*example.shape[:-1], values.shape[-1])
    if weights.shape != expected:
        raise ValueError(f"pool_weights must be {expected}, got {weights.shape}.")
    weights = weights.astype(values.dtype)
    total = jnp.sum(weights, axis=-1)
    share = weights / jnp.where(total > 0, total, 1)[..., None]
    return jnp.sum(values * share, axis=-1)


def forward_backward_loss(
    forward: Float[Array, "*B E W"],
    next_backward: Float[Array, "*B W"],
    pool_backward: Float[Array, "N W"],
    target_forward: Float[Array, "*B E W"],
    target_pool_backward: Float[Array, "N W"],
    discounts: Float[Array, "*B"],
    *,
    pool_weights: Float[Array, "*B N"] | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the loss whose minimum is one step of the Bellman equation of successor measures.

    .. math:: \ell = \sum_e \Big\{ \tfrac12 \sum_j p_j \big[ F_e^\top B(s_j) - \gamma \min_{e'}
              \bar F_{e'}^\top \bar B(s_j) \big]^2 - F_e^\top B(s') \Big\}

    with the target's features at the next state and the policy's action there. In expectation over
    the transition and the pool's rho it is half the squared distance in L2(rho) of the density of M
    to that of :math:`P + \gamma P^\pi \bar M`, less a constant: the derivative in M(s, a, s+) is
    rho(s+) (M - gamma E[Mbar]) - P(s+), so no density of P is needed. The papers print twice this.
    Gradients flow to `forward`, `next_backward` and `pool_backward`; the target is stopped here.

    Args:
      forward: F, of the state and action, of E heads. [..., E, W].
      next_backward: B, of the example's own next state. [..., W].
      pool_backward: B, of the pool's states. [N, W].
      target_forward: F-bar, at the next state and the policy's action. [..., E, W].
      target_pool_backward: B-bar, of the pool's states. [N, W].
      discounts: gamma, 0 where the transition ended the episode by itself. [...].
      pool_weights: >= 0, scaled to the p_j of each example, which sum to 1; 0 leaves a state out,
        whose features must be finite all the same. An example's own next state is no independent
        sample of rho and belongs left out. None for equal ones; an example without any has no
        quadratic term. [..., N].

    Returns:
      Losses, SUMMED over E, which can be negative. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Touati and Ollivier, Learning One Representation to Optimize All Rewards, 2021.
      https://arxiv.org/abs/2103.07945
      Touati et al., Does Zero-Shot Reinforcement Learning Exist?, 2022.
      https://arxiv.org/abs/2209.14935
    """
    heads, target_heads = _vectors.vectors(forward=forward, target_forward=target_forward)
    if heads.ndim < 2:
        raise ValueError(f"forward must be [..., E, W], got {heads.shape}.")
    (own,) = _vectors.vectors(next_backward=next_backward)
    if own.shape != (*heads.shape[:-2], heads.shape[-1]):
        raise ValueError(
            f"next_backward must be {(*heads.shape[:-2], heads.shape[-1])}, got {own.shape}."
        )
    dtype = jnp.promote_types(heads.dtype, own.dtype)
    heads, own = heads.astype(dtype), own.astype(dtype)
    pool, target_pool = _pool(
        own, pool_backward=pool_backward, target_pool_backward=target_pool_backward
    )
    gamma = _vectors.per_vector("discounts", _checks.as_float("discounts", discounts), own)
    following = jnp.min(target_heads.astype(dtype) @ target_pool.T, axis=-2)
    (target,) = _checks.stop(gamma.astype(dtype)[..., None] * following)
    errors = heads @ pool.T - target[..., None, :]
    distance = _pool_mean(jnp.sum(jnp.square(errors), axis=-2), pool_weights, own)
    reached = jnp.sum(heads * own[..., None, :], axis=(-2, -1))
    return distance / 2 - reached


def orthonormality_loss(
    backward: Float[Array, "*B W"],
    pool_backward: Float[Array, "N W"],
    *,
    pool_weights: Float[Array, "*B N"] | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the loss that keeps the backward features orthonormal under rho.

    .. math:: \ell = \sum_j p_j (B^\top B(s_j))^2 - 2 \lVert B \rVert^2 + W

    In expectation over independent states of rho it is :math:`\lVert E[B B^\top] - I \rVert_F^2`,
    at least 0. It takes nothing from what F and B can represent, since F B is the same for (F A)
    and (A^-1 B), and fixes that freedom but for rotations. Gradients flow to both arguments.

    Args:
      backward: B, of a state. [..., W].
      pool_backward: B, of the pool's states. [N, W].
      pool_weights: as in `forward_backward_loss`; the state itself belongs left out. [..., N].

    Returns:
      Losses; a single one can be negative. [...].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Touati et al., Does Zero-Shot Reinforcement Learning Exist?, 2022.
      https://arxiv.org/abs/2209.14935
    """
    (own,) = _vectors.vectors(backward=backward)
    (pool,) = _pool(own, pool_backward=pool_backward)
    overlap = _pool_mean(jnp.square(own @ pool.T), pool_weights, own)
    return overlap - 2 * jnp.sum(jnp.square(own), axis=-1) + own.shape[-1]
