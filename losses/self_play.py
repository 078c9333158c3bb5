r"""Losses of pairs that a policy sends itself: online IPO, IPO-MD, DNO and INPO.

A pair is two completions of one prompt, drawn as the docstring says and then held fixed, and how
likely the first is to beat the second. `sppo_loss` of `preference_variants` belongs here too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob
from bellmax.losses.preference import dpo_loss, ipo_loss

# A loss of (chosen_log_ratios[...], rejected_log_ratios[...]), one value a pair.
PairwiseLoss = Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]


def online_pair_loss(
    first_log_ratios: Float[Array, "*B"],
    second_log_ratios: Float[Array, "*B"],
    preferences: Float[Array, "*B"],
    *,
    loss_fn: PairwiseLoss,
) -> Float[Array, "*B"]:
    r"""Returns a pairwise loss averaged over which completion of the pair is preferred.

    .. math:: \ell = p \, L(h_1, h_2) + (1 - p) \, L(h_2, h_1), \quad p = P(y_1 \succ y_2)

    The mean over labels drawn from p, without the noise of drawing them. Gradients flow to both
    log-ratios; the preferences are stopped here, and the reference is the caller's to stop.

    Args:
      first_log_ratios: h_1, nats, summed over tokens. [...].
      second_log_ratios: h_2, nats, summed over tokens. [...].
      preferences: p, in [0, 1]. An order of probability 0 does not enter, however large its loss.
        [...].
      loss_fn: `(chosen_log_ratios, rejected_log_ratios) -> [...]`, e.g. `dpo_loss` with its `beta`.

    Returns:
      Losses in the unit of `loss_fn`. [...].

    Raises:
      ValueError: the arrays differ in shape.
      TypeError: an array is not floating point, or `loss_fn` not callable.

    References:
      Calandriello et al., Human Alignment of Large Language Models through Online Preference
      Optimisation, 2024. https://arxiv.org/abs/2403.08635
    """
    first, second, wins = _checks.floats(
        first_log_ratios=first_log_ratios,
        second_log_ratios=second_log_ratios,
        preferences=preferences,
    )
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of two log-ratios, got {loss_fn!r}.")
    wins = jax.lax.stop_gradient(wins)

    def weighted(weight, chosen, rejected):
        # Both before the loss and after it: 0 times infinity is NaN, and so is its gradient.
        counts = weight != 0
        value = loss_fn(jnp.where(counts, chosen, 0), jnp.where(counts, rejected, 0))
        return weight * jnp.where(counts, value, 0)

    return weighted(wins, first, second) + weighted(1 - wins, second, first)


def online_ipo_loss(
    first_log_ratios: Float[Array, "*B"],
    second_log_ratios: Float[Array, "*B"],
    preferences: Float[Array, "*B"],
    *,
    tau: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the online IPO loss of pairs that are sampled from the current policy.

    .. math:: \ell = p \left( \rho - \frac{1}{2 \tau} \right)^2
              + (1 - p) \left( \rho + \frac{1}{2 \tau} \right)^2, \quad \rho = h_1 - h_2

    With both completions from the policy, its expected gradient is 4 / tau times that of
    `nash_md_pg_loss` in self-play, and its only stationary point is the equilibrium of the
    regularised game. IPO-MD is this loss on pairs sampled from the geometric mixture of policy and
    reference (`geometric_mixture_logits`), IPO itself on pairs of a data set. Gradients flow to
    both log-ratios; the preferences are stopped here, the sampling is not differentiated, and the
    reference is the caller's to stop.

    Args:
      first_log_ratios: h_1, nats, summed over tokens. [...].
      second_log_ratios: h_2, nats, summed over tokens. [...].
      preferences: p, the probability in [0, 1] that the first completion beats the second. [...].
      tau: > 0, the weight of the KL divergence in the game; 1 in the paper's runs. A scalar or
        [...]; may be traced.

    Returns:
      Losses, nats squared. [...].

    Raises:
      ValueError: the arrays differ in shape, or `tau` is not positive.
      TypeError: an array is not floating point.

    References:
      Calandriello et al., Human Alignment of Large Language Models through Online Preference
      Optimisation, 2024. https://arxiv.org/abs/2403.08635
    """
    return online_pair_loss(
        first_log_ratios,
        second_log_ratios,
        preferences,
        loss_fn=lambda chosen, rejected: ipo_loss(chosen, rejected, tau=tau),
    )


