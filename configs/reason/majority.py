r"""Training for the vote of all samples of a problem, beside training for the mean reward.

Paper: Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement
Learning, 2025, https://arxiv.org/abs/2503.19595
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=majority --workdir=runs/majority
  python -m bellmax.experiments.reason --config=majority:multiplication --workdir=runs/vote
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
    return tasks.of_methods(("majority", "rloo"), variant, beta=0.0)
