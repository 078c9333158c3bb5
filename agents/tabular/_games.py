"""What the solvers of one-turn games share: argument checks, log-ratios, and the iteration.

Policies are held as log-ratios to the reference, up to a constant: pi = softmax(log mu + h). The
pull towards the reference is then a factor of h, and an action that the reference never takes keeps
probability 0 without a logarithm of 0 in any sum.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob

# (log_ratios, preference, log_reference, constants, step_size) -> log_ratios.
Update = Callable[[Array, Array, Array, Any, Array], Array]


def game(preference: Array, **policies: Array) -> tuple[Float[Array, "..."], ...]:
    """Checks a preference matrix and the policies that go with it, and promotes them.

    Args:
      preference: the matrix. [A, A].
      **policies: arrays of one entry an action, by argument name. [A].

    Returns:
      The matrix, then the policies in the order given, in one dtype.

    Raises:
      ValueError: a shape is wrong.
      TypeError: an array is not floating point.
    """
    matrix = _checks.as_float("preference", preference)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"preference must have shape [A, A], got {matrix.shape}.")
    arrays = [matrix]
    for name, value in policies.items():
        array = _checks.as_float(name, value)
        if array.shape != matrix.shape[:1]:
            raise ValueError(
                f"{name} must have shape {matrix.shape[:1]}, one entry for each row of preference "
                f"{matrix.shape}, got {array.shape}."
            )
        arrays.append(array)
    dtype = jnp.result_type(*arrays)
    return tuple(array.astype(dtype) for array in arrays)


def constants(like: Float[Array, "..."], *values: Knob) -> tuple[Float[Array, "..."], ...]:
    """Returns hyper-parameters in the dtype of the arrays that they meet.

    Args:
      like: an array of the dtype.
      *values: numbers or arrays.

    Returns:
      The values as arrays.
    """
    return tuple(jnp.asarray(value, like.dtype) for value in values)


def check_pull(learning_rate: Knob, tau: Knob) -> None:
    """Refuses a step that would pull beyond the reference; traced values cannot be looked at.

    Args:
      learning_rate: step size eta.
      tau: temperature.

    Raises:
      ValueError: a Python number is not positive, or both are such and eta tau is above 1.
    """
    _checks.positive("tau", tau)
    _checks.positive("learning_rate", learning_rate)
    known = isinstance(learning_rate, int | float) and isinstance(tau, int | float)
    # A step of exactly 1 / tau is allowed, and its product may round to above 1.
    if known and learning_rate * tau > 1 + 1e-9:
        raise ValueError(
            f"learning_rate must be at most 1 / tau = {1 / tau:g}, got {learning_rate}."
        )


def step_sizes(
    learning_rate: Knob | None, tau: Knob, num_steps: int, dtype: Any
) -> Float[Array, " T"]:
    """Returns one step size a step.

    Args:
      learning_rate: a number, one number a step [T], or None for 2 / (tau (t + 2)), t from 0.
      tau: temperature; read where `learning_rate` is None.
      num_steps: T.
      dtype: of the result.

    Returns:
      Step sizes. [T].

    Raises:
      ValueError: `num_steps` is negative, or the array has the wrong shape.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}.")
    if learning_rate is None:
        return 2 / (jnp.asarray(tau, dtype) * (jnp.arange(num_steps, dtype=dtype) + 2))
    values = jnp.asarray(learning_rate, dtype)
    if values.shape not in ((), (num_steps,)):
        raise ValueError(
            f"a step size must be a number or have shape ({num_steps},), got {values.shape}."
        )
    return jnp.broadcast_to(values, (num_steps,))


