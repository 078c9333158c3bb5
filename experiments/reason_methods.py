"""Names of methods in `reason` configs, and what they become: once, here."""

from collections.abc import Callable
from typing import NamedTuple

from bellmax.agents import duels, followers, language, opponents
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors


class MethodOptions(NamedTuple):
    """Hyper-parameters that a named method may read.

    Attributes:
      tau: weight of the KL divergence to the reference, in units of the judge's preference (of the
        fitted reward for `rlhf`); online DPO's beta. DNO and SPPO have none.
      eta: inverse learning rate of an iteration of DNO, INPO and SPPO (whose own eta is 1 / eta).
      mixture: weight of the reference in the geometric mixture (Nash-MD, IPO-MD).
      average_decay: of the averaged opponent (Nash-EMA).
      iteration_steps: steps of an iteration of DNO, INPO and SPPO.
    """

    tau: float
    eta: float
    mixture: float
    average_decay: float
    iteration_steps: int


class Method(NamedTuple):
    """What a method is.

    Attributes:
      first: who sends the first completion.
      second: who sends its opponents; the same object as `first` where the law is the same.
      loss_fn: what is learnt.
      opponent_rule: which earlier policy is kept, or None.
      on_rewards: whether preferences are 1/2 plus a difference of fitted rewards.
    """

    first: opponents.Law
    second: opponents.Law
    loss_fn: duels.DuelLoss
    opponent_rule: followers.FollowRule | None = None
    on_rewards: bool = False


Model = language.LanguageModel


def _alone(law: opponents.Law, loss_fn: duels.DuelLoss) -> Method:
    return Method(law, law, loss_fn)


def _against(model: Model, second: opponents.Law, tau: float) -> Method:
    return Method(opponents.policy(model), second, duels.nash_md_pg(tau=tau))


def _nash_ema(model: Model, options: MethodOptions) -> Method:
    method = _against(model, opponents.opponent(model), options.tau)
    return method._replace(opponent_rule=followers.average(options.average_decay))


def _iterated(model: Model, options: MethodOptions, loss_fn: duels.DuelLoss) -> Method:
    method = _alone(opponents.opponent(model), loss_fn)
    return method._replace(opponent_rule=followers.every(options.iteration_steps))


METHODS: dict[str, Callable[[Model, MethodOptions], Method]] = {
    "nash_md": lambda m, o: _against(m, opponents.mixture(m, o.mixture), o.tau),
    "nash_ema": _nash_ema,
    "best_response": lambda m, o: _against(m, opponents.reference(m), o.tau),
    "self_play": lambda m, o: _alone(opponents.policy(m), duels.self_play_pg(tau=o.tau)),
    "online_ipo": lambda m, o: _alone(opponents.policy(m), duels.online_ipo(tau=o.tau)),
    "ipo_md": lambda m, o: _alone(opponents.mixture(m, o.mixture), duels.online_ipo(tau=o.tau)),
    "online_dpo": lambda m, o: _alone(opponents.policy(m), duels.online_dpo(beta=o.tau)),
    "sppo": lambda m, o: _iterated(m, o, duels.sppo(eta=1 / o.eta)),
    "dno": lambda m, o: _iterated(m, o, duels.dno(eta=o.eta)),
    "inpo": lambda m, o: _iterated(m, o, duels.inpo(eta=o.eta, tau=o.tau)),
    "rlhf": lambda m, o: _alone(opponents.policy(m), duels.self_play_pg(tau=o.tau))._replace(
        on_rewards=True
    ),
}


def make_method(name: str, model: Model, options: MethodOptions) -> Method:
    """Returns the method that a config names.

    Args:
      name: a key of `METHODS`.
      model: the language model as functions.
      options: its hyper-parameters.

    Returns:
      The method.

    Raises:
      UserError: no method has this name, the nearest is suggested; or a number is out of range.
    """
    if name not in METHODS:
        raise config_lib.unknown("config.loss.names", name, METHODS)
    for key in ("tau", "eta"):
        value = getattr(options, key)
        if not value > 0:
            keys = "taus" if key == "tau" else key
            raise errors.UserError(f"config.loss.{keys} must be positive, got {value}.")
    if name == "inpo" and options.eta < options.tau:
        raise errors.UserError(
            f"config.loss.eta must be at least inpo's tau {options.tau}, got {options.eta}: its "
            "previous policy would have a negative weight."
        )
    with config_lib.user_errors("config.loss"):
        return METHODS[name](model, options)
