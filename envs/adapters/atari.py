"""Atari 2600 games through ale-py and Gymnasium, with the preprocessing of the benchmark.

Sticky actions with probability 0.25 and no end on the loss of a life (Machado et al.); up to 30
no-ops at the start, four frames an action with the maximum of the last two, 84 x 84 grey images,
four of them stacked (Mnih et al.).
"""

import importlib
from typing import Any

import numpy as np

from bellmax.envs.adapters import gymnasium
from bellmax.envs.environment import Environment


def make(
    game: str, *, sticky_actions: float = 0.25, no_ops: int = 30, max_frames: int = 108_000
) -> Environment:
    """Returns a game.

    Args:
      game: its name in the Arcade Learning Environment, such as "Breakout".
      sticky_actions: probability that an action is the last one again, frame by frame.
      no_ops: at most so many at the start of an episode.
      max_frames: frames after which an episode is cut off: 30 minutes of play.

    Returns:
      The environment; observations are [84, 84, 4] of uint8, rewards unclipped.

    Raises:
      ImportError: ale-py or opencv is not installed (extra `atari`).
      ValueError: there is no such game.

    References:
      Machado et al., Revisiting the Arcade Learning Environment, 2017.
      https://arxiv.org/abs/1709.06009
      Mnih et al., Human-level Control through Deep Reinforcement Learning, 2015.
      https://doi.org/10.1038/nature14236
    """
    library = gymnasium.load(game)
    try:
        ale: Any = importlib.import_module("ale_py")
        importlib.import_module("cv2")
    except ImportError as error:
        raise ImportError(
            f"{game} needs ale-py and opencv: pip install 'bellmax[atari]'."
        ) from error
    library.register_envs(ale)
    name = f"ALE/{game}-v5"

    def build() -> Any:
        raw = library.make(
            name,
            frameskip=1,
            repeat_action_probability=sticky_actions,
            max_num_frames_per_episode=max_frames,
        )
        wrappers = library.wrappers
        frames = wrappers.AtariPreprocessing(raw, noop_max=no_ops, frame_skip=4, screen_size=84)
        return wrappers.FrameStackObservation(frames, stack_size=4)

    try:
        build().close()
    except library.error.Error as error:
        raise ValueError(f"game must be one of ale-py's, got {game!r}: {error}") from error
    return gymnasium.adapt(build, lambda frames: np.moveaxis(np.asarray(frames), 0, -1))
