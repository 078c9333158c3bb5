"""Scripted policies of the point-mass maze: deterministic, so that nothing has to be trained.

Each is a pure function of observations alone, of any batch shape.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax.envs.maze_tasks import GOALS

# observations [*B, 4] -> actions [*B, 2].
Controller = Callable[[Float[Array, "..."]], Float[Array, "..."]]

# Rooms clockwise: upper left, upper right, lower right, lower left. Passage k is between room k and
# the next one, its centre line at 0.24 metres, and is crossed clockwise in direction k.
_PASSAGE = 0.24
_DIRECTION = np.array([[1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 1.0]])
_CENTRE = _PASSAGE * np.array([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])
_GOAL_ROOM = {
    "reach_top_left": 0,
    "reach_top_right": 1,
    "reach_bottom_right": 2,
    "reach_bottom_left": 3,
}
# How far before and behind the passage its waypoints are, and how far from the centre line the
# mass may be to go through, in metres.
_APPROACH, _WIDTH = 0.07, 0.03
# Action per metre off the waypoint, and per metre per second: critically damped.
_STIFFNESS, _BRAKE = 30.0, 10.0
_LOOP_SPEED, _LOOP_STIFFNESS, _LOOP_BRAKE = 0.08, 15.0, 30.0


def controller(task: str) -> Controller:
    """Returns a policy that does a task well, though not in the best way.

    Reaching goes from room to room, to a waypoint before the passage, to one behind it, and then
    to the goal, where it comes to rest; from the room opposite it goes clockwise, and for
    reach_bottom_left_long from every room. Loop follows the diamond |x| + |y| = 0.24 clockwise at
    0.08 metres per second along both axes.

    Args:
      task: loop, or one of the reaching tasks.

    Returns:
      `observations [*B, 4] -> actions [*B, 2]`, in [-1, 1].

    Raises:
      ValueError: there is no controller for the task.
    """
    if task == "loop":
        return _loop
    if task in _GOAL_ROOM:
        return functools.partial(_reach, task=task, back=True)
    if task == "reach_bottom_left_long":
        return functools.partial(_reach, task="reach_bottom_left", back=False)
    names = ", ".join(["loop", *_GOAL_ROOM, "reach_bottom_left_long"])
    raise ValueError(f"task must be one of {names}, got {task!r}.")


def _reach(observations, *, task, back):
    """Goes to a goal; `back` for anticlockwise where that is shorter."""
    position, velocity = observations[..., :2], observations[..., 2:]
    dtype = observations.dtype
    centres, directions = jnp.asarray(_CENTRE, dtype), jnp.asarray(_DIRECTION, dtype)
    x, y = position[..., 0], position[..., 1]
    room = jnp.where(y >= 0, jnp.where(x <= 0, 0, 1), jnp.where(x > 0, 2, 3))
    rooms_ahead = (_GOAL_ROOM[task] - room) % 4
    backwards = (rooms_ahead == 3) & back
    passage = jnp.where(backwards, room - 1, room) % 4
    direction = jnp.where(backwards[..., None], -1, 1) * directions[passage]
    centre = centres[passage]
    # The passage's centre line is at 0.24 along the axis that its centre is on.
    off = jnp.abs(((position - centre) * centre).sum(-1)) / _PASSAGE
    ahead = _APPROACH * jnp.where(off < _WIDTH, 1, -1)
    waypoint = centre + ahead[..., None] * direction
    target = jnp.where((rooms_ahead == 0)[..., None], jnp.array(GOALS[task], dtype), waypoint)
    return _bounded(_STIFFNESS * (target - position) - _BRAKE * velocity)


def _loop(observations):
    """Follows the diamond clockwise: full force of the speed, and back to line and speed."""
    x, y, vx, vy = jnp.moveaxis(observations, -1, 0)
    right, up = jnp.where(y >= 0, 1, -1), jnp.where(x <= 0, 1, -1)
    speed = _LOOP_SPEED * jnp.stack([right, up], axis=-1)
    # Outwards is to the left of a clockwise course.
    outwards = jnp.stack([-up, right], axis=-1)
    off = (jnp.abs(x) + jnp.abs(y) - _PASSAGE)[..., None]
    velocity = jnp.stack([vx, vy], axis=-1)
    # A force of 0.1 per action against a damping of 1: ten actions hold a speed of 1.
    drive = 10 * speed + _LOOP_BRAKE * (speed - velocity) - _LOOP_STIFFNESS * off * outwards
    return _bounded(drive)


def _bounded(action):
    """Scales an action into [-1, 1] without turning it, so that the way is straight."""
    largest = jnp.abs(action).max(-1, keepdims=True)
    return action / jnp.maximum(largest, 1.0)
