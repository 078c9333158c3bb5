r"""Training for the vote of all samples of a problem, beside training for the mean reward.

Paper: Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement
Learning, 2025, https://arxiv.org/abs/2503.19595
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=majority --workdir=runs/majority
  python -m bellmax.experiments.reason --config=majority:multiplication --workdir=runs/vote
Expected on addition (3 seeds): pass@1 and majority@8 from 0.094 and 0.177 of the start to 0.106 and
0.187 (majority; 0.009 to 0.504 by seed) and 0.221 and 0.399 (rloo). The vote's reward teaches only
where votes are sometimes right: of two starts that solve less than a tenth, nothing is left.
Cost: three minutes of CPU time on 2 cores.
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
