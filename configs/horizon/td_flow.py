r"""Temporal-difference flows on chains whose future is known, in the point-mass maze, on bodies.

Paper: Farebrother et al., Temporal Difference Flows, 2025, https://arxiv.org/abs/2503.09817
Command (the noisy circle by default):
  python -m bellmax.experiments.horizon --config=td_flow --workdir=runs/circle
  python -m bellmax.experiments.horizon --config=td_flow:maze_loop --workdir=runs/loop
The maze's policies are scripted; `--config.data.policy=td3` trains one first, on what the models
learn from (for reach_top_right it is worth 27 to 31 after 12,000 to 20,000 updates, one seed; the
scripted one is worth 33.5).
Expected, means of three seeds: on the circle at 0.95 energy distances of 0.042 for TD-CFM, 0.0051
for TD-CFM(C) and 0.0018 for TD2-CFM, seeds within a quarter of them (claim `td_flow_circle`); in
`maze_loop` at 0.9 and 0.98 earth mover's distances of 0.060 and 0.240 for TD-CFM, 0.033 and 0.085
for TD-CFM(C), 0.032 and 0.076 for TD2-CFM, 0.037 and 0.144 for TD-DD, 0.039 and 0.121 for TD2-DD,
0.049 and 0.142 for the GAN (claim `td_flow_maze`, which has the others).
Two keys are other than the paper's or than the base's in mazes. `loss.clip_to_data=True`: else some
samples of a diffusion are metres off after so few updates, distances of 3.6 and 7.7 for TD-DD, 0.64
and 10.3 for TD2-DD. `model.baseline_residual=True`: the GAN's networks are residual, as the
paper's; plain ones come to 0.062 and 0.167.
Cost: two minutes for the three flows of the circle on 2 CPU cores; 13 minutes on one core for a
maze, where seven methods are trained at two discounts.

Bodies of the DeepMind Control Suite (extra `dm-control`):
  python -m bellmax.experiments.horizon --config=td_flow:walker_walk --workdir=runs/walker
`--config.data.task` takes the suite's other tasks of Walker, Cheetah and Quadruped. Models learn
from actions at random, or with `--config.data.path` from a folder of ExoRL's episodes; TD3 trains
the policy on the same transitions, and MuJoCo says what the truth is. The networks are the paper's
at a quarter of its width, trained on a quarter of its batch for a thousandth of its updates, so
that its numbers are out of reach. Expected at 0.95, of seed 0 alone, after a policy that TD3 has
brought from 5.0 to 25.5 (walker_walk), 4.1 to 20.0 (cheetah_run) and 10.1 to 16.3 (quadruped_walk)
of at most 100; truth is how far apart two samples of it are:
                 truth    TD-CFM   TD-CFM(C)   TD2-CFM
  walker_walk
    EMD            3.5      18.9        18.3      19.1
    energy dist.     -      1.78        1.40      1.22
    NLL              -      1.90        1.56      1.57
    MSE(V)           -       5.4         2.7       1.6
  cheetah_run
    EMD           0.89      10.7        6.01      6.95
    energy dist.     -      2.28        0.53      0.78
    NLL              -      0.98        0.55      0.66
    MSE(V)        0.01       1.8         2.5       2.4
  quadruped_walk
    EMD            4.9      35.6        29.4      34.0
    energy dist.     -      5.44        2.87      4.16
    NLL              -      1.86        1.42      1.39
    MSE(V)        0.01      11.3         2.6       1.7
Cost: 25 minutes of CPU time on 2 busy cores for the first two, 36 of one core for quadruped_walk.
"""

import ml_collections

from bellmax.configs.horizon import base

MAZE = (
    "maze_reach_top_left",
    "maze_reach_top_right",
    "maze_reach_bottom_left",
    "maze_reach_bottom_right",
    "maze_loop",
)
CONTROL = ("walker_walk", "cheetah_run", "quadruped_walk")
VARIANTS = ("noisy_circle", "ring", "linear_gaussian", *MAZE, *CONTROL)
METHODS = ("td_cfm", "coupled_td_cfm", "td2_cfm", "td_dd", "td2_dd", "vae", "gan")


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: a source, one of `VARIANTS`; None for noisy_circle.

    Raises:
      ValueError: there is no such variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"td_flow has no variant {variant!r}; there are: {VARIANTS}")
    config = base.get_config()
    if variant in MAZE:
        config.update(
            {
                "model": {
                    "hidden_sizes": (128, 128, 128),
                    "baseline_sizes": (128, 128, 128),
                    "baseline_residual": True,
                },
                "optimizer": {"learning_rate": 1e-3, "warmup_steps": 200},
                "data": {
                    "source": "maze",
                    "task": variant.removeprefix("maze_"),
                    "standardise": True,
                },
                # A target must have moved on 1 / (1 - discount) times before its futures are known.
                "loss": {
                    "names": METHODS,
                    "discounts": (0.9, 0.98),
                    "clip_to_data": True,
                    "target_decay": 0.95,
                },
                "train": {"num_updates": 4000, "evaluation_states": 32, "evaluate_every": 40},
            }
        )
    elif variant in CONTROL:
        config.update(
            {
                "model": {
                    "hidden_sizes": (128, 128, 128),
                    "u_shaped": True,
                    "time_features": 64,
                    "max_frequency": 1000.0,
                    "time_sizes": (64, 64),
                    "condition_sizes": (128, 128, 128),
                    "policy_sizes": (256, 256),
                },
                "optimizer": {"learning_rate": 1e-3, "warmup_steps": 200},
                "data": {
                    "source": "dm_control",
                    "task": variant,
                    "policy": "td3",
                    "num_transitions": 100_000,
                    "correlation": 0.9,
                    "standardise": True,
                },
                "loss": {"discounts": (0.95,), "target_decay": 0.98},
                "train": {
                    "num_updates": 3000,
                    "policy_updates": 10_000,
                    "policy_target_decay": 0.99,
                    "evaluate_every": 30,
                    "checkpoint_every": 10,
                },
            }
        )
    elif variant is not None:
        config.update({"data": {"source": variant}})
    return config
