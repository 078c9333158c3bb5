"""Names of pairwise losses in configs, and the functions that they become: once, here."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from bellmax import losses
from bellmax.agents import preference
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors


class LossOptions(NamedTuple):
    """Hyper-parameters that a named loss may read; each is described where it is used.

    Attributes:
      beta: inverse temperature, 1/nats; multiplies log-ratios.
      label_smoothing: probability that a label is wrong, in [0, 0.5): the conservative and robust
        losses.
      sft_weight: weight eta of the likelihood of the chosen completion in `rpo`, which multiplies
        eta * beta as the paper's code does.
    """

    beta: float
    label_smoothing: float
    sft_weight: float


CONVEX_FUNCTIONS: dict[str, losses.ConvexFn] = {
    "logistic": losses.logistic,
    "hinge": losses.hinge,
    "squared": losses.squared,
    "exponential": losses.exponential,
    "truncated_quadratic": losses.truncated_quadratic,
    "savage": losses.savage,
}


def _gpo(convex_fn: losses.ConvexFn) -> Callable[[LossOptions], preference.PairLoss]:
    def make(options: LossOptions) -> preference.PairLoss:
        return preference.on_log_ratios(
            functools.partial(
                losses.gpo_loss,
                convex_fn=convex_fn,
                beta=options.beta,
                label_smoothing=options.label_smoothing,
            )
        )

    return make


def _robust(options: LossOptions) -> preference.PairLoss:
    return preference.on_log_ratios(
        functools.partial(
            losses.robust_dpo_loss, beta=options.beta, label_smoothing=options.label_smoothing
        )
    )


def _rpo(options: LossOptions) -> preference.PairLoss:
    return lambda pair: losses.rpo_loss(
        pair.chosen_log_ratios,
        pair.rejected_log_ratios,
        pair.chosen_log_probs,
        beta=options.beta,
        eta=options.sft_weight,
    )


def _length_normalised(options: LossOptions) -> preference.PairLoss:
    return lambda pair: losses.length_normalised_dpo_loss(
        pair.chosen_log_ratios,
        pair.rejected_log_ratios,
        pair.chosen_lengths,
        pair.rejected_lengths,
        beta=options.beta,
    )


PAIR_LOSSES: dict[str, Callable[[LossOptions], preference.PairLoss]] = {
    **{name: _gpo(convex_fn) for name, convex_fn in CONVEX_FUNCTIONS.items()},
    "robust_dpo": _robust,
    "rpo": _rpo,
    "length_normalised_dpo": _length_normalised,
}


def make_pair_loss(name: str, options: LossOptions) -> preference.PairLoss:
    """Returns the loss that a config names.

    Args:
      name: a key of `PAIR_LOSSES`.
      options: its hyper-parameters.

    Returns:
      A function of `agents.preference.PairLogProbs`.

    Raises:
      UserError: no loss has this name; the nearest is suggested.
    """
    if name not in PAIR_LOSSES:
        nearest = config_lib.nearest(name, PAIR_LOSSES)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        raise errors.UserError(
            f"config.loss.names holds {name!r}, which is no loss.{hint} There are: "
            f"{', '.join(PAIR_LOSSES)}."
        )
    return PAIR_LOSSES[name](options)
