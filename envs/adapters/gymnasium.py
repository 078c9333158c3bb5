"""Gymnasium's environments as ours: they live in this process, and compiled programs call them.

A step is a callback from the compiled program to Python, one environment at a time, so that it is
slow and exact: whatever `gymnasium.make` gives can be trained on by the loop that serves pure
environments. Their states cannot be saved. A program that goes on from a checkpoint finds fresh
environments, and the step in which it does is handed over as truncated: one transition an
environment that nobody made, with reward 0 and the observation of another episode after it.
"""

import collections
import importlib
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Int

from bellmax.envs.adapters import spaces
from bellmax.envs.environment import ArraySpec, DiscreteSpec, Environment
from bellmax.envs.types import TimeStep
from bellmax.envs.wrappers import AutoResetState

# So many live at once; those that have waited longest for a step are closed to make room, such as
# those of an evaluation that is over.
MOST_ENVIRONMENTS = 1024


class State(NamedTuple):
    """Which environment of this process it is.

    Attributes:
      slot: its number, which no other process has.
      time: steps taken; it comes from one callback and goes into the next, which keeps their order.
    """

    slot: Int[Array, ""]
    time: Int[Array, ""]


class _Pool:
    """The environments of one `make`, by slot, the last used last."""

    def __init__(
        self,
        make: Callable[[], Any],
        observe: Callable[[Any], np.ndarray],
        to_action: Callable[[Any], Any],
    ):
        self._make, self._observe, self._to_action = make, observe, to_action
        self._environments: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._ended: dict[int, bool] = {}
        first = int.from_bytes(os.urandom(3), "little") << 7
        self._numbers = itertools.count(first)

    def reset(self, seed: Any) -> tuple[np.int32, np.ndarray]:
        """Begins an episode in a new environment; returns its slot and what is seen."""
        slot = next(self._numbers) & 0x7FFFFFFF
        return np.int32(slot), self._begin(slot, int(seed))

    def step(self, slot: Any, time: Any, seed: Any, action: Any):
        """Takes a step, or begins the next episode after an end."""
        slot, time = int(slot), np.int32(time + 1)
        nothing = (np.float32(0), np.bool_(False))
        if slot not in self._environments:
            # Of a process that is gone, or closed: what is seen now is another episode's, and the
            # next step begins one as after any end.
            seen = self._begin(slot, int(seed))
            self._ended[slot] = True
            return time, seen, *nothing, np.bool_(True)
        self._environments.move_to_end(slot)
        if self._ended[slot]:
            return time, self._begin(slot, int(seed)), *nothing, np.bool_(False)
        taken = self._to_action(action)
        seen, reward, terminated, truncated, _ = self._environments[slot].step(taken)
        truncated = bool(truncated) and not terminated
        self._ended[slot] = bool(terminated) or truncated
        reward, ends = np.float32(reward), (np.bool_(terminated), np.bool_(truncated))
        return time, self._observe(seen), reward, *ends

    def _begin(self, slot: int, seed: int) -> np.ndarray:
        if slot not in self._environments:
            while len(self._environments) >= MOST_ENVIRONMENTS:
                oldest, environment = self._environments.popitem(last=False)
                del self._ended[oldest]
                environment.close()
            self._environments[slot] = self._make()
        self._ended[slot] = False
        seen, _ = self._environments[slot].reset(seed=seed)
        return self._observe(seen)


def adapt(make: Callable[[], Any], observe: Callable[[Any], Any] = np.asarray) -> Environment:
    """Returns Gymnasium environments as one of ours, which resets by itself.

    Args:
      make: returns a new Gymnasium environment; called once for every environment that runs.
      observe: what is shown of an observation, such as a transposition.

    Returns:
      The environment, with the semantics of `wrappers.auto_reset`; its dtype is that of `observe`,
      float64 as float32.

    Raises:
      ValueError: its actions are neither discrete nor an array within one range, or it shows no
        array.
    """
    example = make()
    action_spec, to_action = _actions(example.action_space)
    space = example.observation_space
    if getattr(space, "shape", None) is None or not hasattr(space, "high"):
        raise ValueError(f"make must give arrays to see (a Box), got {space}.")
    shown = np.asarray(observe(space.sample()))
    example.close()
    dtype = np.dtype(np.float32) if shown.dtype == np.float64 else shown.dtype
    pool = _Pool(make, lambda seen: np.asarray(observe(seen), dtype), to_action)
    seen_shape = jax.ShapeDtypeStruct(shown.shape, dtype)
    integer, flag = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.bool_)
    number = jax.ShapeDtypeStruct((), jnp.float32)

    def seed_of(key):
        return jax.random.randint(key, (), 0, np.iinfo(np.int32).max)

    def reset(key, params):
        del params
        slot, seen = io_callback(pool.reset, (integer, seen_shape), seed_of(key))
        no = jnp.zeros((), bool)
        state = AutoResetState(State(slot, jnp.zeros((), jnp.int32)), no)
        return state, TimeStep(seen, jnp.zeros(()), no, no)

    def step(key, state, action, params):
        del params
        shapes = (integer, seen_shape, number, flag, flag)
        slot, time = state.inner
        time, seen, reward, terminated, truncated = io_callback(
            pool.step, shapes, slot, time, seed_of(key), action
        )
        timestep = TimeStep(seen, reward, terminated, truncated)
        return AutoResetState(State(slot, time), terminated | truncated), timestep

    return Environment(
        reset=reset,
        step=step,
        params=(),
        observation_spec=ArraySpec(shown.shape, dtype),
        action_spec=action_spec,
        resets_itself=True,
    )


def _actions(space: Any) -> tuple[DiscreteSpec | ArraySpec, Callable[[Any], Any]]:
    """Returns what is done, and how an environment wants to be told."""
    spec = spaces.action_spec(space)
    if spec is None:
        raise ValueError(
            f"make must give discrete actions from 0 or a Box within one range, got {space}."
        )
    if isinstance(spec, DiscreteSpec):
        return spec, int
    return spec, lambda action: np.asarray(action, space.dtype)


def make(name: str, **options: Any) -> Environment:
    """Returns a Gymnasium environment by its registered name.

    Args:
      name: such as "CartPole-v1".
      **options: further arguments of `gymnasium.make`.

    Returns:
      The environment.

    Raises:
      ImportError: Gymnasium is not installed (extra `environments`).
      ValueError: there is no such environment, or it does not fit `adapt`.

    References:
      Towers et al., Gymnasium: A Standard Interface for Reinforcement Learning Environments, 2024.
      https://arxiv.org/abs/2407.17032
    """
    gymnasium = load(name)
    try:
        gymnasium.make(name, **options).close()
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(f"name and options must be Gymnasium's, got {name!r}: {error}") from error
    return adapt(lambda: gymnasium.make(name, **options))


def load(name: str) -> Any:
    """Returns the package, or says how to install it.

    Args:
      name: what it is needed for.

    Returns:
      The module `gymnasium`.

    Raises:
      ImportError: it is not installed.
    """
    try:
        return importlib.import_module("gymnasium")
    except ImportError as error:
        raise ImportError(
            f"{name} is one of Gymnasium's: pip install 'bellmax[environments]'."
        ) from error
