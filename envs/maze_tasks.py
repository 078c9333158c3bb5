"""What the tasks of the point-mass maze pay, as functions of arrays of states and actions.

A reward is of the state that a step reaches, and of the action that led there, as in the DeepMind
Control Suite. Only the reaching tasks look at the action, which they discount by up to a fifth;
where none is handed in they pay as for an action of 0, so that states of which nothing else is
known, those of a model of the future for instance, can be valued.

The four goals and the bonus for small actions are ExoRL's. Loop, square, fast_slow and
reach_bottom_left_long, and the margin of six times the goal's size, which ExoRL has at one, are
those of the later task file that Meta has released with its work on forward-backward
representations: ExoRL's pay 0 but for the nearest 0.04 metres or so.

References:
  Yarats et al., Don't Change the Algorithm, Change the Data: Exploratory Data for Offline
  Reinforcement Learning, 2022. https://arxiv.org/abs/2201.13425
  Tassa et al., DeepMind Control Suite, 2018. https://arxiv.org/abs/1801.00690
  Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
"""

import functools
import math
from collections.abc import Callable

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

GOALS = {
    "reach_top_left": (-0.15, 0.15),
    "reach_top_right": (0.15, 0.15),
    "reach_bottom_left": (-0.15, -0.15),
    "reach_bottom_right": (0.15, -0.15),
}
GOAL_SIZE = 0.015
# (observations [*B, 4], actions [*B, 2] or None) -> rewards [*B].
Reward = Callable[[Float[Array, "..."], Float[Array, "..."] | None], Float[Array, "..."]]


def linear_tolerance(
    values: Float[Array, "*B"], low: float, high: float, margin: float
) -> Float[Array, "*B"]:
    """Returns 1 from `low` to `high`, and on either side a line down to 0 at the margin's end.

    Args:
      values: any. [*B].
      low: the least value that is as good as it can be.
      high: the greatest one.
      margin: how far from them nothing is left, > 0.

    Returns:
      Numbers in [0, 1]. [*B].
    """
    return jnp.maximum(1 - _beyond(values, low, high) / margin, 0.0)


def gaussian_tolerance(
    values: Float[Array, "*B"], low: float, high: float, margin: float
) -> Float[Array, "*B"]:
    """Returns 1 from `low` to `high`, and on either side a bell that is at 0.1 at the margin's end.

    Args:
      values: any. [*B].
      low: the least value that is as good as it can be.
      high: the greatest one.
      margin: how far from them a tenth is left, > 0.

    Returns:
      Numbers in (0, 1]. [*B].
    """
    return jnp.power(0.1, jnp.square(_beyond(values, low, high) / margin))


def reach_reward(
    observations: Float[Array, "*B 4"],
    actions: Float[Array, "*B 2"] | None = None,
    *,
    goal: tuple[float, float],
    margin: float = 6 * GOAL_SIZE,
) -> Float[Array, "*B"]:
    r"""Pays for being near a goal, most with no action.

    .. math:: r = 10^{-(\max(d - 0.015, 0) / margin)^2} \cdot
              \left(1 - \tfrac{1}{10} (a_x^2 + a_y^2)\right)

    with d the distance from the goal.

    Args:
      observations: states reached. [*B, 4].
      actions: that led there, in [-1, 1]. [*B, 2]; None for 0.
      goal: x and y, in metres.
      margin: in metres, > 0; 0.015 is ExoRL's.

    Returns:
      Rewards, in (0, 1]. [*B].
    """
    away = observations[..., :2] - jnp.array(goal, observations.dtype)
    near = gaussian_tolerance(jnp.linalg.norm(away, axis=-1), 0.0, GOAL_SIZE, margin)
    if actions is None:
        return near
    # (4 + mean of 1 - a^2) / 5.
    bonus = 1 - jnp.square(jnp.clip(actions, -1.0, 1.0)).mean(-1) / 5
    return near * bonus


def loop_reward(
    observations: Float[Array, "*B 4"], actions: Float[Array, "*B 2"] | None = None
) -> Float[Array, "*B"]:
    """Pays for going clockwise along the diamond |x| + |y| = 0.24, at 0.06 to 0.1 in both axes.

    A third is for the distance from the side of the diamond in this room, 1 up to 0.02 metres from
    it and 0 from 0.04 on; a third for each component of the velocity, 1 where it is right and 0
    from 0.01 metres per second off.

    Args:
      observations: states reached. [*B, 4].
      actions: not looked at.

    Returns:
      Rewards, in [0, 1]. [*B].
    """
    del actions
    x, y, vx, vy = jnp.moveaxis(observations, -1, 0)
    # Rooms as the published tasks bound them: the left one has x = 0, the upper one y = 0.
    along_x = jnp.where(y >= 0, vx, -vx)
    along_y = jnp.where(x <= 0, vy, -vy)
    away = jnp.abs(jnp.abs(x) + jnp.abs(y) - 0.24) / math.sqrt(2)
    terms = (
        linear_tolerance(away, 0.0, 0.02, 0.02),
        linear_tolerance(along_x, 0.06, 0.1, 0.01),
        linear_tolerance(along_y, 0.06, 0.1, 0.01),
    )
    return sum(terms[1:], terms[0]) / 3