def log_ratios(policy: Float[Array, "..."], reference: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns log pi - log mu, finite: 0 where mu is 0, and a probability of 0 as the smallest one.

    Args:
      policy: pi. [...].
      reference: mu. [...].

    Returns:
      Log-ratios, nats. [...].
    """
    log_policy = jnp.log(jnp.maximum(policy, jnp.finfo(policy.dtype).tiny))
    taken = reference > 0
    return jnp.where(taken, log_policy - jnp.log(jnp.where(taken, reference, 1)), 0)


def to_policy(
    ratios: Float[Array, "..."], log_reference: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns the policy of log-ratios.

    Args:
      ratios: h, up to a constant on the last axis. [..., A].
      log_reference: log mu; -inf where mu is 0. [..., A].

    Returns:
      softmax(log mu + h), 0 where mu is 0. [..., A].
    """
    return jax.nn.softmax(log_reference + ratios, axis=-1)


def centred_wins(preference: Float[Array, "A A"], policy: Float[Array, " A"]) -> Float[Array, " A"]:
    """Returns the win-rate of every action against a policy, less 1/2.

    Args:
      preference: the matrix. [A, A].
      policy: the opponent. [A].

    Returns:
      (P - 1/2) pi, in full precision on every device. [A].
    """
    return jnp.matmul(preference - 0.5, policy, precision="highest")


def exponential_weights(
    ratios: Float[Array, " A"],
    preference: Float[Array, "A A"],
    log_reference: Float[Array, " A"],
    tau: Float[Array, ""],
    step_size: Float[Array, ""],
) -> Float[Array, " A"]:
    """Steps towards what beats the policy itself, with a pull to the reference: an `Update`.

    Args:
      ratios: log-ratios of the policy. [A].
      preference: the matrix. [A, A].
      log_reference: log mu. [A].
      tau: temperature; 0 for no pull.
      step_size: eta.

    Returns:
      (1 - eta tau) h + eta (P - 1/2) pi. [A].
    """
    wins = centred_wins(preference, to_policy(ratios, log_reference))
    return (1 - step_size * tau) * ratios + step_size * wins


def one_step(
    update: Update,
    policy: Float[Array, " A"],
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    tau: Knob,
    step_size: Knob,
) -> Float[Array, " A"]:
    """Applies an update once, from a policy to a policy.

    Args:
      update: the update of the log-ratios.
      policy: pi_t. [A].
      preference: the matrix. [A, A].
      reference: mu. [A].
      tau: temperature.
      step_size: eta.

    Returns:
      pi_{t+1}. [A].

    Raises:
      ValueError: a shape is wrong.
      TypeError: an array is not floating point.
    """
    arrays = game(preference, policy=policy, reference=reference)
    return _step(update, *arrays, *constants(arrays[0], tau, step_size))


@functools.partial(jax.jit, static_argnames="update")
def _step(update, matrix, current, base, tau, step_size):
    log_reference = jnp.log(base)
    ratios = log_ratios(current, base)
    following = update(ratios, matrix, log_reference, tau, step_size)
    return to_policy(following, log_reference)


@functools.partial(jax.jit, static_argnames=("update", "keep"))
def iterate(
    update: Update,
    start: Float[Array, " A"],
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    constants: Any,
    step_sizes: Float[Array, " T"],
    *,
    keep: bool,
) -> Float[Array, "..."]:
    """Applies an update once for each step size.

    Args:
      update: the update of the log-ratios; a function of a module, so that it compiles once.
      start: the first policy. [A].
      preference: the matrix. [A, A].
      reference: mu. [A].
      constants: what else the update reads: tau, or a tuple.
      step_sizes: one a step. [T].
      keep: return every policy, the first included, or the last one alone.

    Returns:
      Policies, [T + 1, A] or [A].
    """
    log_reference = jnp.log(reference)

    def step(ratios, step_size):
        following = update(ratios, preference, log_reference, constants, step_size)
        return following, ratios if keep else None

    last, earlier = jax.lax.scan(step, log_ratios(start, reference), step_sizes)
    if earlier is None:
        return to_policy(last, log_reference)
    return to_policy(jnp.concatenate([earlier, last[None]]), log_reference)
