"""Grid worlds with published laws: the cliff walk and the frozen lake, as tables."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax.envs import tabular
from bellmax.envs.tabular import TabularMDP

# S start, F frozen, H hole, G goal.
LAKE_4X4 = ("SFFF", "FHFH", "FFFH", "HFFG")
LAKE_8X8 = (
    "SFFFFFFF",
    "FFFFFFFF",
    "FFFHFFFF",
    "FFFFFHFF",
    "FFFHFFFF",
    "FHHFFFHF",
    "FHFFHFHF",
    "FFFHFFFG",
)
# Rows and columns of a move; the neighbours in the list, in a circle, are the sideways ones.
_LAKE_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
_CLIFF_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
_CLIFF_ROWS, _CLIFF_COLUMNS = 4, 12


def _neighbour(place: int, move: tuple[int, int], rows: int, columns: int) -> int:
    """Returns where a move leads; walls keep it in place."""
    row = min(max(place // columns + move[0], 0), rows - 1)
    column = min(max(place % columns + move[1], 0), columns - 1)
    return row * columns + column


def frozen_lake(
    lake: Sequence[str] = LAKE_4X4,
    *,
    success: float = 1 / 3,
    discount: float | Float[Array, ""] = 0.99,
    max_steps: int | None = None,
) -> TabularMDP:
    """Returns the frozen lake: reach the goal over slippery ice without falling into a hole.

    Cells are numbered row by row; action 0 goes left, 1 down, 2 right, 3 up. A move goes where it
    should with probability `success`, and to either side with half of the rest; at the edge it
    stays in place. Holes are terminal. The goal pays 1 on the step that leaves it, for one more
    state behind the last cell, which is terminal: the published environment pays on the step that
    reaches it, so that its return is this one divided by the discount, and its episodes are one
    step shorter.

    Args:
      lake: rows of equal length, of the letters S, F, H and G; one S, one G or more.
      success: probability that a move goes where it should, in [0, 1]; 1 / 3 is the published one,
        1 the lake that is not slippery.
      discount: gamma, in [0, 1).
      max_steps: steps after which an episode is cut off; None for never. The published limits are
        100 on the small lake and 200 on the large one, one less than here.

    Returns:
      The MDP, of 4 actions and one state more than the lake has cells.

    Raises:
      ValueError: the lake is malformed, or a number is out of range.

    References:
      Gymnasium, FrozenLake-v1. https://gymnasium.farama.org/environments/toy_text/frozen_lake
    """
    cells = "".join(lake)
    if len({len(row) for row in lake}) != 1 or set(cells) - set("SFHG") or cells.count("S") != 1:
        raise ValueError(
            f"lake must hold rows of one length, of the letters S, F, H and G, with one S; got "
            f"{list(lake)}."
        )
    if "G" not in cells:
        raise ValueError(f"lake must have a goal, got {list(lake)}.")
    if not 0 <= success <= 1:
        raise ValueError(f"success must be in [0, 1], got {success}.")
    rows, columns, end = len(lake), len(lake[0]), len(cells)
    transition = np.zeros((end + 1, 4, end + 1))
    reward = np.zeros((end + 1, 4))
    terminal = np.array([cell == "H" for cell in cells] + [True])
    for place, cell in enumerate(cells):
        for action in range(4):
            if cell == "G":
                transition[place, action, end] = reward[place, action] = 1
                continue
            for turn, share in ((-1, (1 - success) / 2), (0, success), (1, (1 - success) / 2)):
                move = _LAKE_MOVES[(action + turn) % 4]
                transition[place, action, _neighbour(place, move, rows, columns)] += share
    start = np.eye(end + 1)[cells.index("S")]
    return _to_mdp(transition, reward, discount, start, terminal, max_steps)


def cliff_walk(
    *, discount: float | Float[Array, ""] = 0.99, max_steps: int | None = None
) -> TabularMDP:
    """Returns the cliff walk: from one corner to the next along a cliff, which is dear to fall off.

    4 rows of 12 cells, numbered row by row; action 0 goes up, 1 right, 2 down, 3 left, for certain.
    The start is the lower left corner, the goal, which is terminal, the lower right one, and
    between them is the cliff. A step costs 1, one onto the cliff costs 100 and leads back to the
    start.

    Args:
      discount: gamma, in [0, 1).
      max_steps: steps after which an episode is cut off; None for never.

    Returns:
      The MDP, of 48 states and 4 actions; the cells of the cliff are never reached.

    Raises:
      ValueError: a number is out of range.

    References:
      Sutton and Barto, Reinforcement Learning: An Introduction, 2018, example 6.6.
    """
    size = _CLIFF_ROWS * _CLIFF_COLUMNS
    start, goal = size - _CLIFF_COLUMNS, size - 1
    transition = np.zeros((size, 4, size))
    reward = np.full((size, 4), -1.0)
    for place in range(size):
        for action, move in enumerate(_CLIFF_MOVES):
            reached = _neighbour(place, move, _CLIFF_ROWS, _CLIFF_COLUMNS)
            if start < reached < goal:
                reached, reward[place, action] = start, -100.0
            transition[place, action, reached] = 1
    terminal = np.arange(size) == goal
    return _to_mdp(transition, reward, discount, np.eye(size)[start], terminal, max_steps)


def _to_mdp(
    transition: np.ndarray,
    reward: np.ndarray,
    discount: float | Array,
    initial: np.ndarray,
    terminal: np.ndarray,
    max_steps: int | None,
) -> TabularMDP:
    return tabular.make(
        jnp.asarray(transition, float),
        jnp.asarray(reward, float),
        discount,
        initial=jnp.asarray(initial, float),
        terminal=jnp.asarray(terminal),
        max_steps=max_steps,
    )
