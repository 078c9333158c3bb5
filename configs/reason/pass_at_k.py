r"""Training for the best of k samples, beside training for the mean reward.

Paper: Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement
Learning, 2025, https://arxiv.org/abs/2503.19595
Command (programs that fit examples; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=pass_at_k --workdir=runs/pass_at_k
  python -m bellmax.experiments.reason --config=pass_at_k:countdown --workdir=runs/countdown
Expected on programs (claim `pass_at_k_training`, 3 seeds, 150 steps, `config.loss.k=8`): pass@1 and
pass@8 from 0.159 and 0.463 of the start to 0.192 and 0.528 (0.473 to 0.568) by training on pass@8,
to 0.232 and 0.364 (0.334 to 0.408) by RLOO.
Cost: two to three minutes of CPU time on 2 cores, half of it compilation.
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
