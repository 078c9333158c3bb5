r"""PPO on tokens, with a critic as large as the policy.

Paper: Schulman et al., Proximal Policy Optimization, 2017, https://arxiv.org/abs/1707.06347
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=ppo --workdir=runs/ppo
  python -m bellmax.experiments.reason --config=ppo:countdown --workdir=runs/ppo_countdown
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
