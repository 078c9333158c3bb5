r"""Multi-turn preference optimisation on trees, beside multi-turn RLHF and turn-by-turn feedback.

Paper: Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024,
https://arxiv.org/abs/2405.14655
Command:
  python -m bellmax.experiments.tabular --config=mtpo --workdir=runs/mtpo
  python -m bellmax.experiments.tabular --config=mtpo:random --workdir=runs/mtpo_random
COST
EXPECTED
"""

import ml_collections

from bellmax.configs.tabular import base

VARIANTS = {
    "deterministic": ("deterministic",),
    "stochastic": ("stochastic",),
    "random": ("random:2", "random:3", "random:4"),
}


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: trees to solve; None for the two small ones and a random one of three turns.

    Raises:
      ValueError: there is no such variant.
    """
    names = ("deterministic", "stochastic", "random:3")
    if variant is not None:
        if variant not in VARIANTS:
            raise ValueError(f"mtpo has no variant {variant!r}; there are: {', '.join(VARIANTS)}")
        names = VARIANTS[variant]
    config = base.get_config()
    config.update(
        {
            "trees": {"names": names, "methods": ("mtpo", "mtpo_mixture")},
            "train": {"num_steps": 1000},
        }
    )
    return config
