r"""Mirror descent policy optimisation on the policy's own rollouts; discrete or continuous actions.

Paper: Tomar et al., Mirror Descent Policy Optimization, 2020, https://arxiv.org/abs/2005.09814
Command (CartPole by default; the environments need the extra `environments`), and beside PPO:
  python -m bellmax.experiments.control --config=mdpo --workdir=runs/mdpo
  python -m bellmax.experiments.control --config=mdpo:pendulum --workdir=runs/mdpo_pendulum
  python -m bellmax.experiments.control --config=mdpo --workdir=runs/both \
      --config.loss.names="('mdpo', 'ppo')" --config.loss.epochs="(20, 10)" \
      --config.loss.minibatches="(1, 8)"
Cost: 50 seconds of CPU time for CartPole, 40 for Pendulum (five seeds and 100,000 steps each).
Expected, interquartile mean and 95% interval over the seeds of the greedy return after the last
step: CartPole 500 (500 to 500), from 20,000 steps on in every seed, its settings the best of three
that were tried, on three of the seeds; Pendulum -158 (-171 to -147), averaged over evaluations
after the first -170 (-177 to -164), near `ppo`, whose settings it has, the best of five that were
tried on other seeds. Over 20 fresh seeds (`--config.seed=1 --config.train.num_seeds=20
--config.train.evaluate_every=3`) it comes to -172 (-179 to -163), the worst to -228, and none falls
below -300 that was above it. With CartPole's 20 updates on whole rollouts at a learning rate of
3e-3, five of 20 that were above it fell below -400 on the way.
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
    if variant != "pendulum":
        # Twenty gradient steps a rollout, each on all of it. Policy and values share one limit on
        # the gradient's norm: rewards are scaled so that the values' errors do not fill it.
        loss = {"epochs": (20,), "minibatches": (1,), "reward_scale": 0.05}
        config.update({"optimizer": {"learning_rate": 3e-3}, "loss": loss})
    return config
