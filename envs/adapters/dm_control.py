"""Tasks of the DeepMind Control Suite as ours: MuJoCo runs in this process (extra `dm-control`).

Observations are the suite's own, flattened in its order, as float32. Actions are within [-1, 1],
which stands for the range that the suite gives each of them, as in ExoRL's files. Episodes are the
suite's, a thousand steps of most tasks, at whose end they are truncated.
"""

import importlib
from typing import Any

import numpy as np

from bellmax.envs.adapters import gymnasium
from bellmax.envs.environment import Environment


class _Task:
    """A task behind Gymnasium's interface."""

    def __init__(self, spaces: Any, environment: Any):
        self._environment = environment
        actions = environment.action_spec()
        self.action_space = spaces.Box(
            actions.minimum.astype(np.float32), actions.maximum.astype(np.float32)
        )
        (seen,) = self._environment.observation_spec().values()
        self.observation_space = spaces.Box(-np.inf, np.inf, seen.shape, np.float32)

    def reset(self, *, seed: int):
        """Begins an episode."""
        self._environment.task.random.seed(seed)
        return self._seen(self._environment.reset()), {}

    def step(self, action: np.ndarray):
        """Takes a step; only an end at a discount of 0 is the task's own."""
        moved = self._environment.step(action)
        terminated = moved.last() and moved.discount == 0
        truncated = moved.last() and not terminated
        return self._seen(moved), float(moved.reward), terminated, truncated, {}

    def close(self) -> None:
        """Frees MuJoCo's memory."""
        self._environment.close()

    def _seen(self, moved: Any) -> np.ndarray:
        (seen,) = moved.observation.values()
        return np.asarray(seen, np.float32)


def make(domain: str, task: str) -> Environment:
    """Returns a task of the suite.

    Args:
      domain: such as "walker", "cheetah" or "quadruped".
      task: such as "walk" or "run".

    Returns:
      The environment, which resets by itself. Its states cannot be saved, see
      `adapters.gymnasium`; `dm_control_states` sets them.

    Raises:
      ImportError: dm_control or Gymnasium is not installed (extra `dm-control`).
      ValueError: the suite has no such task.

    References:
      Tassa et al., DeepMind Control Suite, 2018. https://arxiv.org/abs/1801.00690
    """
    _, spaces = _packages(domain, task)
    return gymnasium.adapt(lambda: _Task(spaces, load(domain, task)))


def load(domain: str, task: str, **task_kwargs: Any) -> Any:
    """Returns a task as the suite has it, but for actions within [-1, 1] and flat observations.

    Args:
      domain: see `make`.
      task: likewise.
      **task_kwargs: of the suite's task, such as `time_limit`.

    Returns:
      An environment of dm_control.

    Raises:
      ImportError: dm_control or Gymnasium is not installed (extra `dm-control`).
      ValueError: the suite has no such task.
    """
    suite, _ = _packages(domain, task)
    environment = suite.load(
        domain, task, task_kwargs=task_kwargs, environment_kwargs={"flat_observation": True}
    )
    actions = environment.action_spec()
    one = np.ones(actions.shape)
    own = np.stack([actions.minimum, actions.maximum])
    # A range without ends cannot be scaled, and the adapter says so.
    if np.array_equal(own, [-one, one]) or not np.isfinite(own).all():
        return environment
    return importlib.import_module("dm_control.suite.wrappers.action_scale").Wrapper(
        environment, minimum=-one, maximum=one
    )


def _packages(domain: str, task: str) -> tuple[Any, Any]:
    """Returns `dm_control.suite`, which has the task, and `gymnasium.spaces`."""
    try:
        suite: Any = importlib.import_module("dm_control.suite")
        spaces: Any = importlib.import_module("gymnasium").spaces
    except ImportError as error:
        raise ImportError(
            f"{domain} needs dm_control and Gymnasium: pip install 'bellmax[dm-control]'."
        ) from error
    if (domain, task) not in suite.ALL_TASKS:
        tasks = ", ".join(sorted(name for kind, name in suite.ALL_TASKS if kind == domain))
        known = f"{domain} has {tasks}" if tasks else f"there is no domain {domain!r}"
        raise ValueError(f"domain and task must be the suite's, got {domain!r}, {task!r}; {known}.")
    return suite, spaces
