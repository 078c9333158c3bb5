"""Exact solvers of tables: preference games of one turn and of many, laws of returns.

Every function takes arrays and may be jitted and vmapped; float64 stays float64.
"""

from bellmax.agents.tabular.bradley_terry import bradley_terry_rewards
from bellmax.agents.tabular.categorical_dp import (
    categorical_action_dp_step,
    categorical_action_fixed_point,
    categorical_cdf_matrix,
    categorical_dp_step,
    categorical_error_bound,
    categorical_fixed_point,
)
from bellmax.agents.tabular.distribution_distances import (
    categorical_cramer,
    categorical_wasserstein,
    cramer_distance,
    wasserstein_distance,
)
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
from bellmax.agents.tabular.q_lambda import (
    multistep_dp_matrix,
    multistep_dp_step,
    policy_distance,
    q_lambda_dp_step,
    q_lambda_modulus,
    q_lambda_threshold,
    spectral_radius,
)
from bellmax.agents.tabular.quantile_dp import (
    quantile_dp_step,
    quantile_fixed_point,
)
from bellmax.agents.tabular.return_samples import (
    categorical_cdf_covariance,
    sample_categorical_cdfs,
    sample_returns,
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
    "categorical_action_dp_step",
    "categorical_action_fixed_point",
    "categorical_cdf_covariance",
    "categorical_cdf_matrix",
    "categorical_cramer",
    "categorical_dp_step",
    "categorical_error_bound",
    "categorical_fixed_point",
    "categorical_wasserstein",
    "cramer_distance",
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
    "multistep_dp_matrix",
    "multistep_dp_step",
    "nash_md",
    "nash_md_iterates",
    "nash_md_step",
    "nesterov_extrapolate",
    "occupancy",
    "online_ipo_iterates",
    "per_turn_equilibrium",
    "policy_distance",
    "preference_values",
    "q_lambda_dp_step",
    "q_lambda_modulus",
    "q_lambda_threshold",
    "quantile_dp_step",
    "quantile_fixed_point",
    "regularised_nash",
    "regularised_win_rate",
    "sample_categorical_cdfs",
    "sample_returns",
    "spectral_radius",
    "sppo_regression_step",
    "sppo_step",
    "trajectory_kl",
    "wasserstein_distance",
]
