"""Preference matrices that were measured: tournaments of programs, and tables of Atari scores.

A folder holds the files as OpenSpiel publishes them, with the RoShamBo table as a matrix:

    soccer_winrates.txt       10 MuJoCo soccer teams, P(row beats column)
    rrps_bots.npz             43 RoShamBo programs, `payoff` per 1,000 throws and `names`
    atari_agent57_table.txt   8 agents on 57 games
    atari_muesli_table11.txt  4 agents on 57 games
    atari_rainbow_table5.txt  8 agents on 54 games

An Atari table becomes a vote: a game prefers the agent that scores more on it, and P is the share
of games that prefer the row to the column. "Human" and "random" are among its agents.
"""

import pathlib
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bellmax.envs import preference_games
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors

# Wins less losses in 1,000 throws.
_RRPS_SCALE = 1000.0
# Both sides of a pair of programs were measured apart: the two shares miss 1 by up to 0.018.
_RRPS_TOLERANCE = 0.02


class MetaGame(NamedTuple):
    """A measured game and what its actions are.

    Attributes:
      game: preferences, with the uniform reference.
      names: of the actions, in order.
    """

    game: preference_games.PreferenceGame
    names: tuple[str, ...]


def _soccer(path: pathlib.Path) -> MetaGame:
    game = preference_games.from_win_rates(np.loadtxt(path, ndmin=2))
    return MetaGame(game, tuple(f"team {i + 1}" for i in range(game.num_actions)))


def _rrps(path: pathlib.Path) -> MetaGame:
    with np.load(path) as stored:
        payoff, names = stored["payoff"], stored["names"]
    game = preference_games.from_payoffs(payoff, scale=_RRPS_SCALE, tolerance=_RRPS_TOLERANCE)
    if len(names) != game.num_actions:
        raise ValueError(f"{len(names)} names for {game.num_actions} rows")
    return MetaGame(game, tuple(str(name) for name in names))


def _atari(path: pathlib.Path) -> MetaGame:
    names, rows = (), []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if line.startswith("# game "):
            names = tuple(words[2:])
        elif words and not line.startswith("#"):
            # A score may have commas between thousands and a deviation after a plus-minus sign.
            rows.append([float(word.split("±")[0].replace(",", "")) for word in words[1:]])
    if not names or any(len(row) != len(names) for row in rows):
        raise ValueError("rows do not have one score for each agent of the '# game' line")
    scores = np.array(rows)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    margins = np.sign(scores[:, :, None] - scores[:, None, :])
    return MetaGame(preference_games.from_win_rates(0.5 + margins.mean(axis=0) / 2), names)


_FILES: dict[str, tuple[str, Callable[[pathlib.Path], MetaGame]]] = {
    "soccer": ("soccer_winrates.txt", _soccer),
    "rrps": ("rrps_bots.npz", _rrps),
    "atari_agent57": ("atari_agent57_table.txt", _atari),
    "atari_muesli": ("atari_muesli_table11.txt", _atari),
    "atari_rainbow": ("atari_rainbow_table5.txt", _atari),
}
NAMES = tuple(_FILES)


def load(name: str, directory: str | pathlib.Path) -> MetaGame:
    """Reads a measured game.

    Args:
      name: one of `NAMES`.
      directory: the folder of the files.

    Returns:
      The game, in JAX's default float dtype, and the names of its actions.

    Raises:
      UserError: there is no such game, its file is missing, or what the file holds is no game.
    """
    if name not in _FILES:
        raise errors.UserError(
            f"{name!r} is no measured game.{config_lib.did_you_mean(name, NAMES)} There are: "
            f"{', '.join(NAMES)}."
        )
    filename, read = _FILES[name]
    path = pathlib.Path(directory) / filename
    if not path.is_file():
        raise errors.UserError(f"the game {name!r} needs {path}, and there is no such file.")
    try:
        return read(path)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise errors.UserError(f"{path} holds no {name!r} game: {error}.") from error
