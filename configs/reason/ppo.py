r"""PPO on tokens, with a critic as large as the policy.

Paper: Schulman et al., Proximal Policy Optimization, 2017, https://arxiv.org/abs/1707.06347
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=ppo --workdir=runs/ppo
  python -m bellmax.experiments.reason --config=ppo:countdown --workdir=runs/ppo_countdown
Expected on addition (claim `reasoning_methods`, 3 seeds, 60 steps): pass@1 0.171 (0.053 to 0.299)
after ppo, from 0.094 (0.040 to 0.165) of the start; `config.train.warm_start_steps=300` starts
from about 0.6, where any method comes to 0.9 in 100 steps (one seed).
Cost: two minutes of CPU time on 2 cores, half of it compilation.
"""

import ml_collections

from bellmax.configs.reason import tasks


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: a task, one of `tasks.TASKS`; None for addition.

    Raises:
      ValueError: there is no such task.
    """
    return tasks.of_methods(("ppo",), variant)
