r"""Training for the best of k samples, beside training for the mean reward.

Paper: Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement
Learning, 2025, https://arxiv.org/abs/2503.19595
Command (programs that fit examples; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=pass_at_k --workdir=runs/pass_at_k
  python -m bellmax.experiments.reason --config=pass_at_k:countdown --workdir=runs/countdown
"""

import ml_collections

from bellmax.configs.reason import tasks


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: a task, one of `tasks.TASKS`; None for programs.

    Raises:
      ValueError: there is no such task.
    """
    return tasks.of_methods(("pass_at_k", "rloo"), variant or "programs", beta=0.0)
