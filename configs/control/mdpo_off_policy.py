r"""Mirror descent policy optimisation from a replay; discrete or continuous actions.

Paper: Tomar et al., Mirror Descent Policy Optimization, 2020, https://arxiv.org/abs/2005.09814
Command (CartPole by default; the environments need the extra `environments`):
  python -m bellmax.experiments.control --config=mdpo_off_policy --workdir=runs/off
  python -m bellmax.experiments.control --config=mdpo_off_policy:pendulum --workdir=runs/pendulum
Soft actor-critic is the case in which the old policy drops out; both from one start:
  python -m bellmax.experiments.control --config=mdpo_off_policy --workdir=runs/both \
      --config.loss.names="('mdpo_off_policy', 'sac')"
Cost: one minute of CPU time for CartPole (five seeds, 40,000 steps), and as much for Pendulum (five
seeds, 15,000 steps).
Expected, interquartile mean and 95% interval over the seeds of the greedy return after the last
step: CartPole 394 (285 to 498), seeds 250 to 500 and still rising, its settings the best of five
that were tried on the same seeds; Pendulum -144 (-167 to -124), the only ones tried.
The targets bootstrap from the target critics and not from a network of state values, as the
official code's do; Pendulum has its weights otherwise (1 / t = 1, entropy 0.2, m = 1000).
"""

import ml_collections

from bellmax.configs.control import base

VARIANTS = ("cartpole", "pendulum")


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: an environment, one of `VARIANTS`; None for cartpole.

    Raises:
      ValueError: there is no such variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"mdpo_off_policy has no variant {variant!r}; there are: {VARIANTS}")
    config = base.get_off_policy_config()
    if variant == "pendulum":
        config.update(
            {
                "data": {"name": "Pendulum-v1"},
                "train": {
                    "num_env_steps": 15_000,
                    "num_environments": 1,
                    "env_steps_per_update": 1,
                    "evaluation_steps": 200,
                    "evaluate_every": 12,
                },
            }
        )
    else:
        # Ten thousand updates: the targets follow fast enough to see as far as the discount does.
        config.update(
            {
                "optimizer": {"learning_rate": 2e-3, "max_grad_norm": 10.0},
                "loss": {
                    "discount": 0.98,
                    "target_decay": 0.95,
                    "inverse_step": 0.5,
                    "entropy_weight": 0.1,
                    "num_inner_steps": 250,
                },
            }
        )
    return config
