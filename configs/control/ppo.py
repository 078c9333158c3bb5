r"""PPO on the policy's own rollouts; discrete or continuous actions.

Paper: Schulman et al., Proximal Policy Optimization Algorithms, 2017,
https://arxiv.org/abs/1707.06347
Command (CartPole by default; the environments need the extra `environments`):
  python -m bellmax.experiments.control --config=ppo --workdir=runs/ppo
  python -m bellmax.experiments.control --config=ppo:pendulum --workdir=runs/ppo_pendulum
Cost: 40 seconds of CPU time for CartPole, half a minute for Pendulum (five seeds and 100,000 steps
each). `--config.data.source=gymnasium` gives the same Pendulum with steps in Python, one at a time,
and a run of it that was stopped goes on with fresh episodes, and not bit for bit.
Expected, interquartile mean and 95% interval over the seeds of the greedy return after the last
step: CartPole 500 (500 to 500), from 40,000 steps on in every seed; Pendulum -161 (-172 to -147),
averaged over evaluations after the first -175 (-179 to -169).
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
    return of_method("ppo", variant)


def of_method(name: str, variant: str | None) -> ml_collections.ConfigDict:
    """Returns the config of a method of rollouts, with PPO's epochs and minibatches.

    Args:
      name: a key of `control_policies.ON_POLICY`.
      variant: as in `get_config`.

    Raises:
      ValueError: there is no such variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"{name} has no variant {variant!r}; there are: {VARIANTS}")
    config = base.get_rollout_config()
    config.update({"loss": {"names": (name,)}})
    if variant == "pendulum":
        config.update(
            {
                "data": {"name": "Pendulum-v1"},
                "loss": {"minibatches": (16,), "discount": 0.9, "reward_scale": 0.1},
                "train": {"rollout_length": 256, "evaluation_steps": 200},
            }
        )
    return config
