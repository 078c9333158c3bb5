r"""GRPO, Dr. GRPO and DAPO: clipped surrogates of rewards standardised within a group.

Paper: Shao et al., DeepSeekMath, 2024, https://arxiv.org/abs/2402.03300
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=grpo --workdir=runs/grpo
  python -m bellmax.experiments.reason --config=grpo:countdown --workdir=runs/grpo_countdown
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
    return tasks.of_methods(("grpo", "dr_grpo", "dapo"), variant)
