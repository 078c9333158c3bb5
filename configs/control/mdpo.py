r"""Mirror descent policy optimisation on the policy's own rollouts; discrete or continuous actions.

Paper: Tomar et al., Mirror Descent Policy Optimization, 2020, https://arxiv.org/abs/2005.09814
Command (CartPole by default; the environments need the extra `environments`), and beside PPO:
  python -m bellmax.experiments.control --config=mdpo --workdir=runs/mdpo
  python -m bellmax.experiments.control --config=mdpo:pendulum --workdir=runs/mdpo_pendulum
  python -m bellmax.experiments.control --config=mdpo --workdir=runs/both \
      --config.loss.names="('mdpo', 'ppo')" --config.loss.epochs="(20, 10)" \
      --config.loss.minibatches="(1, 8)"
Cost: 50 seconds of CPU time for CartPole (five seeds, 100,000 steps), two minutes and a half for
Pendulum (three seeds, 100,000 steps, in Python: see `ppo`).
Expected, interquartile mean and 95% interval over the seeds of the greedy return after the last
step: CartPole 500 (500 to 500), from 20,000 steps on in every seed; Pendulum -331 (-518 to -206),
averaged over evaluations after the first -299 (-474 to -191): one seed of three fell back late.
CartPole's settings are the best of three that were tried, on three of the seeds.
The step size declines from 1 to 0 over the run, as in the paper. Unlike its code, one optimiser
takes both losses' steps: the values have no minibatches of their own.
"""

import ml_collections

from bellmax.configs.control import ppo


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: an environment, as in `ppo`.

    Raises:
      ValueError: there is no such variant.
    """
    config = ppo.of_method("mdpo", variant)
    # Twenty gradient steps a rollout, each on all of it. Policy and values share one limit on the
    # gradient's norm: rewards are scaled so that the values' errors do not fill it.
    loss: dict = {"epochs": (20,), "minibatches": (1,)}
    if variant != "pendulum":
        loss["reward_scale"] = 0.05
    config.update({"optimizer": {"learning_rate": 3e-3}, "loss": loss})
    return config
