"""Losses of a duel: what is learnt from two completions of a prompt and a judge's preference."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from bellmax import losses


class DuelLogProbs(NamedTuple):
    """What the loss of a duel may read, for the two completions y and y' of each prompt.

    Token log-probabilities are in nats, [B, T], and count where the mask is 1.

    Attributes:
      first_log_probs: of y under the policy.
      first_reference_log_probs: of y under the reference; constant.
      first_opponent_log_probs: of y under the opponent's parameters; constant. Those of the
        reference where the state keeps no opponent.
      first_mask: 1 on the tokens of y.
      second_log_probs: of y' under the policy.
      second_reference_log_probs: of y' under the reference; constant.
      second_opponent_log_probs: of y' under the opponent's parameters; constant.
      second_mask: 1 on the tokens of y'.
      preferences: P(y beats y'). [B].
      first_win_rates: P(y beats the opponent). [B].
      second_win_rates: P(y' beats the opponent). [B].
    """

    first_log_probs: Float[Array, "B T"]
    first_reference_log_probs: Float[Array, "B T"]
    first_opponent_log_probs: Float[Array, "B T"]
    first_mask: Float[Array, "B T"]
    second_log_probs: Float[Array, "B T"]
    second_reference_log_probs: Float[Array, "B T"]
    second_opponent_log_probs: Float[Array, "B T"]
    second_mask: Float[Array, "B T"]
    preferences: Float[Array, " B"]
    first_win_rates: Float[Array, " B"]
    second_win_rates: Float[Array, " B"]

    def sums(self, name: str) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Returns the log-probabilities of both whole completions under one of three.

        Args:
          name: whose: "policy", "reference" or "opponent".

        Returns:
          Those of y and of y', nats. [B] each.
        """
        field = "log_probs" if name == "policy" else f"{name}_log_probs"
        first, second = (getattr(self, f"{side}_{field}") for side in ("first", "second"))
        return (
            losses.sequence_log_probs(first, self.first_mask),
            losses.sequence_log_probs(second, self.second_mask),
        )

    def log_ratios(self, name: str) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Returns log-ratios of the policy to "reference" or "opponent" on y and y', nats, [B].

        Args:
          name: to whom.

        Returns:
          Two arrays. [B] each.
        """
        policy, other = self.sums("policy"), self.sums(name)
        return policy[0] - other[0], policy[1] - other[1]


DuelLoss = Callable[[DuelLogProbs], Float[Array, " B"]]


def nash_md_pg(*, tau: float) -> DuelLoss:
    """Returns the policy-gradient loss on y: Nash-MD-PG, Nash-EMA-PG or best response.

    Args:
      tau: weight of the KL divergence, see `losses.nash_md_pg_token_loss`.

    Returns:
      The loss. y comes from the policy, y' from the opponent, against which win rates count.
    """
    return lambda duel: losses.nash_md_pg_token_loss(
        duel.first_log_probs,
        duel.first_reference_log_probs,
        duel.first_mask,
        duel.first_win_rates,
        tau=tau,
    )


def self_play_pg(*, tau: float) -> DuelLoss:
    """Returns the policy-gradient loss of self-play, the mean over both players.

    With a judge that returns 1/2 + r(y) - r(y') it is reinforcement learning on the reward r with
    the other completion's reward as the baseline: what RLHF does.

    Args:
      tau: weight of the KL divergence, see `losses.nash_md_pg_token_loss`.

    Returns:
      The loss. y and y' come from the policy.
    """

    def loss_fn(duel: DuelLogProbs) -> Float[Array, " B"]:
        second = losses.nash_md_pg_token_loss(
            duel.second_log_probs,
            duel.second_reference_log_probs,
            duel.second_mask,
            duel.second_win_rates,
            tau=tau,
        )
        return (nash_md_pg(tau=tau)(duel) + second) / 2

    return loss_fn


def online_ipo(*, tau: float) -> DuelLoss:
    """Returns the online IPO loss; on pairs from the mixture it is IPO-MD.

    It is the kernel multiplied out, tau times `losses.online_ipo_loss` less a constant, so that the
    scale of its gradient does not grow as tau falls.

    Args:
      tau: see `losses.expanded_ipo_loss`.

    Returns:
      The loss.
    """
    pair_loss = functools.partial(losses.expanded_ipo_loss, tau=tau)
    return lambda duel: losses.online_pair_loss(
        *duel.log_ratios("reference"), duel.preferences, loss_fn=pair_loss
    )


def online_dpo(*, beta: float) -> DuelLoss:
    """Returns the online DPO loss, with both orders of a pair weighed by the preference.

    Args:
      beta: see `losses.dpo_loss`.

    Returns:
      The loss.
    """
    pair_loss = functools.partial(losses.dpo_loss, beta=beta)
    return lambda duel: losses.online_pair_loss(
        *duel.log_ratios("reference"), duel.preferences, loss_fn=pair_loss
    )


def sppo(*, eta: float) -> DuelLoss:
    """Returns the SPPO loss of both completions against the previous policy.

    Args:
      eta: see `losses.sppo_loss`.

    Returns:
      The loss, divided by eta so that the scale of its gradient does not grow with it. y and y'
      come from the opponent's parameters.
    """
    return lambda duel: (
        losses.sppo_loss(
            *duel.log_ratios("opponent"), duel.first_win_rates, duel.second_win_rates, eta=eta
        )
        / eta
    )


def dno(*, eta: float) -> DuelLoss:
    """Returns the DNO loss, rewards being win rates against the previous policy.

    Its soft label is a sigmoid of the win rates' difference: estimated from few opponents it is
    biased, so judge several (`DuelBatch.first_win_rates`).

    Args:
      eta: see `losses.dno_loss`.

    Returns:
      The loss. y and y' come from the opponent's parameters.
    """
    return lambda duel: losses.dno_loss(
        *duel.log_ratios("opponent"), duel.first_win_rates, duel.second_win_rates, eta=eta
    )


def inpo(*, eta: float, tau: float) -> DuelLoss:
    """Returns the INPO loss, with both orders of a pair weighed by the preference.

    Args:
      eta: inverse learning rate, see `losses.inpo_loss`.
      tau: weight of the KL divergence to the reference.

    Returns:
      The loss times eta, so that the scale of its gradient does not grow as eta falls. y and y'
      come from the opponent's parameters.
    """
    return lambda duel: (
        eta
        * losses.inpo_loss(
            *duel.sums("policy"),
            *duel.sums("reference"),
            *duel.sums("opponent"),
            eta=eta,
            tau=tau,
            preferences=duel.preferences,
        )
    )
