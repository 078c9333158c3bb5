r"""Nash-MD on cyclic preference games, beside mirror descent and self-play without a reference.

Papers: Munos et al., Nash Learning from Human Feedback, 2023, https://arxiv.org/abs/2312.00886
  Rosset et al., Direct Nash Optimization, 2024, https://arxiv.org/abs/2404.03715
  Zhang et al., Iterative Nash Policy Optimization, 2024, https://arxiv.org/abs/2407.00617
  Calandriello et al., Human Alignment through Online Preference Optimisation, 2024,
  https://arxiv.org/abs/2403.08635
Command (three games of three actions, then one variant, then measured tournaments):
  python -m bellmax.experiments.tabular --config=nash_md --workdir=runs/nash_md
  python -m bellmax.experiments.tabular --config=nash_md:random --workdir=runs/random
  python -m bellmax.experiments.tabular --config=nash_md:meta --workdir=runs/meta \
      --config.games.meta_games=FOLDER
Cost: 15 seconds on 2 CPU cores, each variant as well.
Expected on the asymmetric cycle at tau = 0.1 after 10,000 steps, KL(equilibrium, policy): Nash-MD
3.8e-9 on its schedule (slope -2; the bound is 0.08) and 9.2e-4 with a constant step, which is its
bias; INPO 1.3e-13 (slope -4); mirror descent with a constant step and online IPO at rounding error;
IPO-MD 1.5e-3; DNO and SPPO 0.78, while the plain gap of their average is 0.004. Nothing is random
but the games of `random`.
"""

import ml_collections

from bellmax.configs.tabular import base

METHODS = ("nash_md", "nash_md_constant", "mirror_descent_constant", "inpo", "dno", "sppo")
IPO_METHODS = ("online_ipo", "ipo_md")
# Names of games and their reference; () is the uniform one.
VARIANTS = {
    "dice": (("dice",), (0.5, 0.3, 0.2)),
    "rps": (("rock_paper_scissors",), (0.5, 0.3, 0.2)),
    "cycle": (("asymmetric_cycle",), (0.5, 0.3, 0.2)),
    "four_actions": (("four_actions",), (0.4, 0.3, 0.2, 0.1)),
    "rater_types": (("rater_types:-0.1", "rater_types:0", "rater_types:0.1"), ()),
    "random": (("random:10", "random:50"), ()),
    "meta": (("soccer", "rrps"), ()),
}


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: games to solve; None for dice, rock-paper-scissors and the asymmetric cycle.

    Raises:
      ValueError: there is no such variant.
    """
    names = ("dice", "rock_paper_scissors", "asymmetric_cycle")
    reference: tuple[float, ...] = (0.5, 0.3, 0.2)
    if variant is not None:
        if variant not in VARIANTS:
            raise ValueError(
                f"nash_md has no variant {variant!r}; there are: {', '.join(VARIANTS)}"
            )
        names, reference = VARIANTS[variant]
    methods = METHODS if variant == "meta" else (*METHODS, *IPO_METHODS)
    config = base.get_config()
    config.update({"games": {"names": names, "methods": methods, "reference": reference}})
    return config
