r"""Generalised preference optimisation (GPO) and its named members, and what users watch beside
them.

A pair enters as two log-ratios :math:`h = \log \pi(y|x) - \log \pi_{ref}(y|x)` of whole
completions, in nats, summed over tokens unless a docstring says otherwise; :math:`\rho = h_w - h_l`
is the margin of the chosen over the rejected one. Gradients flow to both log-ratios: the reference
inside them is the caller's to stop. Every function returns one value a pair and averages nothing.
Hyper-parameters may be traced.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks
from bellmax.losses._checks import Knob
from bellmax.losses.convex import ConvexFn, hinge, logistic


def gpo_loss(
    chosen_log_ratios: Float[Array, "..."],
    rejected_log_ratios: Float[Array, "..."],
    *,
    convex_fn: ConvexFn,
    beta: Knob,
    label_smoothing: Knob = 0.0,
) -> Float[Array, "..."]:
    r"""Returns the GPO loss of each pair: a convex function of the scaled margin.

    .. math:: (1 - s) f(\beta \rho) + s f(-\beta \rho), \quad \rho = h_w - h_l

    Near the reference, where rho is small, the second-order term :math:`\beta^2 f''(0) \rho^2 / 2`
    is what regularises; it is a mean over the data and not the KL divergence.

    Args:
      chosen_log_ratios: h_w, nats. [...].
      rejected_log_ratios: h_l, nats. [...].
      convex_fn: elementwise f with f'(0) < 0, e.g. `logistic` (DPO), or any of your own.
      beta: > 0, 1/nats; multiplies the margin.
      label_smoothing: s in [0, 1], the probability that a label is wrong (conservative DPO for
        the logistic f); a scalar, or one value a pair, e.g. 1 minus a soft label. [] or [...].

    Returns:
      One loss a pair, dimensionless. [...].

    Raises:
      ValueError: shapes differ (broadcasting would pair every chosen with every rejected
        completion), or a number is out of range.
      TypeError: a log-ratio is not floating point.

    References:
      Tang et al., Generalized Preference Optimization, 2024. https://arxiv.org/abs/2402.05749
      Mitchell, A note on DPO with noisy preferences, 2023 (label smoothing).
      https://ericmitchell.ai/cdpo.pdf
    """
    chosen, rejected = _checks.floats(
        chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios
    )
    if not callable(convex_fn):
        raise TypeError(f"convex_fn must be a function of the scaled margin, got {convex_fn!r}.")
    _checks.positive("beta", beta)
    _checks.in_range("label_smoothing", label_smoothing, 0, 1)
    margin = chosen - rejected
    margin = _checks.knob("beta", beta, margin) * margin
    if isinstance(label_smoothing, int | float) and label_smoothing == 0:
        # Not multiplied by 0, which would turn an infinite f(-margin) of the user's into NaN.
        return convex_fn(margin)
    smoothing = _checks.knob("label_smoothing", label_smoothing, margin)
    return (1 - smoothing) * convex_fn(margin) + smoothing * convex_fn(-margin)


def dpo_loss(
    chosen_log_ratios: Float[Array, "..."],
    rejected_log_ratios: Float[Array, "..."],
    *,
    beta: Knob,
    label_smoothing: Knob = 0.0,
) -> Float[Array, "..."]:
    r"""Returns the DPO loss of each pair, conservative where labels are smoothed.

    .. math:: -(1 - s) \log \sigma(\beta \rho) - s \log \sigma(-\beta \rho)

    Args:
      chosen_log_ratios: h_w, nats. [...].
      rejected_log_ratios: h_l, nats. [...].
      beta: > 0, 1/nats: the weight of the KL in the objective that DPO solves.
      label_smoothing: s in [0, 1], the probability that a label is wrong. [] or [...].

    Returns:
      One loss a pair; log 2 where the ratios are equal. [...].

    Raises:
      ValueError: shapes differ, or a number is out of range.
      TypeError: a log-ratio is not floating point.

    References:
      Rafailov et al., Direct Preference Optimization, 2023. https://arxiv.org/abs/2305.18290
    """
    return gpo_loss(
        chosen_log_ratios,
        rejected_log_ratios,
        convex_fn=logistic,
        beta=beta,
        label_smoothing=label_smoothing,
    )


def ipo_loss(
    chosen_log_ratios: Float[Array, "..."], rejected_log_ratios: Float[Array, "..."], *, tau: Knob
) -> Float[Array, "..."]:
    r"""Returns the IPO loss of each pair.

    .. math:: \left(\rho - \frac{1}{2 \tau}\right)^2

    It is the squared member of GPO at beta = 2 tau, divided by 4 tau^2. The paper sums log-ratios
    over tokens; some trainers average them, which is `ipo_loss` of ratios divided by lengths.

    Args:
      chosen_log_ratios: h_w, nats. [...].
      rejected_log_ratios: h_l, nats. [...].
      tau: > 0, the strength of regularisation; the margin that is aimed at is 1 / (2 tau) nats.

    Returns:
      One loss a pair, nats squared. [...].

    Raises:
      ValueError: shapes differ, or `tau` is a number that is not positive.
      TypeError: a log-ratio is not floating point.

    References:
      Azar et al., A General Theoretical Paradigm, 2023. https://arxiv.org/abs/2310.12036
    """
    chosen, rejected = _checks.floats(
        chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios
    )
    _checks.positive("tau", tau)
    margin = chosen - rejected
    return jnp.square(margin - 0.5 / _checks.knob("tau", tau, margin))


def slic_loss(
    chosen_log_ratios: Float[Array, "..."],
    rejected_log_ratios: Float[Array, "..."],
    *,
    beta: Knob,
) -> Float[Array, "..."]:
    r"""Returns the hinge loss of each pair, SLiC with a reference.

    .. math:: \max(0, 1 - \beta \rho)

    SLiC-HF itself has no reference: pass plain log-probabilities for that, with beta = 1 / delta,
    and multiply by delta.

    Args:
      chosen_log_ratios: h_w, nats. [...].
      rejected_log_ratios: h_l, nats. [...].
      beta: > 0, 1/nats: one over the margin that is aimed at.

    Returns:
      One loss a pair, >= 0. [...].

    Raises:
      ValueError: shapes differ, or a number is out of range.
      TypeError: a log-ratio is not floating point.

    References:
      Zhao et al., SLiC-HF, 2023. https://arxiv.org/abs/2305.10425
      Liu et al., Statistical Rejection Sampling, 2023 (with a reference).
      https://arxiv.org/abs/2309.06657
    """
    return gpo_loss(chosen_log_ratios, rejected_log_ratios, convex_fn=hinge, beta=beta)


def robust_dpo_loss(
    chosen_log_ratios: Float[Array, "..."],
    rejected_log_ratios: Float[Array, "..."],
    *,
    beta: Knob,
    label_smoothing: Knob,
) -> Float[Array, "..."]:
    r"""Returns the robust DPO loss of each pair: unbiased when labels flip with a known
    probability.

    .. math:: \frac{(1 - \epsilon) \ell(\rho) - \epsilon \ell(-\rho)}{1 - 2 \epsilon},
              \quad \ell(\rho) = -\log \sigma(\beta \rho)

    Its mean over labels flipped with probability epsilon is the DPO loss of the true labels. It may
    be negative. Conservative DPO (`dpo_loss` with `label_smoothing`) is another estimator, and
    biased.

    Args:
      chosen_log_ratios: h_w, nats. [...].
      rejected_log_ratios: h_l, nats. [...].
      beta: > 0, 1/nats.
      label_smoothing: epsilon in [0, 1/2), the probability that a label is wrong.

    Returns:
      One loss a pair. [...].

    Raises:
      ValueError: shapes differ, or a number is out of range.
      TypeError: a log-ratio is not floating point.

    References:
      Chowdhury et al., Provably Robust DPO, 2024. https://arxiv.org/abs/2403.00409
    """
    _checks.in_range("label_smoothing", label_smoothing, 0, 0.5, closed=False)
    right = dpo_loss(chosen_log_ratios, rejected_log_ratios, beta=beta)
    wrong = dpo_loss(rejected_log_ratios, chosen_log_ratios, beta=beta)
    flips = _checks.knob("label_smoothing", label_smoothing, right)
    return ((1 - flips) * right - flips * wrong) / (1 - 2 * flips)


def length_normalised_dpo_loss(
    chosen_log_ratios: Float[Array, "..."],
    rejected_log_ratios: Float[Array, "..."],
    chosen_lengths: Shaped[Array, "..."],
    rejected_lengths: Shaped[Array, "..."],
    *,
    beta: Knob,
    convex_fn: ConvexFn = logistic,
) -> Float[Array, "..."]:
    r"""Returns the GPO loss of log-ratios averaged over tokens, so that length alone earns no
    margin.

    .. math:: f\left(\beta \left(\frac{h_w}{|y_w|} - \frac{h_l}{|y_l|}\right)\right)

    With `convex_fn=squared` and beta = 2 tau it is, up to the factor 4 tau^2, the length-normalised
    IPO that several trainers ship under the name of IPO.

    Args:
      chosen_log_ratios: h_w, nats, summed over tokens. [...].
      rejected_log_ratios: h_l, nats, summed over tokens. [...].
      chosen_lengths: counted tokens of the chosen completion; below 1 counts as 1. [...].
      rejected_lengths: counted tokens of the rejected completion; below 1 counts as 1. [...].
      beta: > 0, tokens/nat; of the order of beta of DPO times a typical length.
      convex_fn: elementwise f with f'(0) < 0; default `logistic`.

    Returns:
      One loss a pair. [...].

    Raises:
      ValueError: shapes differ, or a number is out of range.
      TypeError: a log-ratio is not floating point.

    References:
      Lambert et al., Tülu 3, 2024 (length-normalised DPO). https://arxiv.org/abs/2411.15124
    """
    _checks.same_shape(
        chosen_log_ratios=chosen_log_ratios,
        rejected_log_ratios=rejected_log_ratios,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    chosen, rejected = _checks.floats(
        chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios
    )
    return gpo_loss(
        chosen / jnp.maximum(chosen_lengths, 1).astype(chosen.dtype),
        rejected / jnp.maximum(rejected_lengths, 1).astype(rejected.dtype),
        convex_fn=convex_fn,
        beta=beta,
    )


def rpo_loss(
    chosen_log_ratios: Float[Array, "..."],
    rejected_log_ratios: Float[Array, "..."],
    chosen_log_probs: Float[Array, "..."],
    *,
    beta: Knob,
    eta: Knob,
    scale_by_beta: bool = True,
) -> Float[Array, "..."]:
    r"""Returns the DPO loss of each pair, regularised by the likelihood of the chosen completion
    (RPO).

    .. math:: -\log \sigma(\beta \rho) - \eta \beta \log \pi(y_w \mid x)

    The authors' code multiplies the likelihood by eta times beta and sums it over tokens; others
    use eta alone, on a mean over tokens. Both are here: `scale_by_beta=False`, and normalised
    `chosen_log_probs`.

    Args:
      chosen_log_ratios: h_w, nats. [...].
      rejected_log_ratios: h_l, nats. [...].
      chosen_log_probs: log-probability of the chosen completion under the policy, nats; summed over
        tokens in the paper. [...].
      beta: > 0, 1/nats.
      eta: >= 0, weight of the likelihood; the paper's runs use 0.005.
      scale_by_beta: whether the likelihood's weight is eta * beta, as in the authors' code, or eta.

    Returns:
      One loss a pair. [...].

    Raises:
      ValueError: shapes differ, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Liu et al., Provably Mitigating Overoptimization in RLHF, 2024.
      https://arxiv.org/abs/2405.16436
    """
    _checks.same_shape(chosen_log_ratios=chosen_log_ratios, chosen_log_probs=chosen_log_probs)
    log_likelihood = _checks.as_float("chosen_log_probs", chosen_log_probs)
    _checks.in_range("eta", eta, 0, float("inf"))
    weight = _checks.knob("eta", eta, log_likelihood)
    if scale_by_beta:
        weight = weight * _checks.knob("beta", beta, log_likelihood)
    return dpo_loss(chosen_log_ratios, rejected_log_ratios, beta=beta) - weight * log_likelihood


def implicit_rewards(log_ratios: Float[Array, "..."], *, beta: Knob) -> Float[Array, "..."]:
    r"""Returns the reward that a policy implies, :math:`\beta h`, up to a constant of the prompt.

    Args:
      log_ratios: h, nats. [...].
      beta: > 0, 1/nats.

    Returns:
      Rewards, dimensionless. [...].

    Raises:
      TypeError: `log_ratios` is not floating point.

    References:
      Rafailov et al., Direct Preference Optimization, 2023. https://arxiv.org/abs/2305.18290
    """
    _checks.positive("beta", beta)
    ratios = _checks.as_float("log_ratios", log_ratios)
    return _checks.knob("beta", beta, ratios) * ratios


def preference_margin(
    chosen_log_ratios: Float[Array, "..."],
    rejected_log_ratios: Float[Array, "..."],
    *,
    beta: Knob,
) -> Float[Array, "..."]:
    r"""Returns the margin of implicit rewards, :math:`\beta (h_w - h_l)`.

    Args:
      chosen_log_ratios: h_w, nats. [...].
      rejected_log_ratios: h_l, nats. [...].
      beta: > 0, 1/nats.

    Returns:
      Margins, dimensionless; positive where the policy agrees with the label. [...].

    Raises:
      ValueError: shapes differ.
      TypeError: a log-ratio is not floating point.

    References:
      Rafailov et al., Direct Preference Optimization, 2023. https://arxiv.org/abs/2305.18290
    """
    chosen, rejected = _checks.floats(
        chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios
    )
    return implicit_rewards(chosen - rejected, beta=beta)


def preference_accuracy(
    chosen_log_ratios: Float[Array, "..."], rejected_log_ratios: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns whether the implicit reward orders each pair as its label does.

    Args:
      chosen_log_ratios: h_w, nats. [...].
      rejected_log_ratios: h_l, nats. [...].

    Returns:
      1 where h_w > h_l, 0 where h_w < h_l, 1/2 on a tie (so that a policy equal to its reference
      scores chance, not 0), NaN where a ratio is NaN; the gradient is 0. [...].

    Raises:
      ValueError: shapes differ.
      TypeError: a log-ratio is not floating point.

    References:
      Rafailov et al., Direct Preference Optimization, 2023. https://arxiv.org/abs/2305.18290
    """
    chosen, rejected = _checks.floats(
        chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios
    )
    return (1 + jnp.sign(jax.lax.stop_gradient(chosen - rejected))) / 2
