"""Exact solvers of tables: preference games of one turn and of many.

Every function takes arrays and may be jitted and vmapped; float64 stays float64.
"""

from bellmax.agents.tabular.bradley_terry import bradley_terry_rewards
from bellmax.agents.tabular.equilibria import (
    ipo_md_equilibrium,
    monotone_fixed_point,
    regularised_nash,
)
from bellmax.agents.tabular.mtpo import (
    mtpo,
    mtpo_iterates,
    mtpo_mixture,
    mtpo_mixture_iterates,
    multi_turn_rlhf_iterates,
)
from bellmax.agents.tabular.multi_turn import (
    action_values,
    final_law,
    multi_turn_duality_gap,
    occupancy,
    preference_values,
    regularised_win_rate,
    trajectory_kl,
)
from bellmax.agents.tabular.multi_turn_optima import (
    multi_turn_equilibrium,
    multi_turn_rlhf,
    per_turn_equilibrium,
)
from bellmax.agents.tabular.nash import (
    mirror_descent,
    mirror_descent_iterates,
    mirror_descent_step,
    nash_md,
    nash_md_iterates,
    nash_md_step,
)
from bellmax.agents.tabular.self_play import (
    dno_iterates,
    dno_step,
    inpo_iterates,
    inpo_step,
    nesterov_extrapolate,
    online_ipo_iterates,
    sppo_regression_step,
    sppo_step,
)
from bellmax.losses import duality_gap

__all__ = [
    "action_values",
    "bradley_terry_rewards",
    "dno_iterates",
    "dno_step",
    "duality_gap",
    "final_law",
    "inpo_iterates",
    "inpo_step",
    "ipo_md_equilibrium",
    "mirror_descent",
    "mirror_descent_iterates",
    "mirror_descent_step",
    "monotone_fixed_point",
    "mtpo",
    "mtpo_iterates",
    "mtpo_mixture",
    "mtpo_mixture_iterates",
    "multi_turn_duality_gap",
    "multi_turn_equilibrium",
    "multi_turn_rlhf",
    "multi_turn_rlhf_iterates",
    "nash_md",
    "nash_md_iterates",
    "nash_md_step",
    "nesterov_extrapolate",
    "occupancy",
    "online_ipo_iterates",
    "per_turn_equilibrium",
    "preference_values",
    "regularised_nash",
    "regularised_win_rate",
    "sppo_regression_step",
    "sppo_step",
    "trajectory_kl",
]
