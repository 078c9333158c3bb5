"""Cases of policy gradients; see `loss_cases.py`."""

import pathlib
import runpy

import jax

from bellmax import losses

TABLE = runpy.run_path(str(pathlib.Path(__file__).with_name("loss_cases.py")))
Case, bind, REAL, LOG_PROB = (TABLE[name] for name in ("Case", "bind", "REAL", "LOG_PROB"))
on_ratios, STEP_LOG_PROBS, STEP_REAL, STEP_MASK, ACTIONS = (
    TABLE[name] for name in ("on_ratios", "STEP_LOG_PROBS", "STEP_REAL", "STEP_MASK", "ACTIONS")
)
PAIR, PAIR_LOG_PROBS = ("real", (2,)), ("log_prob", (2,))
LOGITS = ("real", (ACTIONS,))
TOKENS = (STEP_LOG_PROBS, STEP_LOG_PROBS, STEP_MASK)


def held(name, **hyper):
    """Returns a loss at fixed log-probabilities, where its gradient is not that of its value.

    The losses' own tests have the gradients.
    """
    loss = bind(name, **hyper)
    return lambda log_probs, *rest: loss(jax.lax.stop_gradient(log_probs), *rest)


CASES = {
    "policy_gradient_loss": Case(bind("policy_gradient_loss"), (LOG_PROB, REAL), (1,)),
    "importance_weighted_policy_gradient_loss": Case(
        on_ratios("importance_weighted_policy_gradient_loss", ratio_clip=1.5),
        (LOG_PROB, REAL, REAL),
        (1, 2),
    ),
    "ppo_clip_loss": Case(
        bind("ppo_clip_loss", clip_epsilon=0.2), (LOG_PROB, LOG_PROB, REAL), (1, 2)
    ),
    "ppo_clip_loss:dual": Case(
        bind("ppo_clip_loss", clip_epsilon=0.5, clip_epsilon_high=0.8, dual_clip=1.2),
        (LOG_PROB, LOG_PROB, REAL),
        (1, 2),
    ),
    "ppo_value_loss": Case(bind("ppo_value_loss"), (REAL, REAL, REAL), (1, 2)),
    "ppo_value_loss:clipped": Case(
        bind("ppo_value_loss", clip_epsilon=0.7), (REAL, REAL, REAL), (1, 2)
    ),
    **{
        f"reduce_tokens:{reduction}": Case(
            bind("reduce_tokens", reduction=reduction), (STEP_REAL, STEP_MASK)
        )
        for reduction in ("mean", "sum", 7)
    },
    "grpo_loss": Case(bind("grpo_loss", clip_epsilon=0.3), (*TOKENS, REAL), (1, 3)),
    "grpo_loss:reference": Case(
        lambda *a: losses.grpo_loss(
            *a[:4],
            clip_epsilon=0.3,
            clip_epsilon_high=0.6,
            dual_clip=1.5,
            reference_log_probs=a[4],
            beta=0.2,
            reduction=5.0,
        ),
        (*TOKENS, STEP_REAL, STEP_LOG_PROBS),
        (1, 3, 4),
    ),
    "kl_shaped_rewards": Case(bind("kl_shaped_rewards", beta=0.3), (REAL, *TOKENS), (0, 1, 2)),
    "remax_token_advantages": Case(
        bind("remax_token_advantages", beta=0.3, kl_decay=0.5, discount=0.9, reward_clip=0.7),
        (REAL, REAL, *TOKENS),
        (0, 1, 2, 3),
    ),
    "categorical_entropy": Case(bind("categorical_entropy"), (LOGITS,)),
    "categorical_kl": Case(bind("categorical_kl"), (LOGITS, LOGITS)),
    "p3o_loss": Case(
        held("p3o_loss", clip_epsilon=0.2), (PAIR_LOG_PROBS, PAIR_LOG_PROBS, PAIR), (0, 1, 2)
    ),
    "p3o_loss:unclipped": Case(
        on_ratios("p3o_loss", clip_epsilon=float("inf")), (PAIR_LOG_PROBS, PAIR, PAIR), (1, 2)
    ),
    "p3o_separate_loss": Case(
        held("p3o_separate_loss", clip_epsilon=0.2),
        (PAIR_LOG_PROBS, PAIR_LOG_PROBS, PAIR),
        (0, 1, 2),
    ),
    "mdpo_loss": Case(
        bind("mdpo_loss", inverse_step=0.7), (LOGITS, LOGITS, ("action", ()), REAL), (1, 3)
    ),
    "mdpo_surrogate_loss": Case(
        bind("mdpo_surrogate_loss", inverse_step=0.7), (LOG_PROB, LOG_PROB, REAL, REAL), (1, 2)
    ),
    "mdpo_off_policy_loss": Case(
        bind("mdpo_off_policy_loss", inverse_step=0.7, entropy_weight=0.2),
        (LOG_PROB, LOG_PROB, REAL),
    ),
    "alol_loss": Case(on_ratios("alol_loss", clip_epsilon=0.5), (LOG_PROB, REAL, REAL), (1, 2)),
    "alol_loss:divergence": Case(
        bind("alol_loss", clip_epsilon=0.0, beta=0.3), (LOG_PROB, LOG_PROB, REAL), (1, 2)
    ),
    "alol_token_loss": Case(
        on_ratios("alol_token_loss", clip_epsilon=0.5),
        (STEP_LOG_PROBS, STEP_REAL, STEP_MASK, REAL),
        (1, 3),
    ),
    "gold_loss": Case(held("gold_loss", floor=0.3), (STEP_LOG_PROBS, STEP_MASK, REAL), (0, 2)),
    "gold_loss:floor": Case(bind("gold_loss", floor=1.0), (STEP_LOG_PROBS, STEP_MASK, REAL), (2,)),
    "priority_weights": Case(bind("priority_weights"), (STEP_REAL,), (0,)),
}
