"""Public functions of bellmax.losses with arguments: read by `all_cases.py` and its siblings."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bellmax import losses

STEPS, FEATURES, VOCABULARY, SEGMENTS, ACTIONS, ATOMS, POOLED = 4, 3, 5, 3, 3, 5, 6


class Case(NamedTuple):
    """A function of arrays, and how to make them.

    Attributes:
      function: the loss, with its hyper-parameters bound.
      arguments: kind of each array: "real", "log_prob", "unit", "sign", "length", "mask", "token",
        "action", with the axes that follow the leading shape; "head" and "support", which
        increases, have no leading shape.
      constant: positions of real arguments that the method holds constant.
    """

    function: Callable[..., Any]
    arguments: tuple[tuple[str, tuple[int, ...]], ...]
    constant: tuple[int, ...] = ()

    def make(self, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, ...]:
        """Returns arrays with a leading shape: float32, or int32 for what is counted."""
        rng = np.random.default_rng(seed)
        return tuple(_draw(rng, kind, shape, axes) for kind, axes in self.arguments)

    @property
    def real(self) -> tuple[int, ...]:
        """Positions of the floating-point arguments that are no mask."""
        other = ("mask", "token", "action", "length", "sign")
        return tuple(i for i, (kind, _) in enumerate(self.arguments) if kind not in other)

    @property
    def shared(self) -> tuple[int, ...]:
        """Positions of the arguments without a leading shape."""
        return tuple(i for i, (kind, _) in enumerate(self.arguments) if kind in ("head", "support"))


def _draw(rng, kind, shape, axes):
    size = axes if kind in ("head", "support") else (*shape, *axes)
    if kind in ("token", "action"):
        count = VOCABULARY if kind == "token" else ACTIONS
        return rng.integers(0, count, size).astype(np.int32)
    if kind == "length":
        return rng.integers(1, 9, size).astype(np.int32)
    if kind == "sign":
        return rng.integers(0, 2, size).astype(np.int32)
    if kind == "mask":
        return rng.integers(0, 2, size).astype(np.float32)
    values = rng.standard_normal(size)
    if kind == "support":
        values = np.cumsum(0.3 + rng.uniform(size=size)) - 2
    if kind == "log_prob":
        values = -np.abs(values) - 0.1
    if kind == "unit":
        values = 1 / (1 + np.exp(-values))
    return values.astype(np.float32)


REAL, LOG_PROB, UNIT = ("real", ()), ("log_prob", ()), ("unit", ())
PAIR = (REAL, REAL)
STEP_LOG_PROBS, STEP_MASK = ("log_prob", (STEPS,)), ("mask", (STEPS,))
HEAD = (
    ("real", (STEPS, FEATURES)),
    ("head", (FEATURES, VOCABULARY)),
    ("token", (STEPS,)),
)


def bind(name: str, **hyper: Any) -> Callable[..., Any]:
    """Returns a public loss with its hyper-parameters bound."""
    return functools.partial(getattr(losses, name), **hyper)


def on_ratios(name: str, **hyper: Any) -> Callable[..., Any]:
    """Returns a policy-gradient loss of log-ratios in place of the reference.

    The log-ratio is what such a loss holds constant; with it as an argument of its own, the loss
    has the gradient of its value.
    """
    loss = bind(name, **hyper)

    def function(log_probs, log_ratios, *rest):
        # Wide enough that the reference is not rounded.
        wide = jnp.promote_types(jnp.result_type(log_probs, log_ratios), jnp.float32)
        reference = log_probs.astype(wide) - log_ratios.astype(wide)
        return loss(log_probs, reference, *rest)

    return function


LAW, GAME = ("unit", (ACTIONS,)), ("unit", (ACTIONS, ACTIONS))
STEP_REAL = ("real", (STEPS,))
SIGNED, SUPPORT = ("real", (ATOMS,)), ("support", (ATOMS,))
POINTS = ("real", (3,))
STATES = (STEP_REAL, ("real", (STEPS + 1,)), ("unit", (STEPS,)))
# Next states' actions: their values or laws, the policy, what was done, rewards, discounts.
NEXT = (
    ("unit", (STEPS, ACTIONS)),
    ("action", (STEPS - 1,)),
    STEP_REAL,
    ("unit", (STEPS,)),
)
TAKEN = ("unit", (STEPS - 1,))
VALUES = ("real", (STEPS, ACTIONS))
TRACES = (
    "one_step_traces",
    "q_lambda_traces",
    "td_lambda_traces",
    "retrace_traces",
    "tree_backup_traces",
    "importance_traces",
)


def joined(name: str, **hyper: Any) -> Callable[..., Any]:
    """Returns a function of several results as one of a single array, joined on the last axis."""
    function = bind(name, **hyper)
    return lambda *arrays: jnp.concatenate(function(*arrays), axis=-1)


VECTOR, TIME, LEVEL = ("real", (FEATURES,)), UNIT, ("token", ())
HEADS, POOL = ("real", (2, FEATURES)), ("head", (POOLED, FEATURES))
# What each level of a diffusion keeps, one level a word.
KEPT = jnp.asarray(np.linspace(0.9, 0.2, VOCABULARY), jnp.float32)


def field(point, time):
    """A smooth velocity of each point by itself, whose derivative is no diagonal matrix."""
    return jnp.sin(point + time[..., None]) + jnp.cos(jnp.roll(point, 1, axis=-1)) / 2


def noise_field(point, level):
    """The same as a prediction of noise at a level."""
    return field(point, jnp.where(level > 2, 0.3, 0.7).astype(point.dtype))


def score(point):
    """A smooth score of each point by itself."""
    return jnp.sum(jnp.sin(point + jnp.roll(point, 1, axis=-1) / 2), axis=-1)


def mapped(name: str, function: Callable[..., Any], **hyper: Any) -> Callable[..., Any]:
    """Returns a function of arrays from one that takes a field first; pairs are joined."""
    return lambda *arrays: _join(getattr(losses, name)(function, *arrays, **hyper))


def _join(result):
    return jnp.concatenate(result, axis=-1) if isinstance(result, tuple) else result


CONVEX = ("logistic", "hinge", "squared", "exponential", "truncated_quadratic", "savage")

CASES: dict[str, Case] = {
    **{name: Case(bind(name), (REAL,)) for name in CONVEX},
    **{
        f"gpo_loss:{name}": Case(
            bind("gpo_loss", convex_fn=getattr(losses, name), beta=0.7, label_smoothing=0.2), PAIR
        )
        for name in CONVEX
    },
    "dpo_loss": Case(bind("dpo_loss", beta=0.3), PAIR),
    "ipo_loss": Case(bind("ipo_loss", tau=0.3), PAIR),
    "slic_loss": Case(bind("slic_loss", beta=0.3), PAIR),
    "robust_dpo_loss": Case(bind("robust_dpo_loss", beta=0.3, label_smoothing=0.1), PAIR),
    "rpo_loss": Case(bind("rpo_loss", beta=0.3, eta=0.2), (*PAIR, LOG_PROB)),
    "length_normalised_dpo_loss": Case(
        bind("length_normalised_dpo_loss", beta=0.3), (*PAIR, ("length", ()), ("length", ()))
    ),
    "kto_loss": Case(
        bind("kto_loss", beta=0.3, undesirable_weight=1.3), (REAL, ("sign", ()), UNIT), (2,)
    ),
    "kto_baseline": Case(
        lambda ratios, mask: losses.kto_baseline(ratios, mask=mask),
        (("real", (STEPS,)), STEP_MASK),
        (0,),
    ),
    "sppo_completion_loss": Case(bind("sppo_completion_loss", eta=3.0), (REAL, UNIT), (1,)),
    "sppo_loss": Case(bind("sppo_loss", eta=3.0), (*PAIR, UNIT, UNIT), (2, 3)),
    "simpo_loss": Case(bind("simpo_loss", beta=2.0, gamma=0.5), (LOG_PROB, LOG_PROB)),
    "orpo_loss": Case(bind("orpo_loss"), (LOG_PROB, LOG_PROB)),
    "cpl_loss": Case(
        bind("cpl_loss", discount=0.9, label_smoothing=0.1),
        (STEP_LOG_PROBS, STEP_LOG_PROBS, STEP_MASK, STEP_MASK),
    ),
    "cpl_dense_loss": Case(
        bind("cpl_dense_loss", discount=0.9),
        (("log_prob", (SEGMENTS, STEPS)), ("mask", (SEGMENTS, STEPS)), ("real", (SEGMENTS,))),
        (2,),
    ),
    "segment_scores": Case(bind("segment_scores"), (STEP_LOG_PROBS, STEP_MASK)),
    "bradley_terry_loss": Case(
        bind("bradley_terry_loss", margin=0.5, label_smoothing=0.1, centering=0.2), PAIR
    ),
    "antisymmetric_logits": Case(bind("antisymmetric_logits"), PAIR),
    "pairwise_preference_loss": Case(bind("pairwise_preference_loss"), (REAL, UNIT), (1,)),
    "geometric_mixture_logits": Case(
        bind("geometric_mixture_logits", mixture=0.3), (("real", (ACTIONS,)), ("real", (ACTIONS,)))
    ),
    "nash_md_pg_loss": Case(on_ratios("nash_md_pg_loss", tau=0.3), (LOG_PROB, REAL, UNIT), (1, 2)),
    "nash_md_pg_token_loss": Case(
        on_ratios("nash_md_pg_token_loss", tau=0.3),
        (STEP_LOG_PROBS, STEP_REAL, STEP_MASK, UNIT),
        (1, 3),
    ),
    "regularised_preference": Case(bind("regularised_preference", tau=0.3), (LAW, LAW, GAME, LAW)),
    "regularised_best_response": Case(bind("regularised_best_response", tau=0.3), (LAW, GAME, LAW)),
    **{
        f"duality_gap:{tau}": Case(bind("duality_gap", tau=tau), (LAW, GAME, LAW))
        for tau in (0.0, 0.3)
    },
    "online_pair_loss": Case(
        bind("online_pair_loss", loss_fn=functools.partial(losses.dpo_loss, beta=0.3)),
        (*PAIR, UNIT),
        (2,),
    ),
    "online_ipo_loss": Case(bind("online_ipo_loss", tau=0.3), (*PAIR, UNIT), (2,)),
    "expanded_ipo_loss": Case(bind("expanded_ipo_loss", tau=0.3), PAIR),
    "dno_loss": Case(bind("dno_loss", eta=0.7), (*PAIR, UNIT, UNIT), (2, 3)),
    "inpo_loss": Case(bind("inpo_loss", eta=0.7, tau=0.3), (LOG_PROB,) * 6, (2, 3, 4, 5)),
    "inpo_loss:soft": Case(
        lambda *a: losses.inpo_loss(*a[:6], eta=0.7, tau=0.3, preferences=a[6]),
        ((LOG_PROB,) * 6 + (UNIT,)),
        (2, 3, 4, 5, 6),
    ),
    "generalised_advantages": Case(
        bind("generalised_advantages", trace_decay=0.8), STATES, (0, 1, 2)
    ),
    "lambda_returns": Case(bind("lambda_returns", trace_decay=0.8), STATES, (0, 1, 2)),
    "n_step_returns": Case(bind("n_step_returns", num_steps=3), STATES, (0, 1, 2)),
    "vtrace_returns": Case(
        joined("vtrace_returns", trace_decay=0.8, rho_clip=0.6, c_clip=0.5, policy_rho_clip=0.7),
        (*STATES, ("unit", (STEPS,))),
        (0, 1, 2, 3),
    ),
    **{name: Case(bind(name, trace_decay=0.8), (TAKEN, TAKEN), (0, 1)) for name in TRACES},
    "off_policy_returns": Case(bind("off_policy_returns"), (VALUES, *NEXT, TAKEN), (0, 1, 3, 4, 5)),
    "q_lambda_returns": Case(
        bind("q_lambda_returns", trace_decay=0.8), (VALUES, *NEXT), (0, 1, 3, 4)
    ),
    "retrace_returns": Case(
        bind("retrace_returns", trace_decay=0.8), (VALUES, *NEXT, TAKEN), (0, 1, 3, 4, 5)
    ),
    "categorical_multistep_target": Case(
        bind("categorical_multistep_target"),
        (("unit", (STEPS, ACTIONS, ATOMS)), *NEXT, TAKEN, SUPPORT),
        (0, 1, 3, 4, 5, 6),
    ),
    "quantile_multistep_target": Case(
        joined("quantile_multistep_target"),
        (("real", (STEPS, ACTIONS, ATOMS)), *NEXT, TAKEN),
        (0, 1, 3, 4, 5),
    ),
    "categorical_projection": Case(
        bind("categorical_projection"), (("real", (4,)), ("real", (4,)), SUPPORT)
    ),
    **{
        f"categorical_loss:{kind}": Case(
            bind("categorical_loss", kind=kind), (SIGNED, SIGNED, SUPPORT), (1, 2)
        )
        for kind in ("cross_entropy", "cramer", "clipped")
    },
    "categorical_mean": Case(bind("categorical_mean"), (SIGNED, SUPPORT)),
    "categorical_cvar": Case(bind("categorical_cvar", level=0.7), (("unit", (ATOMS,)), SUPPORT)),
    "categorical_cdf": Case(bind("categorical_cdf"), (SIGNED, SUPPORT, POINTS), (1, 2)),
    **{
        f"quantile_huber_loss:{kappa}": Case(
            bind("quantile_huber_loss", kappa=kappa), (("real", (4,)), POINTS), (1,)
        )
        for kappa in (0.0, 0.5)
    },
    "quantile_huber_loss:weights": Case(
        lambda quantiles, targets, weights: losses.quantile_huber_loss(
            quantiles, targets, weights=weights
        ),
        (("real", (4,)), POINTS, POINTS),
        (1, 2),
    ),
    "quantile_mean": Case(bind("quantile_mean"), (SIGNED,)),
    "quantile_cvar": Case(bind("quantile_cvar", level=0.45), (SIGNED,)),
    "quantile_cdf": Case(bind("quantile_cdf"), (SIGNED, POINTS), (0, 1)),
    "mtpo_turn_rewards": Case(
        bind("mtpo_turn_rewards", alpha=0.3), (STEP_REAL, UNIT, STEP_MASK), (0, 1)
    ),
    "mtpo_policy_loss": Case(bind("mtpo_policy_loss", alpha=0.3), (LOG_PROB, REAL, REAL), (1,)),
    "mtpo_value_loss": Case(bind("mtpo_value_loss"), PAIR, (1,)),
    "implicit_rewards": Case(bind("implicit_rewards", beta=0.3), (REAL,)),
    "preference_margin": Case(bind("preference_margin", beta=0.3), PAIR),
    "preference_accuracy": Case(bind("preference_accuracy"), PAIR, (0, 1)),
    **{
        f"kl_estimate:{name}": Case(bind("kl_estimate", estimator=name), (LOG_PROB, LOG_PROB))
        for name in ("k1", "k2", "k3")
    },
    "sequence_log_probs": Case(bind("sequence_log_probs"), (STEP_LOG_PROBS, STEP_MASK)),
    "sequence_log_probs:mean": Case(
        bind("sequence_log_probs", normalise=True), (STEP_LOG_PROBS, STEP_MASK)
    ),
    "token_log_probs": Case(
        bind("token_log_probs"), (("real", (STEPS, VOCABULARY)), ("token", (STEPS,)))
    ),
    "chunked_token_log_probs": Case(
        bind("chunked_token_log_probs", chunk_size=3, softcap=2.0), HEAD
    ),
    "linear_path": Case(joined("linear_path"), (VECTOR, VECTOR, TIME)),
    "curved_path": Case(joined("curved_path"), (VECTOR, VECTOR, TIME)),
    "integrate_midpoint": Case(mapped("integrate_midpoint", field, num_steps=3), (VECTOR, TIME)),
    "flow_log_likelihood": Case(mapped("flow_log_likelihood", field, num_steps=3), (VECTOR,)),
    "flow_log_likelihood:probes": Case(
        lambda data, probes: losses.flow_log_likelihood(field, data, num_steps=3, probes=probes),
        (VECTOR, ("real", (2, FEATURES))),
    ),
    "flow_matching_loss": Case(bind("flow_matching_loss"), (VECTOR, VECTOR), (1,)),
    "td_flow_loss": Case(bind("td_flow_loss", discount=0.8), (VECTOR,) * 4, (1, 3)),
    "td_cfm_bootstrap": Case(
        mapped("td_cfm_bootstrap", field, num_steps=3), (VECTOR, VECTOR, TIME), (0, 1, 2)
    ),
    "coupled_td_cfm_bootstrap": Case(
        mapped("coupled_td_cfm_bootstrap", field, num_steps=3, path=losses.curved_path),
        (VECTOR, TIME),
        (0, 1),
    ),
    "td2_cfm_bootstrap": Case(
        mapped("td2_cfm_bootstrap", field, num_steps=3), (VECTOR, TIME), (0, 1)
    ),
    "noise_schedule": Case(bind("noise_schedule", num_levels=5), (UNIT, UNIT)),
    "diffusion_point": Case(bind("diffusion_point"), (VECTOR, VECTOR, TIME)),
    "noise_prediction_loss": Case(bind("noise_prediction_loss"), (VECTOR, VECTOR), (1,)),
    "ddim_sample": Case(
        lambda start, level: losses.ddim_sample(
            noise_field, start, level, level // 2 - 1, KEPT, num_steps=3
        ),
        (VECTOR, LEVEL),
    ),
    "td_diffusion_loss": Case(bind("td_diffusion_loss", discount=0.8), (VECTOR,) * 4, (1, 3)),
    "td_dd_bootstrap": Case(
        mapped("td_dd_bootstrap", noise_field, alpha_bars=KEPT, num_steps=3),
        (VECTOR, VECTOR, LEVEL),
        (0, 1),
    ),
    "td2_dd_bootstrap": Case(
        mapped("td2_dd_bootstrap", noise_field, alpha_bars=KEPT, num_steps=3),
        (VECTOR, LEVEL),
        (0,),
    ),
    "probability_flow_velocity": Case(
        bind("probability_flow_velocity", beta_min=0.5, beta_max=3.0), (VECTOR, VECTOR, TIME)
    ),
    "bellman_sample": Case(bind("bellman_sample", discount=0.5), (VECTOR, VECTOR, UNIT), (0, 1, 2)),
    "beta_vae_loss": Case(
        bind("beta_vae_loss"),
        (VECTOR, VECTOR, ("log_prob", (FEATURES,)), ("real", (2,)), ("log_prob", (2,))),
        (0,),
    ),
    "gradient_penalty": Case(mapped("gradient_penalty", score), (VECTOR,)),
    "relativistic_generator_loss": Case(
        mapped("relativistic_generator_loss", score), (VECTOR, VECTOR), (0,)
    ),
    "relativistic_discriminator_loss": Case(
        mapped("relativistic_discriminator_loss", score, penalty_weight=0.3),
        (VECTOR, VECTOR),
        (0, 1),
    ),
    "target_policy_smoothing": Case(
        bind("target_policy_smoothing", scale=0.2, clip=0.3), (VECTOR, VECTOR), (0, 1)
    ),
    "clipped_double_q_target": Case(
        bind("clipped_double_q_target"), (("real", (2,)), REAL, UNIT), (0, 1, 2)
    ),
    "td3_critic_loss": Case(bind("td3_critic_loss"), (("real", (2,)), REAL), (1,)),
    "deterministic_policy_loss": Case(bind("deterministic_policy_loss"), (REAL,)),
    "forward_backward_loss": Case(
        bind("forward_backward_loss"), (HEADS, VECTOR, POOL, HEADS, POOL, UNIT), (3, 4, 5)
    ),
    "forward_backward_loss:weights": Case(
        lambda *a: losses.forward_backward_loss(*a[:6], pool_weights=a[6]),
        (HEADS, VECTOR, POOL, HEADS, POOL, UNIT, ("unit", (POOLED,))),
        (3, 4, 5, 6),
    ),
    "orthonormality_loss": Case(bind("orthonormality_loss"), (VECTOR, POOL)),
    "orthonormality_loss:weights": Case(
        lambda *a: losses.orthonormality_loss(*a[:2], pool_weights=a[2]),
        (VECTOR, POOL, ("unit", (POOLED,))),
        (2,),
    ),
}
