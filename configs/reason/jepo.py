r"""JEPO: chains of thought that make known answers likely, where no verifier can check them.

Paper: Tang et al., Beyond Verifiable Rewards: Scaling Reinforcement Learning for Language Models to
Unverifiable Data, 2025, https://arxiv.org/abs/2503.19618
Command (long answers that are only likely or not; another task, one of `tasks.TASKS`):
  python -m bellmax.experiments.reason --config=jepo --workdir=runs/jepo
  python -m bellmax.experiments.reason --config=jepo:addition --workdir=runs/jepo_addition
Methods: the bound of all chains together and that of one at a time, as they are trained in the
paper (advantages scaled and clipped, bad formatting penalised), and supervised learning of the
answers alone, without chains.
Expected on long_form (claim `jepo_training`, 3 seeds, 150 steps, without `jepo_single`): from -8.56
nats an answer after a chain of the start, JEPO comes to -4.24 (-4.50 to -3.95) and its chains from
0.59 right to 0.97; supervised learning comes to -6.15 at once (-6.23 to -6.00). The best possible
is -3.71; -5.65 is the best without the state that a chain finds out.
Cost: three minutes of CPU time a seed on 2 cores, most of it compilation and the start.
"""

import ml_collections

from bellmax.configs.reason import tasks


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: a task, one of `tasks.TASKS` whose answers follow a marker; None for long_form.

    Raises:
      ValueError: there is no such task.
    """
    config = tasks.of_methods(
        ("jepo", "jepo_single", "answers"), variant or "long_form", beta=0.001
    )
    # As in the paper.
    config.update({"train": {"batch_size": 64, "group_size": 4}})
    return config