def square_reward(
    observations: Float[Array, "*B 4"], actions: Float[Array, "*B 2"] | None = None
) -> Float[Array, "*B"]:
    """Pays for going clockwise along the edges, ten times the speed there up to 0.1.

    A place belongs to an edge beyond 0.2 metres from the centre line; a corner, which belongs to
    two, pays nothing.

    Args:
      observations: states reached. [*B, 4].
      actions: not looked at.

    Returns:
      Rewards, in [0, 1]. [*B].
    """
    del actions
    _, _, vx, vy = jnp.moveaxis(observations, -1, 0)
    sides = _sides(observations, 0.2, math.inf)
    return _on_one_side(sides, [10 * jnp.clip(v, 0.0, 0.1) for v in (vx, -vy, -vx, vy)])


def fast_slow_reward(
    observations: Float[Array, "*B 4"], actions: Float[Array, "*B 2"] | None = None
) -> Float[Array, "*B"]:
    """Pays for going anticlockwise along the edges, slowly above and below, fast at the sides.

    Between 0.2 and 0.28 metres from the centre line, in no corner: 1 for a speed of 0.04 to 0.05
    at the upper and the lower edge, and of 0.09 to 0.1 at the left and the right one, 0 from 0.01
    metres per second off.

    Args:
      observations: states reached. [*B, 4].
      actions: not looked at.

    Returns:
      Rewards, in [0, 1]. [*B].
    """
    del actions
    _, _, vx, vy = jnp.moveaxis(observations, -1, 0)
    pays = [
        linear_tolerance(-vx, 0.04, 0.05, 0.01),
        linear_tolerance(vy, 0.09, 0.1, 0.01),
        linear_tolerance(vx, 0.04, 0.05, 0.01),
        linear_tolerance(-vy, 0.09, 0.1, 0.01),
    ]
    return _on_one_side(_sides(observations, 0.2, 0.28), pays)


def long_way_reward(
    observations: Float[Array, "*B 4"], actions: Float[Array, "*B 2"] | None = None
) -> Float[Array, "*B"]:
    """Pays for the lower left goal, and far from it for going there clockwise, the long way.

    It is `reach_reward` where that is at least 0.01. Elsewhere, beyond 0.15 metres from the centre
    line and in no corner, it is 5 times the clockwise speed along the edge, and 100 times it where
    that is negative; speeds count up to 0.1.

    Args:
      observations: states reached. [*B, 4].
      actions: that led there, in [-1, 1]. [*B, 2]; None for 0.

    Returns:
      Rewards, in [-10, 1]. [*B].
    """
    near = reach_reward(observations, actions, goal=GOALS["reach_bottom_left"])
    _, _, vx, vy = jnp.moveaxis(observations, -1, 0)
    speeds = [jnp.clip(v, -0.1, 0.1) for v in (vx, -vy, -vx, vy)]
    pays = [jnp.where(speed >= 0, 5 * speed, 100 * speed) for speed in speeds]
    on_the_way = _on_one_side(_sides(observations, 0.15, math.inf), pays)
    return jnp.where(near < 0.01, on_the_way, near)


TASKS: dict[str, Reward] = {
    **{name: functools.partial(reach_reward, goal=goal) for name, goal in GOALS.items()},
    "reach_bottom_left_long": long_way_reward,
    "loop": loop_reward,
    "square": square_reward,
    "fast_slow": fast_slow_reward,
}


def reward(
    task: str,
    observations: Float[Array, "*B 4"],
    actions: Float[Array, "*B 2"] | None = None,
) -> Float[Array, "*B"]:
    """Returns what a task pays for the states reached.

    Args:
      task: a name in `TASKS`.
      observations: x, y, vx, vy of the states reached. [*B, 4].
      actions: that led there, in [-1, 1]. [*B, 2]; None where they are not known, which the
        reaching tasks take for 0.

    Returns:
      Rewards. [*B].

    Raises:
      ValueError: there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
    chex.assert_axis_dimension(observations, -1, 4)
    if actions is not None:
        chex.assert_axis_dimension(actions, -1, 2)
    return TASKS[task](observations, actions)


def _beyond(values, low, high):
    return jnp.maximum(jnp.maximum(low - values, values - high), 0.0)


def _sides(observations, near, far):
    """Whether a place is at the upper, the right, the lower and the left edge."""
    x, y = observations[..., 0], observations[..., 1]
    return [(place > near) & (place < far) for place in (y, x, -y, -x)]


def _on_one_side(sides, pays):
    """What the one side that a place is at pays; 0 at none or at two."""
    total = sum(jnp.where(side, pay, 0.0) for side, pay in zip(sides, pays, strict=True))
    return jnp.where(sum(side.astype(jnp.int32) for side in sides) > 1, 0.0, total)
