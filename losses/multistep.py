r"""Multi-step off-policy targets of distributional reinforcement learning.

One trajectory x_0, a_0, r_0, x_1, a_1, ... gives a law for (x_0, a_0), a telescoped sum of signed
terms:

.. math:: \eta(x_0, a_0) \leftarrow \sum_{t=0}^{T-1} c_{1:t} \, (b_{G_t, D_t})_\# \Big(
          \sum_a \pi(a \mid x_{t+1}) \eta(x_{t+1}, a) - c_{t+1} \eta(x_{t+1}, a_{t+1}) \Big)

with :math:`c_{1:t} = c_1 \cdots c_t`, :math:`c_T = 0`, :math:`D_t = \gamma_0 \cdots \gamma_t`,
:math:`G_t = \sum_{s \le t} D_{s-1} r_s`, and :math:`b_{G, D}` moving an atom z to G + D z. The
total mass is 1; single weights can be negative. The traces c, and with them the method's name, are
those of `traces`. At T = 1, and wherever all traces are 0, it is the one-step target.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.losses import categorical, trajectories


class WeightedTargets(NamedTuple):
    """A law of atoms and signed weights, gradient-stopped.

    Attributes:
      targets: where the atoms are. [..., M].
      weights: of total mass 1. [..., M].
    """

    targets: Float[Array, "*B M"]
    weights: Float[Array, "*B M"]


class _Terms(NamedTuple):
    """The terms of the sum.

    Attributes:
      coefficients: what term t makes of the law of each action at x_{t+1}. [..., T, A].
      ended: the mass that stays at G_t, where the trajectory ends with step t. [..., T].
      shifts: G_t. [..., T].
      scales: D_t. [..., T].
    """

    coefficients: Array
    ended: Array
    shifts: Array
    scales: Array


def categorical_multistep_target(
    next_probs: Float[Array, "*B T A K"],
    policy: Float[Array, "*B T A"],
    next_actions: Int[Array, "*B S"],
    rewards: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    traces: Float[Array, "*B S"],
    support: Float[Array, " K"],
) -> Float[Array, "*B K"]:
    r"""Returns the categorical target of (x_0, a_0): the module's sum, projected on the support.

    Each term is projected once, from its own atoms. States are x_1 .. x_T; actions and traces are
    those at x_1 .. x_{T-1}. The mean is that of the first of `off_policy_returns`, unless atoms
    fall outside the support. The target and all that it is made of are gradient-stopped here.

    Args:
      next_probs: weights of the law of each action at x_1 .. x_T, of the target network. Signed
        ones are allowed. [..., T, A, K].
      policy: pi, the probabilities of the policy to evaluate at the same states; one-hot for a
        greedy one. An action of probability 0 that was not taken may hold any law. [..., T, A].
      next_actions: a_1 .. a_{T-1}, taken by the behaviour at x_1 .. x_{T-1}. [..., T - 1].
      rewards: r_0 .. r_{T-1}. [..., T].
      discounts: gamma of each transition, in [0, 1]; 0 where it terminates. What follows a discount
        of 0 may hold anything, rewards included, and does not count. [..., T].
      traces: c_1 .. c_{T-1}, >= 0, of `q_lambda_traces` and the like; 0 cuts, as where an episode
        was truncated and another one begins. What follows a 0 may hold anything. [..., T - 1].
      support: z, strictly increasing. [K].

    Returns:
      Weights of total mass 1, negative ones among them unless the traces exclude it. [..., K].

    Raises:
      ValueError: the shapes do not fit, or the support is none.
      TypeError: an array has the wrong kind of numbers.

    References:
      Tang et al., Off-policy Distributional Q(lambda): Distributional RL without Importance
      Sampling, 2024. https://arxiv.org/abs/2402.05766
      Tang et al., The Nature of Temporal Difference Errors in Multi-step Distributional
      Reinforcement Learning, 2022. https://arxiv.org/abs/2207.07570
    """
    arrays = trajectories.check_steps(
        ("next_probs", next_probs),
        policy,
        next_actions,
        rewards,
        discounts,
        ("traces", traces),
        last_axes=1,
    )
    probs, terms = arrays[0], _telescope(*arrays[1:])
    grid = categorical.on_support("next_probs", probs, support)
    weight = terms.coefficients[..., None]
    # A select and not a product: what an action of weight 0 holds may be NaN.
    weights = jnp.sum(jnp.where(weight != 0, weight * probs, 0), axis=-2)
    # Where an episode ended all atoms lie at G_t, so that any of them can take the mass.
    first = jax.lax.broadcasted_iota(jnp.int32, weights.shape, weights.ndim - 1) == 0
    weights = weights + jnp.where(first, terms.ended[..., None], 0)
    atoms = terms.shifts[..., None] + terms.scales[..., None] * jnp.broadcast_to(
        grid, weights.shape
    )
    flat = (*weights.shape[:-2], weights.shape[-2] * weights.shape[-1])
    target = categorical.categorical_projection(atoms.reshape(flat), weights.reshape(flat), support)
    return jax.lax.stop_gradient(target)


def quantile_multistep_target(
    next_quantiles: Float[Array, "*B T A N"],
    policy: Float[Array, "*B T A"],
    next_actions: Int[Array, "*B S"],
    rewards: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    traces: Float[Array, "*B S"],
) -> WeightedTargets:
    r"""Returns the target of (x_0, a_0) from quantile laws: M = T A N atoms with signed weights.

    The module's sum, each law having N atoms of weight 1 / N; nothing is projected. It is what
    `quantile_huber_loss` takes as targets and weights. Gradient-stopped here.

    With a greedy policy most weights are 0. Two laws a state are enough then: those of (greedy
    action, action taken), policy (1, 0) and next actions 1, for M = 2 T N atoms of the same law.

    Args:
      next_quantiles: theta of each action at x_1 .. x_T, of the target network. [..., T, A, N].
      policy: pi, the probabilities of the policy to evaluate at the same states; one-hot for a
        greedy one. An action of probability 0 that was not taken may hold any law. [..., T, A].
      next_actions: a_1 .. a_{T-1}, taken by the behaviour at x_1 .. x_{T-1}. [..., T - 1].
      rewards: r_0 .. r_{T-1}. [..., T].
      discounts: gamma of each transition, in [0, 1]; 0 where it terminates. What follows a discount
        of 0 may hold anything, rewards included, and does not count. [..., T].
      traces: c_1 .. c_{T-1}, >= 0, of `q_lambda_traces` and the like; 0 cuts, as where an episode
        was truncated and another one begins. What follows a 0 may hold anything. [..., T - 1].

    Returns:
      Targets and weights [..., T A N]; atoms of weight 0 are finite.

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array has the wrong kind of numbers.

    References:
      Tang et al., The Nature of Temporal Difference Errors in Multi-step Distributional
      Reinforcement Learning, 2022. https://arxiv.org/abs/2207.07570
      Dabney et al., Distributional Reinforcement Learning with Quantile Regression, 2017.
      https://arxiv.org/abs/1710.10044
    """
    arrays = trajectories.check_steps(
        ("next_quantiles", next_quantiles),
        policy,
        next_actions,
        rewards,
        discounts,
        ("traces", traces),
        last_axes=1,
    )
    quantiles, terms = arrays[0], _telescope(*arrays[1:])
    weight = terms.coefficients[..., None]
    moved = jnp.where(weight != 0, terms.scales[..., None, None] * quantiles, 0)
    targets = terms.shifts[..., None, None] + moved
    ended = (terms.ended / policy.shape[-1])[..., None, None]
    weights = jnp.broadcast_to((weight + ended) / quantiles.shape[-1], targets.shape)
    flat = (*targets.shape[:-3], targets.shape[-3] * targets.shape[-2] * targets.shape[-1])
    return WeightedTargets(targets.reshape(flat), weights.reshape(flat))


def _telescope(
    policy: Float[Array, "*B T A"],
    next_actions: Int[Array, "*B S"],
    rewards: Float[Array, "*B T"],
    discounts: Float[Array, "*B T"],
    traces: Float[Array, "*B S"],
) -> _Terms:
    """Returns the terms of the sum; whatever follows an end or a cut is 0 in all of them."""
    connected = (discounts[..., :-1] != 0) & (traces != 0)
    # Step t counts if the trajectory neither ended nor was cut before.
    counts = _pad_first(jnp.cumprod(connected.astype(jnp.int32), axis=-1), 1) != 0
    reached = jnp.where(counts[..., 1:], traces, 0)
    products = _pad_first(jnp.cumprod(reached, axis=-1), 1)
    discount = jnp.where(counts, discounts, 0)
    scales = jnp.cumprod(discount, axis=-1)
    gains = jnp.where(counts, rewards, 0) * _pad_first(scales[..., :-1], 1)
    after = trajectories.pad_last(reached)
    signed = trajectories.coefficients(policy, next_actions, after)
    goes_on = (discount != 0)[..., None]
    return _Terms(
        coefficients=jnp.where(goes_on, products[..., None] * signed, 0),
        ended=jnp.where(discount != 0, 0, products),
        shifts=jnp.cumsum(gains, axis=-1),
        scales=scales,
    )


def _pad_first(steps: Array, value: int) -> Array:
    """Returns an array of steps with one more at the beginning."""
    first = jnp.full_like(steps, value, shape=(*steps.shape[:-1], 1))
    return jnp.concatenate([first, steps], axis=-1)
