r"""RLOO: REINFORCE whose baseline is the mean reward of the problem's other samples.

Paper: Ahmadian et al., Back to Basics, 2024, https://arxiv.org/abs/2402.14740
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=rloo --workdir=runs/rloo
  python -m bellmax.experiments.reason --config=rloo:countdown --workdir=runs/rloo_countdown
Expected on addition (claim `reasoning_methods`, 3 seeds, 60 steps): pass@1 0.157 (0.044 to 0.274)
after rloo, from 0.094 (0.040 to 0.165) of the start; `config.train.warm_start_steps=300` starts
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
    return tasks.of_methods(("rloo",), variant)
