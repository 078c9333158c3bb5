"""Losses as pure functions of arrays, for any JAX training step.

Conventions, the same in every function:

- `...` is any leading shape; `T` counts tokens or steps, `V` the vocabulary, `D` features, `A`
  actions, `K` or `N` the atoms of a law. A loss returns one value per example `[...]` and never
  averages over a batch.
- Arrays are positional and of one shape: `[B, 1]` against `[B]` is refused, not broadcast.
  Hyper-parameters are keyword-only and may be traced; Python numbers are checked, traced values
  cannot be.
- Log-probabilities are in nats. A log-ratio is `log pi - log pi_ref` of a whole completion, summed
  over its tokens.
- bfloat16 and float16 are computed in float32 and come back as float32; float64 stays.
- A mask is 1 where an entry counts. What a masked entry holds, NaN and infinity included, changes
  neither value nor gradient.
- What a paper holds constant is gradient-stopped inside, and the docstring says so; a reference
  inside a log-ratio is the caller's to stop.
- A variant is a function passed in (`convex_fn=losses.hinge`), not a string; `kind` and `estimator`
  pick one of a few fixed names.
"""

from bellmax.losses.actor_critic import (
    clipped_double_q_target,
    deterministic_policy_loss,
    target_policy_smoothing,
    td3_critic_loss,
)
from bellmax.losses.advantage_weighted import (
    alol_loss,
    alol_token_loss,
    gold_loss,
    priority_weights,
)
from bellmax.losses.advantages import (
    centred_advantages,
    greedy_baseline_advantages,
    group_advantages,
    leave_one_out_advantages,
    scaled_advantages,
)
from bellmax.losses.categorical import categorical_loss, categorical_projection
from bellmax.losses.chunked_log_probs import chunked_token_log_probs
from bellmax.losses.consistency import agro_loss, copg_loss
from bellmax.losses.contrastive import cpl_dense_loss, cpl_loss, segment_scores
from bellmax.losses.convex import (
    ConvexFn,
    exponential,
    hinge,
    logistic,
    savage,
    squared,
    truncated_quadratic,
)
from bellmax.losses.diffusion import (
    NoiseFn,
    ddim_sample,
    diffusion_point,
    noise_prediction_loss,
    noise_schedule,
    probability_flow_velocity,
    td2_dd_bootstrap,
    td_dd_bootstrap,
    td_diffusion_loss,
)
from bellmax.losses.distributional import (
    categorical_cdf,
    categorical_cvar,
    categorical_mean,
    quantile_cdf,
    quantile_cvar,
    quantile_mean,
)
from bellmax.losses.entropy import categorical_entropy, categorical_kl
from bellmax.losses.flow import (
    coupled_td_cfm_bootstrap,
    flow_matching_loss,
    td2_cfm_bootstrap,
    td_cfm_bootstrap,
    td_flow_loss,
)
from bellmax.losses.forward_backward import forward_backward_loss, orthonormality_loss
from bellmax.losses.horizon_baselines import (
    ScoreFn,
    bellman_sample,
    beta_vae_loss,
    gradient_penalty,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from bellmax.losses.k_sample import (
    SetFn,
    k_sample_advantages,
    pass_at_k,
    subset_k_sample_advantages,
)
from bellmax.losses.latent_reasoning import (
    answer_probability_loss,
    jepo_advantages,
    jepo_bound,
    jepo_loss,
    jepo_practical_loss,
)
from bellmax.losses.log_probs import kl_estimate, sequence_log_probs, token_log_probs
from bellmax.losses.majority import majority_advantages, majority_at_k
from bellmax.losses.mirror_descent import mdpo_loss, mdpo_off_policy_loss, mdpo_surrogate_loss
from bellmax.losses.multi_turn import mtpo_policy_loss, mtpo_turn_rewards, mtpo_value_loss
from bellmax.losses.multistep import (
    WeightedTargets,
    categorical_multistep_target,
    quantile_multistep_target,
)
from bellmax.losses.nash import geometric_mixture_logits, nash_md_pg_loss, nash_md_pg_token_loss
from bellmax.losses.nash_game import (
    duality_gap,
    regularised_best_response,
    regularised_preference,
)
from bellmax.losses.ode import VelocityFn, flow_log_likelihood, integrate_midpoint
from bellmax.losses.off_policy_returns import (
    off_policy_returns,
    q_lambda_returns,
    retrace_returns,
)
from bellmax.losses.pairwise_policy_gradient import p3o_loss, p3o_separate_loss
from bellmax.losses.paths import PathFn, curved_path, linear_path
from bellmax.losses.policy_gradient import (
    importance_weighted_policy_gradient_loss,
    policy_gradient_loss,
    ppo_clip_loss,
    ppo_value_loss,
)
from bellmax.losses.preference import (
    dpo_loss,
    gpo_loss,
    implicit_rewards,
    ipo_loss,
    length_normalised_dpo_loss,
    preference_accuracy,
    preference_margin,
    robust_dpo_loss,
    rpo_loss,
    slic_loss,
)
from bellmax.losses.preference_variants import (
    kto_baseline,
    kto_loss,
    orpo_loss,
    simpo_loss,
    sppo_completion_loss,
    sppo_loss,
)
from bellmax.losses.quantile import quantile_huber_loss
from bellmax.losses.returns import (
    VTrace,
    generalised_advantages,
    lambda_returns,
    n_step_returns,
    vtrace_returns,
)
from bellmax.losses.reward_modelling import (
    antisymmetric_logits,
    bradley_terry_loss,
    pairwise_preference_loss,
)
from bellmax.losses.self_play import (
    PairwiseLoss,
    dno_loss,
    expanded_ipo_loss,
    inpo_loss,
    online_ipo_loss,
    online_pair_loss,
)
from bellmax.losses.token_policy_gradient import (
    grpo_loss,
    kl_shaped_rewards,
    reduce_tokens,
    remax_token_advantages,
)
from bellmax.losses.traces import (
    TraceFn,
    importance_traces,
    one_step_traces,
    q_lambda_traces,
    retrace_traces,
    td_lambda_traces,
    tree_backup_traces,
)

__all__ = [
    "ConvexFn",
    "NoiseFn",
    "PairwiseLoss",
    "PathFn",
    "ScoreFn",
    "SetFn",
    "TraceFn",
    "VTrace",
    "VelocityFn",
    "WeightedTargets",
    "agro_loss",
    "alol_loss",
    "alol_token_loss",
    "answer_probability_loss",
    "antisymmetric_logits",
    "bellman_sample",
    "beta_vae_loss",
    "bradley_terry_loss",
    "categorical_cdf",
    "categorical_cvar",
    "categorical_entropy",
    "categorical_kl",
    "categorical_loss",
    "categorical_mean",
    "categorical_multistep_target",
    "categorical_projection",
    "centred_advantages",
    "chunked_token_log_probs",
    "clipped_double_q_target",
    "copg_loss",
    "coupled_td_cfm_bootstrap",
    "cpl_dense_loss",
    "cpl_loss",
    "curved_path",
    "ddim_sample",
    "deterministic_policy_loss",
    "diffusion_point",
    "dno_loss",
    "dpo_loss",
    "duality_gap",
    "expanded_ipo_loss",
    "exponential",
    "flow_log_likelihood",
    "flow_matching_loss",
    "forward_backward_loss",
    "generalised_advantages",
    "geometric_mixture_logits",
    "gold_loss",
    "gpo_loss",
    "gradient_penalty",
    "greedy_baseline_advantages",
    "group_advantages",
    "grpo_loss",
    "hinge",
    "implicit_rewards",
    "importance_traces",
    "importance_weighted_policy_gradient_loss",
    "inpo_loss",
    "integrate_midpoint",
    "ipo_loss",
    "jepo_advantages",
    "jepo_bound",
    "jepo_loss",
    "jepo_practical_loss",
    "k_sample_advantages",
    "kl_estimate",
    "kl_shaped_rewards",
    "kto_baseline",
    "kto_loss",
    "lambda_returns",
    "leave_one_out_advantages",
    "length_normalised_dpo_loss",
    "linear_path",
    "logistic",
    "majority_advantages",
    "majority_at_k",
    "mdpo_loss",
    "mdpo_off_policy_loss",
    "mdpo_surrogate_loss",
    "mtpo_policy_loss",
    "mtpo_turn_rewards",
    "mtpo_value_loss",
    "n_step_returns",
    "nash_md_pg_loss",
    "nash_md_pg_token_loss",
    "noise_prediction_loss",
    "noise_schedule",
    "off_policy_returns",
    "one_step_traces",
    "online_ipo_loss",
    "online_pair_loss",
    "orpo_loss",
    "orthonormality_loss",
    "p3o_loss",
    "p3o_separate_loss",
    "pairwise_preference_loss",
    "pass_at_k",
    "policy_gradient_loss",
    "ppo_clip_loss",
    "ppo_value_loss",
    "preference_accuracy",
    "preference_margin",
    "priority_weights",
    "probability_flow_velocity",
    "q_lambda_returns",
    "q_lambda_traces",
    "quantile_cdf",
    "quantile_cvar",
    "quantile_huber_loss",
    "quantile_mean",
    "quantile_multistep_target",
    "reduce_tokens",
    "regularised_best_response",
    "regularised_preference",
    "relativistic_discriminator_loss",
    "relativistic_generator_loss",
    "remax_token_advantages",
    "retrace_returns",
    "retrace_traces",
    "robust_dpo_loss",
    "rpo_loss",
    "savage",
    "scaled_advantages",
    "segment_scores",
    "sequence_log_probs",
    "simpo_loss",
    "slic_loss",
    "sppo_completion_loss",
    "sppo_loss",
    "squared",
    "subset_k_sample_advantages",
    "target_policy_smoothing",
    "td2_cfm_bootstrap",
    "td2_dd_bootstrap",
    "td3_critic_loss",
    "td_cfm_bootstrap",
    "td_dd_bootstrap",
    "td_diffusion_loss",
    "td_flow_loss",
    "td_lambda_traces",
    "token_log_probs",
    "tree_backup_traces",
    "truncated_quadratic",
    "vtrace_returns",
]
