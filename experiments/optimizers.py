"""From the optimiser keys of a config to an optax chain."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bellmax.agents import optimizers
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors

_UNDECAYED = ("scale", "bias")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The keys of `config.optimizer`; every one is given, none is guessed.

    Attributes:
      name: a key of `OPTIMIZERS`.
      learning_rate: peak learning rate, > 0.
      schedule: a key of `SCHEDULES`: what the rate does after the warm-up.
      warmup_steps: steps of linear warm-up, 0 to the run's number of steps.
      end_fraction: learning rate of the last step over the peak, in [0, 1]; `constant` ignores it.
      weight_decay: decoupled weight decay, >= 0, which the learning rate multiplies. Norm scales,
        biases and arrays of rank below 2 never decay.
      max_grad_norm: global norm to which gradients are clipped; 0 clips nothing.
      b1: decay rate of the average of gradients, in [0, 1); the momentum of `sgd`.
      b2: decay rate of the second average, in [0, 1): of gradient differences in `adan`, of squares
        in `adam` and `adamw`, of the momentum in `lion`.
      b3: decay rate of the average of squares in `adan`, in [0, 1).
      eps: added to the root of the average of squares, > 0; `lion` and `sgd` have none.
    """

    name: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    end_fraction: float
    weight_decay: float
    max_grad_norm: float
    b1: float
    b2: float
    b3: float
    eps: float


def decay_mask(params: Any) -> Any:
    """Returns which arrays weight decay may shrink.

    Args:
      params: a pytree of arrays.

    Returns:
      A pytree of booleans: true for arrays of rank 2 or more whose last key is neither `scale` nor
      `bias`. The name counts too because scanned layers give norm scales a second axis.
    """

    def decays(path, leaf) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        return jnp.ndim(leaf) >= 2 and name not in _UNDECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def _adan(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optimizers.adan(
        rate,
        b1=config.b1,
        b2=config.b2,
        b3=config.b3,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )


def _adam(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(rate, b1=config.b1, b2=config.b2, eps=config.eps)


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )


def _lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(
        rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decay_mask
    )


def _sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    # Decay comes after the momentum, so that it is decoupled from it as in the others.
    return optax.chain(
        optax.trace(config.b1) if config.b1 else optax.identity(),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adan": _adan,
    "adam": _adam,
    "adamw": _adamw,
    "lion": _lion,
    "sgd": _sgd,
}

# Each maps progress in [0, 1] and the end fraction to a fraction of the peak rate.
SCHEDULES: dict[str, Callable[[jax.Array, float], Any]] = {
    "constant": lambda progress, end: jnp.ones_like(progress),
    "linear": lambda progress, end: 1 - (1 - end) * progress,
    "cosine": lambda progress, end: end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
}


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    The warm-up climbs linearly and gives step `warmup_steps - 1` the peak; no step has a rate of 0
    by it. From there the schedule runs to `end_fraction` of the peak, which the last step, number
    `num_steps - 1`, has; later steps keep it.

    Args:
      config: the optimiser's keys.
      num_steps: steps of the run, >= 1.

    Returns:
      A function of the step, counted from 0 and traceable, to a float32 rate. Steps that
      `skip_nonfinite` skipped are not counted.

    Raises:
      UserError: an unknown schedule, or a number out of range.
    """
    _check(config, num_steps)
    shape = SCHEDULES[config.schedule]
    peak_step = max(config.warmup_steps - 1, 0)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1.0)
        progress = (step - peak_step) / max(num_steps - 1 - peak_step, 1)
        return config.learning_rate * warmup * shape(jnp.clip(progress, 0, 1), config.end_fraction)

    return schedule


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns the chain that a config describes: clipping, then the named optimiser.

    A gradient with a NaN or an infinity takes no step and is counted
    (`agents.optimizers.skipped_updates`); the guard stands outside, so that clipping sees finite
    gradients only.

    Args:
      config: the optimiser's keys.
      num_steps: steps of the run, >= 1, which the schedule spans.

    Returns:
      The transformation.

    Raises:
      UserError: an unknown name, with the nearest known one, or a number out of range.
    """
    rate = learning_rate_schedule(config, num_steps)
    chain = OPTIMIZERS[config.name](config, rate)
    if config.max_grad_norm:
        chain = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), chain)
    return optimizers.skip_nonfinite(chain)


def _check(config: OptimizerConfig, num_steps: int) -> None:
    for key, value, known in (
        ("name", config.name, OPTIMIZERS),
        ("schedule", config.schedule, SCHEDULES),
    ):
        if value not in known:
            hint = config_lib.did_you_mean(value, known)
            raise errors.UserError(
                f"config.optimizer.{key} is {value!r}, which is unknown.{hint} There are: "
                f"{', '.join(known)}."
            )
    if num_steps < 1:
        raise errors.UserError(f"The number of steps must be at least 1, got {num_steps}.")
    decay_rates = ((name, getattr(config, name)) for name in ("b1", "b2", "b3"))
    for key, value, right, expected in (
        ("learning_rate", config.learning_rate, config.learning_rate > 0, "positive"),
        (
            "warmup_steps",
            config.warmup_steps,
            0 <= config.warmup_steps <= num_steps,
            f"between 0 and the number of steps, {num_steps}",
        ),
        ("end_fraction", config.end_fraction, 0 <= config.end_fraction <= 1, "in [0, 1]"),
        ("weight_decay", config.weight_decay, config.weight_decay >= 0, "at least 0"),
        ("max_grad_norm", config.max_grad_norm, config.max_grad_norm >= 0, "at least 0"),
        ("eps", config.eps, config.eps > 0, "positive"),
        *((name, rate, 0 <= rate < 1, "in [0, 1)") for name, rate in decay_rates),
    ):
        if not right:
            raise errors.UserError(f"config.optimizer.{key} must be {expected}, got {value}.")
    if config.name == "adam" and config.weight_decay:
        raise errors.UserError(
            "config.optimizer.weight_decay must be 0 for adam, which has none: use adamw, got "
            f"{config.weight_decay}."
        )