def expanded_ipo_loss(
    chosen_log_ratios: Float[Array, "*B"], rejected_log_ratios: Float[Array, "*B"], *, tau: Knob
) -> Float[Array, "*B"]:
    r"""Returns the IPO loss of each pair multiplied out, without its constant.

    .. math:: \ell = -\rho + \tau \rho^2 = \tau \left( \rho - \frac{1}{2 \tau} \right)^2
              - \frac{1}{4 \tau}, \quad \rho = h_w - h_l

    The gradient is tau times that of `ipo_loss`, so that its scale does not grow as tau falls. The
    paper's code has the policy's log-probabilities in the first term, which adds a constant of the
    reference. Pass it to `online_pair_loss` for the online form. Gradients flow to both log-ratios.

    Args:
      chosen_log_ratios: h_w, nats, summed over tokens. [...].
      rejected_log_ratios: h_l, nats, summed over tokens. [...].
      tau: > 0, the strength of regularisation. A scalar or [...]; may be traced.

    Returns:
      Losses, nats; at least -1 / (4 tau). [...].

    Raises:
      ValueError: the arrays differ in shape, or `tau` is not positive.
      TypeError: an array is not floating point.

    References:
      Calandriello et al., Human Alignment of Large Language Models through Online Preference
      Optimisation, 2024. https://arxiv.org/abs/2403.08635
    """
    chosen, rejected = _checks.floats(
        chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios
    )
    _checks.positive("tau", tau)
    margin = chosen - rejected
    return _checks.knob("tau", tau, margin) * jnp.square(margin) - margin


