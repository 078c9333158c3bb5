r"""C51 with Q(lambda), without importance sampling, beside Retrace and one-step targets.

Paper: Tang et al., Off-policy Distributional Q(lambda): Distributional RL without Importance
Sampling, 2024, https://arxiv.org/abs/2402.05766
Command (FrozenLake by default, which needs no further package; the others need the extra
`environments`):
  python -m bellmax.experiments.control --config=c51_q_lambda --workdir=runs/lake
  python -m bellmax.experiments.control --config=c51_q_lambda:cartpole --workdir=runs/cartpole
  python -m bellmax.experiments.control --config=c51_q_lambda:minatar_breakout --workdir=runs/b
Atari (extra `atari`) has the usual preprocessing and settings, rewards clipped to 1; its games step
in Python, one at a time, 200 million frames are for an accelerator, and the replay of a million
stacked frames takes 28 GB (`--config.train.replay_size` for less):
  python -m bellmax.experiments.control --config=c51_q_lambda:atari_breakout --workdir=runs/a
Cost: minutes for FrozenLake and CartPole on 2 CPU cores; half an hour and more for 200,000 steps of
a MinAtar game, five seeds and three methods.
Expected (claim `q_lambda_control`), interquartile mean and 95% interval over five seeds of the
greedy return, for Q(lambda), Retrace and one step: on CartPole after 100,000 steps 500 (500 to
500), 500 (500 to 500), 200 (155 to 254), averaged over evaluations 325, 318, 220; after 200,000
steps on Breakout 8.0 (7.1 to 8.3), 8.5 (7.4 to 11.2), 6.9 (6.1 to 7.9), averaged 5.7, 5.6, 4.9; on
Space Invaders 31 (21 to 37), 23 (20 to 31), 29 (26 to 34), averaged 22.4, 17.8, 18.7. Q(lambda) is
ahead of one step on every task while it learns; Retrace is as good on two, and behind on Space
Invaders, where the last returns do not tell the three apart.
"""

import ml_collections

from bellmax.configs.control import base

MINATAR = {
    "minatar_asterix": "Asterix-MinAtar",
    "minatar_breakout": "Breakout-MinAtar",
    "minatar_freeway": "Freeway-MinAtar",
    "minatar_space_invaders": "SpaceInvaders-MinAtar",
}
VARIANTS = ("frozen_lake", "cliff_walk", "cartpole", "acrobot", *MINATAR, "atari_breakout")


def _variant(name: str) -> dict:
    if name == "frozen_lake":
        return {}
    if name == "cliff_walk":
        return {"data": {"name": name}, "model": {"v_min": -200.0, "v_max": 0.0}}
    if name in ("cartpole", "acrobot"):
        number = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1"}[name]
        bounds = {"cartpole": (0.0, 100.0), "acrobot": (-100.0, 0.0)}[name]
        return {
            "data": {"source": "gymnax", "name": number},
            "model": {"hidden_sizes": (128, 128), "v_min": bounds[0], "v_max": bounds[1]},
            "optimizer": {"learning_rate": 5e-4},
            "train": {
                "num_env_steps": 100_000,
                "replay_size": 50_000,
                "epsilon_env_steps": 20_000,
                "evaluation_episodes": 16,
                "evaluation_steps": 500,
            },
        }
    if name == "atari_breakout":
        return {
            "data": {"source": "atari", "name": "Breakout", "reward_clip": 1.0},
            "model": {
                "hidden_sizes": (512,),
                "conv_channels": (32, 64, 64),
                "conv_kernels": (8, 4, 3),
                "conv_strides": (4, 2, 1),
                "observation_scale": 1 / 255,
                "v_min": -10.0,
                "v_max": 10.0,
            },
            "optimizer": {"learning_rate": 2.5e-4},
            "loss": {"target_every": 2000},
            "train": {
                "num_seeds": 1,
                "num_env_steps": 50_000_000,  # 200 million frames.
                "num_environments": 1,
                "replay_size": 1_000_000,
                "learning_starts": 20_000,
                "epsilon_end": 0.01,
                "epsilon_env_steps": 250_000,
                "evaluation_episodes": 8,
                "evaluation_steps": 27_000,
                "evaluate_every": 250,
                "checkpoint_every": 250,
            },
        }
    # A good policy of Space Invaders is paid more than one point every ten steps.
    v_min, v_max = (0.0, 30.0) if name == "minatar_space_invaders" else (-10.0, 10.0)
    return {
        "data": {"source": "gymnax", "name": MINATAR[name], "sticky_actions": 0.1},
        "model": {
            "hidden_sizes": (128,),
            "conv_channels": (16,),
            "v_min": v_min,
            "v_max": v_max,
        },
        "optimizer": {"learning_rate": 2.5e-4},
        "loss": {"target_every": 500},
        "train": {
            "num_env_steps": 500_000,
            "replay_size": 100_000,
            "learning_starts": 5000,
            "epsilon_env_steps": 100_000,
            "evaluation_episodes": 16,
            "evaluation_steps": 1000,  # Gymnax ends an episode there.
            "log_every": 5,
            "evaluate_every": 25,
            "checkpoint_every": 100,
        },
    }


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: an environment, one of `VARIANTS`; None for frozen_lake.

    Raises:
      ValueError: there is no such variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"c51_q_lambda has no variant {variant!r}; there are: {VARIANTS}")
    config = base.get_config()
    config.update(_variant(variant or "frozen_lake"))
    return config
