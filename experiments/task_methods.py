"""Names of methods on token tasks, and what they become: once, here."""

from collections.abc import Callable
from typing import NamedTuple

from bellmax.agents import completion_losses
from bellmax.agents.completion_losses import AdvantageFn, CompletionLoss
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors
from bellmax.experiments.task_config import LossConfig
from bellmax.experiments.task_data import AnyTask, LongFormTask


class Method(NamedTuple):
    """What a method is.

    Attributes:
      loss_fn: what is learnt from the completions of a problem.
      average: of the agent, see `policy_gradient.make`.
      needs_critic: whether the loss reads values.
      needs_greedy: whether it reads the reward of the most likely completion.
      on_answers: whether completions are chains, each followed by the known answer, whose
        likelihood is learnt from in the reward's place.
      thinks: whether there are chains; False for answers at once.
    """

    loss_fn: CompletionLoss
    average: str = "prompts"
    needs_critic: bool = False
    needs_greedy: bool = False
    on_answers: bool = False
    thinks: bool = True


class Options(NamedTuple):
    """Hyper-parameters that a named method may read.

    Attributes:
      beta: weight of the divergence from the reference.
      loss: the loss group of the config.
      max_new_tokens: the longest completion there may be.
    """

    beta: float
    loss: LossConfig
    max_new_tokens: int


def _gradient(
    options: Options,
    advantage_fn: AdvantageFn,
    *,
    kl: str = "reward",
    over: str = "mean",
    weighted: bool = False,
) -> CompletionLoss:
    return completion_losses.policy_gradient(
        advantage_fn,
        beta=options.beta,
        kl=kl,
        over=over,
        importance_clip=options.loss.importance_clip if weighted else None,
    )


def _clipped(options: Options, advantage_fn: AdvantageFn, **kwargs) -> CompletionLoss:
    loss = options.loss
    return completion_losses.clipped(
        advantage_fn,
        clip_epsilon=loss.clip_epsilon,
        clip_epsilon_high=loss.clip_epsilon_high or None,
        dual_clip=loss.dual_clip or None,
        beta=options.beta,
        **kwargs,
    )


def _ppo(options: Options) -> Method:
    loss = options.loss
    return Method(
        completion_losses.ppo(
            clip_epsilon=loss.clip_epsilon,
            value_coefficient=loss.value_coefficient,
            trace_decay=loss.trace_decay,
            beta=options.beta,
        ),
        needs_critic=True,
    )


def _jepo(options: Options, **kwargs) -> Method:
    loss_fn = completion_losses.jepo(
        beta=options.beta, beta_supervised=options.loss.beta_supervised, **kwargs
    )
    return Method(loss_fn, on_answers=True)


_plain, _others = completion_losses.plain, completion_losses.leave_one_out
_scaled, _centred = completion_losses.group_normalised, completion_losses.group_centred

METHODS: dict[str, Callable[[Options], Method]] = {
    "reinforce": lambda o: Method(_gradient(o, _plain())),
    "rloo": lambda o: Method(_gradient(o, _others())),
    "rloo_kl_in_loss": lambda o: Method(_gradient(o, _others(), kl="loss")),
    "rloo_is": lambda o: Method(_gradient(o, _others(), weighted=True)),
    "rloo_clip": lambda o: Method(_clipped(o, _others(), level="sequence", kl="reward")),
    "remax": lambda o: Method(_gradient(o, completion_losses.greedy_baseline()), needs_greedy=True),
    "grpo": lambda o: Method(_clipped(o, _scaled())),
    "dr_grpo": lambda o: Method(_clipped(o, _centred(), tokens=o.max_new_tokens)),
    "dapo": lambda o: Method(_clipped(o, _scaled(), tokens="sum", over="sum"), average="tokens"),
    "ppo": _ppo,
    "pass_at_k": lambda o: Method(_gradient(o, completion_losses.k_sample(k=o.loss.k), over="sum")),
    "majority": lambda o: Method(
        _gradient(o, completion_losses.majority(ties=o.loss.ties), over="sum")
    ),
    "agro": lambda o: Method(completion_losses.agro(beta=o.beta)),
    "agro_on_policy": lambda o: Method(completion_losses.agro(beta=o.beta, on_policy=True)),
    "copg": lambda o: Method(completion_losses.copg(beta=o.beta)),
    "jepo": _jepo,
    "jepo_single": lambda o: _jepo(o, multi_sample=False),
    "jepo_bound": lambda o: _jepo(o, practical=False),
    "answers": lambda o: Method(
        completion_losses.answer_likelihood(), on_answers=True, thinks=False
    ),
}
_REGRESSIONS = ("agro", "agro_on_policy", "copg")
_ON_ANSWERS = ("jepo", "jepo_single", "jepo_bound", "answers")


def make_method(name: str, beta: float, loss: LossConfig, task: AnyTask) -> Method:
    """Returns the method that a config names.

    Args:
      name: a key of `METHODS`.
      beta: weight of the divergence from the reference.
      loss: the loss group of the config.
      task: what it learns.

    Returns:
      The method.

    Raises:
      UserError: no method has this name, the nearest is suggested; a number is out of range; or the
        task has not what the method needs.
    """
    if name not in METHODS:
        raise config_lib.unknown("config.loss.names", name, METHODS)
    if name in _REGRESSIONS and not beta > 0:
        raise errors.UserError(
            f"config.loss.betas must be positive for {name}, which regresses on it, got {beta}."
        )
    with config_lib.user_errors("config.loss"):
        method = METHODS[name](Options(beta, loss, task.max_new_tokens))
    if method.on_answers and task.marker is None:
        raise errors.UserError(
            f"config.loss.names holds {name!r}, which needs a task whose answers follow a marker."
        )
    if not method.on_answers and isinstance(task, LongFormTask):
        raise errors.UserError(
            f"config.loss.names holds {name!r}, which needs a task whose answers can be checked; "
            f"others learn from {', '.join(_ON_ANSWERS)}."
        )
    return method
