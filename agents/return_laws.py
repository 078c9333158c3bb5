"""Laws of returns that a network's outputs stand for: atoms with logits, or quantiles."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from bellmax import losses


class ReturnLaw(NamedTuple):
    """How a network's K outputs an action are a law of returns.

    Attributes:
      expectation: `outputs[..., K] -> [...]`, the value of an action.
      loss: `(outputs[B, K], next_outputs[B, T, A, K], policy[B, T, A], next_actions[B, T - 1],
        rewards[B, T], discounts[B, T], traces[B, T - 1]) -> [B]`; the target is constant.
    """

    expectation: Callable[[Array], Array]
    loss: Callable[..., Float[Array, " B"]]


def categorical(support: Float[Array, " K"], *, kind: str = "cross_entropy") -> ReturnLaw:
    """Returns the law on fixed atoms, whose logits the network gives: C51.

    Args:
      support: the atoms, ascending. [K].
      kind: see `losses.categorical_loss`.

    Returns:
      The law.

    Raises:
      ValueError: the support is none, or there is no such kind.

    References:
      Bellemare et al., A Distributional Perspective on Reinforcement Learning, 2017.
      https://arxiv.org/abs/1707.06887
    """
    # Traced once here: what is wrong is found before the first update.
    jax.eval_shape(
        lambda logits: losses.categorical_loss(logits, logits, support, kind=kind), support
    )

    def expectation(outputs):
        return losses.categorical_mean(jax.nn.softmax(outputs, axis=-1), support)

    def loss(outputs, next_outputs, policy, next_actions, rewards, discounts, traces):
        target = losses.categorical_multistep_target(
            jax.nn.softmax(next_outputs, axis=-1),
            policy,
            next_actions,
            rewards,
            discounts,
            traces,
            support,
        )
        return losses.categorical_loss(outputs, target, support, kind=kind)

    return ReturnLaw(expectation, loss)


def quantile(*, kappa: float = 1.0) -> ReturnLaw:
    """Returns the law of equally likely quantiles, which the network gives: QR-DQN.

    Args:
      kappa: where the quantile Huber loss turns linear, >= 0; 0 for the plain quantile loss.

    Returns:
      The law.

    Raises:
      ValueError: `kappa` is negative.

    References:
      Dabney et al., Distributional Reinforcement Learning with Quantile Regression, 2017.
      https://arxiv.org/abs/1710.10044
    """
    if not kappa >= 0:
        raise ValueError(f"kappa must be at least 0, got {kappa}.")

    def loss(outputs, next_outputs, policy, next_actions, rewards, discounts, traces):
        target = losses.quantile_multistep_target(
            next_outputs, policy, next_actions, rewards, discounts, traces
        )
        return losses.quantile_huber_loss(
            outputs, target.targets, kappa=kappa, weights=target.weights
        )

    return ReturnLaw(losses.quantile_mean, loss)
