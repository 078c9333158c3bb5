r"""Exact steps of preference optimisation by self-play: DNO, INPO, SPPO, online IPO, APO.

Each method's loss, minimised over all policies, moves a policy by one closed-form step. Those of
DNO, INPO and SPPO are all the exponential weights

.. math:: \pi_{t+1}(y) \propto \pi_t(y)^{1 - c \tau} \mu(y)^{c \tau} \exp(c \, P(y \succ \pi_t))

with c = 1 / eta (DNO, INPO) or eta (SPPO), and tau = 0 for DNO and SPPO: these have no reference to
return to, so on a cyclic game their average converges and their last policy does not. Online IPO is
no proximal step but a gradient step on softmax logits; its losses are those of `bellmax.losses`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax import losses
from bellmax.agents.tabular import _games, nash
from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def dno_step(
    policy: Float[Array, " A"], preference: Float[Array, "A A"], *, eta: Knob
) -> Float[Array, " A"]:
    r"""Returns the policy that minimises DNO's loss over pairs with full support.

    .. math:: \pi_{t+1}(y) \propto \pi_t(y) \exp(P(y \succ \pi_t) / \eta)

    The step improves: P(pi_{t+1} over pi_t) is at least 1/2 + eta KL(pi_{t+1}, pi_t).

    Args:
      policy: pi_t. [A].
      preference: probability that the row's action beats the column's. [A, A].
      eta: > 0, which DIVIDES the win-rate. May be traced.

    Returns:
      pi_{t+1}. [A].

    Raises:
      ValueError: a shape is wrong, or `eta` is not positive.
      TypeError: an array is not floating point.

    References:
      Rosset et al., Direct Nash Optimization, 2024, algorithm 1. https://arxiv.org/abs/2404.03715
    """
    _checks.positive("eta", eta)
    return _games.one_step(_games.exponential_weights, policy, preference, policy, 0.0, 1 / eta)


def dno_iterates(
    preference: Float[Array, "A A"], start: Float[Array, " A"], *, eta: Knob, num_steps: int
) -> Float[Array, "T+1 A"]:
    """Returns every policy of `dno_step`, the first included: self-play without a reference.

    The guarantee is for the average of the policies; on a cyclic game the last one spirals away
    from the equilibrium. SPPO's are the same with eta replaced by 1 / eta.

    Args:
      preference: probability that the row's action beats the column's. [A, A].
      start: the first policy. [A].
      eta: > 0, which DIVIDES the win-rate. May be traced.
      num_steps: steps T, at least 0.

    Returns:
      Policies. [T + 1, A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Rosset et al., Direct Nash Optimization, 2024. https://arxiv.org/abs/2404.03715
    """
    _checks.positive("eta", eta)
    matrix, first = _games.game(preference, start=start)
    # Without a pull, the start itself stands where the reference would.
    (no_pull,) = _games.constants(matrix, 0.0)
    step_sizes = _games.step_sizes(1 / eta, no_pull, num_steps, matrix.dtype)
    return _games.iterate(
        _games.exponential_weights, first, matrix, first, no_pull, step_sizes, keep=True
    )


def inpo_step(
    policy: Float[Array, " A"],
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    eta: Knob,
) -> Float[Array, " A"]:
    r"""Returns the policy that minimises INPO's loss on pairs of the current policy.

    .. math:: \pi_{t+1}(y) \propto \exp(P(y \succ \pi_t) / \eta) \, \mu(y)^{\tau / \eta} \,
              \pi_t(y)^{1 - \tau / \eta}

    which is mirror descent of step size 1 / eta; eta = tau drops pi_t and leaves the minimiser of
    online IPO's loss on pairs of pi_t.

    Args:
      policy: pi_t. [A].
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: temperature, > 0, nats. May be traced.
      eta: at least tau; DIVIDES the win-rate (the paper's inverse learning rate). May be traced.

    Returns:
      pi_{t+1}. [A].

    Raises:
      ValueError: a shape is wrong, a number is not positive, or `eta` is below `tau`.
      TypeError: an array is not floating point.

    References:
      Zhang et al., Iterative Nash Policy Optimization, 2024. https://arxiv.org/abs/2407.00617
    """
    _check_inpo(tau, eta)
    return _games.one_step(_games.exponential_weights, policy, preference, reference, tau, 1 / eta)


def inpo_iterates(
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    num_steps: int,
    eta: Knob | None = None,
    start: Float[Array, " A"] | None = None,
) -> Float[Array, "T+1 A"]:
    """Returns every policy of `inpo_step`, the first included; the last one converges.

    Args:
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: temperature, > 0, nats. May be traced.
      num_steps: steps T, at least 0.
      eta: at least tau: a number, or one a step [T]; None for the paper's schedule eta_t = tau (t +
        2) / 2, t from 0. May be traced.
      start: the first policy; None for the reference. [A].

    Returns:
      Policies. [T + 1, A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Zhang et al., Iterative Nash Policy Optimization, 2024. https://arxiv.org/abs/2407.00617
    """
    if eta is not None:
        _check_inpo(tau, eta)
    return nash.mirror_descent_iterates(
        preference,
        reference,
        tau=tau,
        num_steps=num_steps,
        learning_rate=None if eta is None else 1 / eta,
        start=start,
    )


def _check_inpo(tau: Knob, eta: Knob) -> None:
    _checks.positive("tau", tau)
    _checks.positive("eta", eta)
    if isinstance(tau, int | float) and isinstance(eta, int | float) and eta < tau:
        raise ValueError(f"eta must be at least tau = {tau}, got {eta}.")


def sppo_step(
    policy: Float[Array, " A"], preference: Float[Array, "A A"], *, eta: Knob
) -> Float[Array, " A"]:
    r"""Returns the exponential-weights step that SPPO aims at.

    .. math:: \pi_{t+1}(y) \propto \pi_t(y) \exp(\eta P(y \succ \pi_t))

    Its regression sets the log of the normaliser to eta / 2; where that is not so, the minimiser of
    the loss is another policy: `sppo_regression_step`.

    Args:
      policy: pi_t. [A].
      preference: probability that the row's action beats the column's. [A, A].
      eta: > 0, which MULTIPLIES the win-rate. May be traced.

    Returns:
      pi_{t+1}. [A].

    Raises:
      ValueError: a shape is wrong, or `eta` is not positive.
      TypeError: an array is not floating point.

    References:
      Wu et al., Self-Play Preference Optimization for Language Model Alignment, 2024.
      https://arxiv.org/abs/2405.00675
    """
    _checks.positive("eta", eta)
    return _games.one_step(_games.exponential_weights, policy, preference, policy, 0.0, eta)


def sppo_regression_step(
    policy: Float[Array, " A"], preference: Float[Array, "A A"], *, eta: Knob
) -> Float[Array, " A"]:
    r"""Returns the policy that minimises SPPO's loss over the simplex, on completions of pi_t.

    With h the log-ratio to pi_t and the targets t(y) = eta (P(y over pi_t) - 1/2), the minimiser of
    the mean of (h - t)^2 under the constraint that pi sums to 1 has

    .. math:: h(y) + s e^{h(y)} = t(y), \qquad s = \mathrm{KL}(\pi_t, \pi_{t+1}) \ge 0

    (pi_t averages the targets to 0, hence the value of s and, by Jensen, its sign). Two scalar
    searches: s by halving [0, max t], and h for each s by Newton's method.

    Args:
      policy: pi_t. [A].
      preference: probability that the row's action beats the column's; preference + its transpose
        is 1. [A, A].
      eta: > 0, nats. May be traced.

    Returns:
      pi_{t+1}. [A].

    Raises:
      ValueError: a shape is wrong, or `eta` is not positive.
      TypeError: an array is not floating point.

    References:
      Wu et al., Self-Play Preference Optimization for Language Model Alignment, 2024.
      https://arxiv.org/abs/2405.00675
    """
    _checks.positive("eta", eta)
    matrix, current = _games.game(preference, policy=policy)
    return _regress(matrix, current, *_games.constants(matrix, eta))


@jax.jit
def _regress(matrix, current, eta):
    target = eta * _games.centred_wins(matrix, current)

    def log_weights(multiplier):
        # x + e^x = c for x = log(s) + h: Newton from the right of the root never overshoots.
        shift = jnp.log(multiplier)
        total = shift + target
        x = jnp.where(total > 1, jnp.log(jnp.maximum(total, 1)), total)
        for _ in range(8):
            x = x - (x + jnp.exp(x) - total) / (1 + jnp.exp(x))
        return x - shift

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_heavy = jnp.sum(current * jnp.exp(log_weights(middle))) > 1
        return jnp.where(too_heavy, middle, low), jnp.where(too_heavy, high, middle)

    # Where all targets are equal the step is none, and both bounds are this small number.
    tiny = jnp.full((), jnp.finfo(matrix.dtype).tiny, matrix.dtype)
    bounds = jax.lax.fori_loop(0, 60, halve, (tiny, jnp.maximum(jnp.max(target), tiny)))
    return _games.to_policy(log_weights(sum(bounds) / 2), jnp.log(current))


def _online_ipo(ratios, preference, log_reference, constants, step_size):
    tau, mixture = constants
    law = _games.to_policy((1 - mixture) * ratios, log_reference)

    def loss(ratios):
        log_ratios = ratios - jax.nn.logsumexp(log_reference + ratios)
        rows, columns = jnp.broadcast_arrays(log_ratios[:, None], log_ratios[None, :])
        pairs = losses.online_ipo_loss(rows, columns, preference, tau=tau)
        return jnp.sum(law[:, None] * law * pairs)

    return ratios - step_size * jax.grad(loss)(ratios)


def online_ipo_iterates(
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    num_steps: int,
    learning_rate: Knob,
    mixture: Knob = 0.0,
    start: Float[Array, " A"] | None = None,
) -> Float[Array, "T+1 A"]:
    r"""Returns every policy of exact gradient descent on online IPO or IPO-MD.

    .. math:: \theta \leftarrow \theta - \eta \nabla_\theta \, \mathbb E_{y, y' \sim \pi'}
              \left[ P(y \succ y') \ell(y, y') + P(y' \succ y) \ell(y', y) \right], \qquad
              \ell(w, l) = \left( \rho_w - \rho_l - \tfrac1{2 \tau} \right)^2

    over softmax logits, with both completions from pi' = pi^(1 - mixture) mu^mixture, held constant
    in the gradient, and the expectation taken over all pairs. The descent's only stationary point
    is `ipo_md_equilibrium`; at mixture 0 that is the regularised equilibrium, and the gradient is 4
    / tau times that of self-play's policy gradient.

    Args:
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: > 0, nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: > 0: a number, or one a step [T]. May be traced.
      mixture: in [0, 1], the geometric weight of the reference in the sampling law. May be traced.
      start: the first policy; None for the reference. [A].

    Returns:
      Policies. [T + 1, A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Calandriello et al., Human Alignment of Large Language Models through Online Preference
      Optimisation, 2024. https://arxiv.org/abs/2403.08635
    """
    _checks.positive("tau", tau)
    _checks.positive("learning_rate", learning_rate)
    _checks.in_range("mixture", mixture, 0, 1)
    start = reference if start is None else start
    matrix, base, first = _games.game(preference, reference=reference, start=start)
    step_sizes = _games.step_sizes(learning_rate, tau, num_steps, matrix.dtype)
    constants = _games.constants(matrix, tau, mixture)
    return _games.iterate(_online_ipo, first, matrix, base, constants, step_sizes, keep=True)


def nesterov_extrapolate(
    log_probs: Float[Array, "... A"], previous_log_probs: Float[Array, "... A"], *, alpha: Knob
) -> Float[Array, "... A"]:
    r"""Returns the policy that APO's momentum makes of two consecutive optima.

    .. math:: \pi_{t+1}(y) \propto \hat\pi_{t+1}(y) \left(
              \frac{\hat\pi_{t+1}(y)}{\hat\pi_t(y)} \right)^\alpha

    A constant added to either argument changes nothing. With exact inner steps, each a DPO with the
    last policy for reference, progress is faster by 1 / (1 - alpha) in the long run.

    Args:
      log_probs: log of the new optimum, nats, up to a constant. [..., A].
      previous_log_probs: log of the optimum before. [..., A].
      alpha: momentum in [0, 1); 0 leaves the new optimum. May be traced.

    Returns:
      Normalised log-probabilities, nats. [..., A].

    Raises:
      ValueError: the shapes differ, or `alpha` is out of range.
      TypeError: an array is not floating point.

    References:
      He et al., Accelerated Preference Optimization for Large Language Model Alignment, 2024.
      https://arxiv.org/abs/2410.06293
    """
    new, old = _checks.floats(log_probs=log_probs, previous_log_probs=previous_log_probs)
    _checks.in_range("alpha", alpha, 0, 1, closed=False)
    momentum = jnp.asarray(alpha, new.dtype)
    return jax.nn.log_softmax(new + momentum * (new - old), axis=-1)
