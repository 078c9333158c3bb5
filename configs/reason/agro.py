r"""AGRO on the policy's own completions, and on those of anybody.

Paper: Tang et al., RL-finetuning LLMs from on- and off-policy data with a single algorithm, 2025,
https://arxiv.org/abs/2503.19612
Command (sums of two numbers; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=agro --workdir=runs/agro
  python -m bellmax.experiments.reason --config=agro:countdown --workdir=runs/agro_countdown
Expected on addition (claim `reasoning_methods`, 3 seeds, 60 steps): pass@1 0.158 (0.040 to 0.281)
after `agro`, from 0.094 (0.040 to 0.165) of the start.
Cost: three minutes of CPU time on 2 cores, half of it compilation.
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
    return tasks.of_methods(("agro_on_policy", "agro"), variant)
