r"""Contrastive policy gradient: regression of reward differences on log-ratios.

Paper: Flet-Berliac et al., Contrastive Policy Gradient, 2024, https://arxiv.org/abs/2406.19185
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=copg --workdir=runs/copg
  python -m bellmax.experiments.reason --config=copg:countdown --workdir=runs/copg_countdown
Expected on addition (claim `reasoning_staleness`, 3 seeds, beta 0.5, 300 steps of imitation, 128 of
128 completions): pass@1 from 0.345 to 0.509, and to 0.413 on samples that are never renewed
(`--config.loss.staleness=0`).
Cost: two minutes of CPU time on 2 cores.
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
    return tasks.of_methods(("copg",), variant)
