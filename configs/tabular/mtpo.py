r"""Multi-turn preference optimisation on trees, beside multi-turn RLHF and turn-by-turn feedback.

Paper: Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024,
https://arxiv.org/abs/2405.14655
Command:
  python -m bellmax.experiments.tabular --config=mtpo --workdir=runs/mtpo
  python -m bellmax.experiments.tabular --config=mtpo:random --workdir=runs/mtpo_random
Cost: 20 seconds on 2 CPU cores, each variant as well.
Expected after 1,000 steps at alpha = 0.1, KL of conversations from the equilibrium: MTPO 7.7e-11 on
the deterministic tree and 4.4e-13 on the stochastic one (slope -4), MTPO-tau 4.6e-8 and 3.6e-9
(slope -2), far below the bound of 6.4. Regularised win-rate of the equilibrium on these two trees:
0.533 and 0.521 against multi-turn RLHF at the same alpha, 0.5012 and 0.5002 at RLHF's best alpha,
0.528 and 0.531 against the single-turn baseline. Only the trees of `random` are random.
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
