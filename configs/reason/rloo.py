r"""RLOO: REINFORCE whose baseline is the mean reward of the problem's other samples.

Paper: Ahmadian et al., Back to Basics, 2024, https://arxiv.org/abs/2402.14740
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=rloo --workdir=runs/rloo
  python -m bellmax.experiments.reason --config=rloo:countdown --workdir=runs/rloo_countdown
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
    return tasks.of_methods(("rloo",), variant)
