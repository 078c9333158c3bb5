"""Walker, Cheetah and Quadruped of the DeepMind Control Suite from any state, on the host.

MuJoCo's state is the positions, velocities and activations in double precision. What its solver
begins its search from is no part of it and is forgotten before every step, so that a step is a
function of state and action alone; it differs from a step of an episode that has gone on, where the
solver begins at the step before, by the solver's tolerance.
"""

import contextlib
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bellmax.envs.adapters import dm_control

# The suite's tasks whose reward is a function of what it shows.
TASKS: Mapping[str, tuple[str, ...]] = {
    "walker": ("stand", "walk", "run"),
    "cheetah": ("run",),
    "quadruped": ("walk", "run"),
}


class Steps(NamedTuple):
    """Where steps have led.

    Attributes:
      states: MuJoCo's. [E, S].
      observations: the suite's, flattened in its order. [E, D].
      rewards: of the steps, in [0, 1]. [E].
    """

    states: Float[np.ndarray, "E S"]
    observations: Float[np.ndarray, "E D"]
    rewards: Float[np.ndarray, " E"]


class Simulator:
    """A task that begins at any state and never ends.

    Args:
      domain: a key of `TASKS`.
      task: one of its tasks.

    Attributes:
      observation_size: D, features of an observation.
      action_size: A, features of an action in [-1, 1].

    Raises:
      ImportError: dm_control or Gymnasium is not installed (extra `dm-control`).
      ValueError: `TASKS` has no such task.
    """

    def __init__(self, domain: str, task: str):
        if task not in TASKS.get(domain, ()):
            known = ", ".join(f"{name} {kind}" for name, kinds in TASKS.items() for kind in kinds)
            raise ValueError(f"domain and task must be one of {known}, got {domain!r}, {task!r}.")
        self._environment = dm_control.load(domain, task, time_limit=math.inf)
        self._environment.reset()
        self._physics_error = importlib.import_module("dm_control.rl.control").PhysicsError
        self._physics, self._task = self._environment.physics, self._environment.task
        self._reward_of = _REWARDS[domain]
        shown = self._task.get_observation(self._physics)
        self._names = list(shown)
        sizes = [np.size(part) for part in shown.values()]
        self._cuts = np.cumsum(sizes)[:-1]
        self.observation_size = sum(sizes)
        (self.action_size,) = self._environment.action_spec().shape

    def begin(self, seeds: np.ndarray) -> tuple[Float[np.ndarray, "E S"], Float[np.ndarray, "E D"]]:
        """Draws first states of episodes, as the suite does.

        Args:
          seeds: one an episode, from 0 to 2^31 - 1. [E].

        Returns:
          States and observations.
        """
        states, shown = [], []
        for seed in seeds:
            self._task.random.seed(int(seed))
            shown.append(_flat(self._environment.reset()))
            states.append(self._physics.get_state())
        return np.stack(states), np.stack(shown)

    def step(self, states: Float[np.ndarray, "E S"], actions: Float[np.ndarray, "E A"]) -> Steps:
        """Takes a step from each state.

        Args:
          states: of `begin` or of another step.
          actions: in [-1, 1].

        Returns:
          Where they have led.
        """
        found = []
        for state, action in zip(states, actions, strict=True):
            with self._physics.reset_context():
                self._physics.set_state(state)
            moved = self._environment.step(np.asarray(action, np.float64))
            found.append((self._physics.get_state(), _flat(moved), moved.reward))
        return Steps(*(np.asarray(column) for column in zip(*found, strict=True)))

    def rewards(self, observations: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B"]:
        """Returns what the task pays where this is seen: the suite's own function, nothing fitted.

        The quadruped shows both readings that its tasks pay for. The other two show all of MuJoCo's
        state but the horizontal place, which no reward depends on; the speed of the centre of mass
        is MuJoCo's. Orientations that are no unit vectors are those of their directions.

        Args:
          observations: seen or made up. [..., D].

        Returns:
          Rewards; NaN where an observation is not finite, or too large for MuJoCo. [...].
        """
        rows = np.asarray(observations, np.float64).reshape(-1, self.observation_size)
        found = np.full(len(rows), np.nan)
        for place in np.flatnonzero(np.isfinite(rows).all(axis=-1)):
            parts = dict(zip(self._names, np.split(rows[place], self._cuts), strict=True))
            with contextlib.suppress(self._physics_error):
                found[place] = self._reward_of(self._task, self._physics, parts)
        return found.reshape(np.shape(observations)[:-1])


def _flat(moved: Any) -> np.ndarray:
    (seen,) = moved.observation.values()
    return np.array(seen, np.float64)


def _walker(task: Any, physics: Any, parts: Mapping[str, np.ndarray]) -> float:
    cosines, sines = parts["orientations"].reshape(-1, 2).T
    # Of every body in the vertical plane; the world itself comes first.
    angles = np.concatenate([[0.0], np.arctan2(sines, cosines)])
    hinges = angles[1:] - angles[physics.model.body_parentid[1:]]
    # All but the torso's turn the other way round.
    hinges[1:] *= -1
    height = parts["height"] - physics.model.body_pos[1, 2]
    return _paid(task, physics, np.concatenate([height, [0.0], hinges]), parts["velocity"])


def _cheetah(task: Any, physics: Any, parts: Mapping[str, np.ndarray]) -> float:
    return _paid(task, physics, np.concatenate([[0.0], parts["position"]]), parts["velocity"])


def _paid(task: Any, physics: Any, positions: np.ndarray, velocities: np.ndarray) -> float:
    # Of no consequence to places and velocities; made-up states may be full of contacts.
    with physics.model.disable("constraint"):
        physics.set_state(np.concatenate([positions, velocities]))
        physics.forward()
    return float(task.get_reward(physics))


class _Readings(NamedTuple):
    """All that the quadruped's tasks ask its physics for.

    Attributes:
      velocity: of the torso, in its own frame. [3].
      upright: the torso's vertical axis along the world's, in [-1, 1].
    """

    velocity: np.ndarray
    upright: float

    def torso_velocity(self) -> np.ndarray:
        """Returns the velocity."""
        return self.velocity

    def torso_upright(self) -> float:
        """Returns how upright the torso is."""
        return self.upright


def _quadruped(task: Any, physics: Any, parts: Mapping[str, np.ndarray]) -> float:
    del physics
    readings = _Readings(parts["torso_velocity"], float(parts["torso_upright"][0]))
    return float(task.get_reward(readings))


_REWARDS: Mapping[str, Callable[[Any, Any, Mapping[str, np.ndarray]], float]] = {
    "walker": _walker,
    "cheetah": _cheetah,
    "quadruped": _quadruped,
}
