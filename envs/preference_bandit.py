r"""A contextual preference bandit: a context, K actions, and duels whose law it decides.

With context x, rewards r_i(x) = w_i . x and styles c_i(x) = C_i x in M planes of two coordinates,

.. math:: P(i \succ j \mid x) = \sigma\Big( b\, (r_i(x) - r_j(x))
          + c \sum_m \big( c_{i,m,1} c_{j,m,2} - c_{i,m,2} c_{j,m,1} \big) / M \Big)

The first part is Bradley-Terry. The second is antisymmetric and bilinear in the styles: in each
plane, a style beats those that lie ahead of it by less than half a turn, so that three styles
around the circle beat each other in a cycle. b and c scale the parts: c = 0 leaves a Bradley-Terry
bandit, b = 0 one that no reward explains. `preference_matrix` gives the whole game of a context to
exact solvers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bellmax.envs.environment import ArraySpec, Environment
from bellmax.envs.types import TimeStep


class PreferenceBandit(NamedTuple):
    """The laws of a bandit.

    Attributes:
      reward_weights: w, the reward of each action per unit of each feature. [K, D].
      style_weights: C, the two coordinates of each action's style in each plane, per unit of each
        feature. [K, M, 2, D].
      reward_scale: b >= 0, in log odds.
      cyclic_scale: c >= 0, in log odds.
    """

    reward_weights: Float[Array, "K D"]
    style_weights: Float[Array, "K M 2 D"]
    reward_scale: Float[Array, ""]
    cyclic_scale: Float[Array, ""]

    @property
    def num_actions(self) -> int:
        """Actions K."""
        return self.reward_weights.shape[0]

    @property
    def num_features(self) -> int:
        """Features D of a context."""
        return self.reward_weights.shape[1]


class BanditState(NamedTuple):
    """One round.

    Attributes:
      context: features of the round. [D].
      is_over: whether its duel has been fought.
    """

    context: Float[Array, " D"]
    is_over: Bool[Array, ""]


def make(
    key: PRNGKeyArray,
    *,
    num_actions: int = 4,
    num_features: int = 3,
    num_planes: int = 1,
    reward_scale: float = 1.0,
    cyclic_scale: float = 1.0,
) -> PreferenceBandit:
    """Draws a bandit with normal weights.

    Weights have variance 1 / D, so that rewards and coordinates of styles have variance 1 over
    contexts that are standard normal.

    Args:
      key: randomness of the weights; consumed.
      num_actions: K, at least 2.
      num_features: D, at least 1.
      num_planes: M, at least 1.
      reward_scale: b >= 0.
      cyclic_scale: c >= 0.

    Returns:
      The bandit.

    Raises:
      ValueError: a size is too small, or a scale is negative.
    """
    sizes = (("num_actions", num_actions, 2), ("num_features", num_features, 1))
    for name, size, least in (*sizes, ("num_planes", num_planes, 1)):
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}.")
    for name, scale in (("reward_scale", reward_scale), ("cyclic_scale", cyclic_scale)):
        if scale < 0:
            raise ValueError(f"{name} must be at least 0, got {scale}.")
    keys = jax.random.split(key)
    unit = num_features**-0.5
    styles = (num_actions, num_planes, 2, num_features)
    return PreferenceBandit(
        reward_weights=unit * jax.random.normal(keys[0], (num_actions, num_features)),
        style_weights=unit * jax.random.normal(keys[1], styles),
        reward_scale=jnp.asarray(float(reward_scale)),
        cyclic_scale=jnp.asarray(float(cyclic_scale)),
    )


def rewards(context: Float[Array, "... D"], params: PreferenceBandit) -> Float[Array, "... K"]:
    """Returns b r(x): what a Bradley-Terry model of the first part would learn, in log odds.

    Args:
      context: features. [..., D].
      params: the bandit.

    Returns:
      One reward an action. [..., K].
    """
    return params.reward_scale * context @ params.reward_weights.T


def preference_matrix(
    context: Float[Array, "... D"], params: PreferenceBandit
) -> Float[Array, "... K K"]:
    """Returns the game of a context, for exact solvers.

    Args:
      context: features. [..., D].
      params: the bandit.

    Returns:
      `P[i, j]`, the probability that action i is preferred to action j; it and its transpose sum to
      1. [..., K, K].

    Raises:
      ValueError: the context has another number of features.
    """
    if context.ndim < 1 or context.shape[-1] != params.num_features:
        raise ValueError(
            f"context must end in {params.num_features} features, got shape {context.shape}."
        )
    reward = rewards(context, params)
    styles = jnp.einsum("kmcd,...d->...kmc", params.style_weights, context)
    crossed = jnp.einsum("...im,...jm->...ij", styles[..., 0], styles[..., 1])
    turned = (crossed - jnp.swapaxes(crossed, -1, -2)) / styles.shape[-2]
    difference = reward[..., :, None] - reward[..., None, :]
    return jax.nn.sigmoid(difference + params.cyclic_scale * turned)


def reset(key: PRNGKeyArray, params: PreferenceBandit) -> tuple[BanditState, TimeStep]:
    """Draws a context of independent standard normal features.

    Args:
      key: randomness; consumed.
      params: the bandit.

    Returns:
      The state, and a time step whose observation is the context [D].
    """
    context = jax.random.normal(key, (params.num_features,))
    state = BanditState(context, jnp.zeros((), bool))
    return state, _time_step(state, jnp.zeros(()))


def step(
    key: PRNGKeyArray, state: BanditState, action: Int[Array, " 2"], params: PreferenceBandit
) -> tuple[BanditState, TimeStep]:
    """Fights one duel in the round's context, which ends the round.

    Args:
      key: randomness of the preference; consumed.
      state: the round.
      action: the duel: two actions in 0..K-1, equal ones allowed. [2].
      params: the bandit.

    Returns:
      The state, and a time step: reward 1 if the first action was preferred, else 0 (always 0 in a
      round that is over), and `terminated`.
    """
    probability = preference_matrix(state.context, params)[action[0], action[1]]
    won = jax.random.bernoulli(key, probability).astype(jnp.float32)
    reward = jnp.where(state.is_over, 0.0, won)
    state = BanditState(state.context, jnp.ones((), bool))
    return state, _time_step(state, reward)


def environment(params: PreferenceBandit) -> Environment:
    """Returns the bandit with what is seen and done, for wrappers.

    Args:
      params: the bandit.

    Returns:
      The environment: observations are contexts [D], actions duels [2].
    """
    return Environment(
        reset,
        step,
        params,
        ArraySpec((params.num_features,)),
        ArraySpec((2,), jnp.int32, 0, params.num_actions - 1),
    )


def _time_step(state: BanditState, reward: Float[Array, ""]) -> TimeStep:
    return TimeStep(
        observation=state.context,
        reward=reward,
        terminated=state.is_over,
        truncated=jnp.zeros((), bool),
    )
