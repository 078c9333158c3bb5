r"""ReMax: REINFORCE whose baseline is the reward of the most likely completion.

Paper: Li et al., ReMax, 2023, https://arxiv.org/abs/2310.10505
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=remax --workdir=runs/remax
  python -m bellmax.experiments.reason --config=remax:countdown --workdir=runs/remax_countdown
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
    return tasks.of_methods(("remax",), variant)