def dno_loss(
    first_log_ratios: Float[Array, "*B"],
    second_log_ratios: Float[Array, "*B"],
    first_rewards: Float[Array, "*B"],
    second_rewards: Float[Array, "*B"],
    *,
    eta: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the loss of direct Nash optimisation (DNO): logistic, with a soft label.

    .. math:: \ell = -q \log \sigma(d) - (1 - q) \log \sigma(-d), \quad
              q = \sigma(r_1 - r_2), \quad d = \eta (h_1 - h_2)

    With full support its minimiser is :math:`\pi_{t+1} \propto \pi_t \exp(r_t / \eta)`. Gradients
    flow to both log-ratios; the rewards are stopped here, and the previous iterate inside the
    log-ratios is the caller's to stop. With hard labels it is `dpo_loss` against that iterate.

    Args:
      first_log_ratios: h_1 = log pi(y_1 | x) - log pi_t(y_1 | x) to the PREVIOUS ITERATE, nats,
        summed over tokens. [...].
      second_log_ratios: h_2, the same for the other completion. [...].
      first_rewards: r_1, the probability that y_1 beats a completion of the previous iterate, in
        [0, 1]. [...].
      second_rewards: r_2, the same for the other completion. [...].
      eta: > 0, 1/nats; DIVIDES the rewards in the minimiser. A scalar or [...]; may be traced.

    Returns:
      Losses, nats. [...].

    Raises:
      ValueError: the arrays differ in shape, or `eta` is not positive.
      TypeError: an array is not floating point.

    References:
      Rosset et al., Direct Nash Optimization, 2024. https://arxiv.org/abs/2404.03715
    """
    first, second, reward, other = _checks.floats(
        first_log_ratios=first_log_ratios,
        second_log_ratios=second_log_ratios,
        first_rewards=first_rewards,
        second_rewards=second_rewards,
    )
    _checks.positive("eta", eta)
    # 1 - q as a sigmoid of its own, which keeps its digits where q is near 1.
    wrong = jax.nn.sigmoid(jax.lax.stop_gradient(other - reward))
    return dpo_loss(first, second, beta=_checks.knob("eta", eta, first), label_smoothing=wrong)


def inpo_loss(
    chosen_log_probs: Float[Array, "*B"],
    rejected_log_probs: Float[Array, "*B"],
    chosen_reference_log_probs: Float[Array, "*B"],
    rejected_reference_log_probs: Float[Array, "*B"],
    chosen_previous_log_probs: Float[Array, "*B"],
    rejected_previous_log_probs: Float[Array, "*B"],
    *,
    eta: Knob,
    tau: Knob,
    preferences: Float[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the loss of iterative Nash policy optimisation (INPO).

    .. math:: \ell = \left( h - \frac{1}{2 \eta} \right)^2, \quad
              h = \log \frac{\pi(y_w)}{\pi(y_l)}
              - \frac{\tau}{\eta} \log \frac{\pi_{ref}(y_w)}{\pi_{ref}(y_l)}
              - \frac{\eta - \tau}{\eta} \log \frac{\pi_t(y_w)}{\pi_t(y_l)}

    On pairs of the previous iterate its minimiser is the mirror-descent step
    :math:`\pi_{t+1} \propto \exp(P(y \succ \pi_t) / \eta) \, \pi_{ref}^{\tau / \eta} \,
    \pi_t^{1 - \tau / \eta}`. With tau equal to eta, or the previous iterate equal to the reference,
    it is `ipo_loss` at tau = eta. With `preferences` it is the mean over both orders, as in
    `online_pair_loss`. Gradients flow to the policy's log-probabilities; reference, previous
    iterate and preferences are stopped here.

    Args:
      chosen_log_probs: log-probability of y_w under the policy, nats, summed over tokens; of the
        pair's first completion where `preferences` is given. [...].
      rejected_log_probs: the same for y_l, or for the second completion. [...].
      chosen_reference_log_probs: of y_w under the reference. [...].
      rejected_reference_log_probs: of y_l under the reference. [...].
      chosen_previous_log_probs: of y_w under the previous iterate, which the pair was sampled from.
        [...].
      rejected_previous_log_probs: of y_l under the previous iterate. [...].
      eta: > 0, one over the step size; 0.005 in the paper's runs. A scalar or [...]; may be traced.
      tau: >= 0, the weight of the KL divergence to the reference; eta / 3 in the paper's runs. A
        scalar or [...]; may be traced.
      preferences: the probability in [0, 1] that the first completion beats the second. [...]; None
        where `chosen` has won.

    Returns:
      Losses, nats squared. [...].

    Raises:
      ValueError: the arrays differ in shape, `eta` is not positive, or `tau` is negative.
      TypeError: an array is not floating point.

    References:
      Zhang et al., Iterative Nash Policy Optimization, 2024. https://arxiv.org/abs/2407.00617
    """
    arrays = {
        "chosen_log_probs": chosen_log_probs,
        "rejected_log_probs": rejected_log_probs,
        "chosen_reference_log_probs": chosen_reference_log_probs,
        "rejected_reference_log_probs": rejected_reference_log_probs,
        "chosen_previous_log_probs": chosen_previous_log_probs,
        "rejected_previous_log_probs": rejected_previous_log_probs,
    }
    chosen, rejected, *held = _checks.floats(**arrays)
    chosen_reference, rejected_reference, chosen_previous, rejected_previous = _checks.stop(*held)
    _checks.positive("eta", eta)
    _checks.in_range("tau", tau, 0, float("inf"))
    pull = _checks.knob("tau", tau, chosen) / _checks.knob("eta", eta, chosen)
    # A log-ratio of each completion to the iterate that is pulled towards the reference.
    chosen = chosen - pull * chosen_reference - (1 - pull) * chosen_previous
    rejected = rejected - pull * rejected_reference - (1 - pull) * rejected_previous
    if preferences is None:
        return ipo_loss(chosen, rejected, tau=eta)
    return online_ipo_loss(chosen, rejected, preferences, tau=eta)
