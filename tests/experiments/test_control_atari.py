"""Atari with its usual settings: some windows of training, with a small network and replay."""

import numpy as np
import pytest

from bellmax.configs.control import c51_q_lambda
from bellmax.experiments import config as config_lib
from bellmax.experiments import control, control_config, metrics


@pytest.mark.slow
def test_trains_on_frames(tmp_path):
    for package in ("ale_py", "cv2", "gymnasium"):
        pytest.importorskip(package, reason="needs the extra 'atari'")
    config = c51_q_lambda.get_config("atari_breakout")
    config.update(
        {
            "model": {
                "hidden_sizes": (16,),
                "conv_channels": (4, 4),
                "conv_kernels": (8, 4),
                "conv_strides": (4, 2),
            },
            "loss": {
                "names": ("q_lambda",),
                "trace_decays": (0.7,),
                "mixings": (0.7,),
                "target_every": 20,
            },
            "train": {
                "num_env_steps": 480,
                "updates_per_step": 20,
                "batch_size": 4,
                "replay_size": 300,
                "learning_starts": 80,
                "evaluation_episodes": 1,
                "evaluation_steps": 20,
                "evaluate_every": 3,
                "checkpoint_every": 3,
            },
        }
    )
    assert config.to_dict()["data"]["reward_clip"] == 1.0
    parsed = config_lib.to_dataclass(control_config.ControlConfig, config)
    (row,) = control.train(parsed, tmp_path)
    assert np.isfinite(row["last_return"])
    trained = [row for row in metrics.read_metrics(tmp_path) if "loss" in row]
    assert trained[-1]["env_steps"] == 480
    assert trained[-1]["updates/skipped"] == 0
    assert all(np.isfinite(row["loss"]) for row in trained)
    # A law that is none yet: cross-entropy near that of 51 equal atoms.
    assert 0 < trained[-1]["loss"] < np.log(51) + 0.5
