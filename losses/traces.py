r"""Traces: how far an off-policy return follows what the behaviour did.

An action a_t was taken by a behaviour mu at x_t; the return wanted is that of a policy pi. The
traces tell the methods apart, and serve the scalar returns of `off_policy_returns` as well as the
laws of `multistep`:

| method              | c_t                    | function             | the policy handed over     |
|---------------------|------------------------|----------------------|----------------------------|
| one step            | 0                      | `one_step_traces`    | any                        |
| Q(lambda)           | lambda                 | `q_lambda_traces`    | near mu, or it may diverge |
| TD(lambda)          | lambda                 | `td_lambda_traces`   | mu itself                  |
| Retrace(lambda)     | lambda min(1, pi / mu) | `retrace_traces`     | any                        |
| tree backup         | lambda pi              | `tree_backup_traces` | any                        |
| importance sampling | lambda pi / mu         | `importance_traces`  | any, at high variance      |
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob

# (policy_probs, behaviour_probs, *, trace_decay) -> traces: each of the functions below.
TraceFn = Callable[..., Float[Array, "..."]]


def one_step_traces(
    policy_probs: Float[Array, "*B"], behaviour_probs: Float[Array, "*B"], *, trace_decay: Knob = 0
) -> Float[Array, "*B"]:
    """Returns traces of the one-step backup: 0. The other arguments are checked and not read.

    Args:
      policy_probs: pi(a_t | x_t) of the actions taken. [...].
      behaviour_probs: mu(a_t | x_t) of the same actions. [...].
      trace_decay: not read; here so that all trace functions can be called alike.

    Returns:
      Zeros. [...].

    Raises:
      ValueError: the arrays differ in shape.
      TypeError: an array is not floating point.

    References:
      van Seijen et al., A Theoretical and Empirical Analysis of Expected Sarsa, 2009.
      https://doi.org/10.1109/ADPRL.2009.4927542
    """
    policy, _, _ = _probabilities(policy_probs, behaviour_probs, trace_decay)
    return jnp.zeros_like(policy)


def q_lambda_traces(
    policy_probs: Float[Array, "*B"], behaviour_probs: Float[Array, "*B"], *, trace_decay: Knob
) -> Float[Array, "*B"]:
    r"""Returns traces of Q(lambda) without importance sampling: lambda, whatever was done.

    This is Harutyunyan's Q(lambda), not Watkins' and not Peng's. With
    :math:`\varepsilon = \max_x \sum_a |\pi(a \mid x) - \mu(a \mid x)|` its expected backup of
    values contracts if :math:`\lambda < (1 - \gamma) / (\gamma \varepsilon)`, and beyond that can
    diverge.

    Args:
      policy_probs: pi(a_t | x_t) of the actions taken; not read. [...].
      behaviour_probs: mu(a_t | x_t) of the same actions; not read. [...].
      trace_decay: lambda in [0, 1]. A scalar or [...]; may be traced.

    Returns:
      Traces, gradient-stopped. [...].

    Raises:
      ValueError: the arrays differ in shape, or `trace_decay` is out of range.
      TypeError: an array is not floating point.

    References:
      Harutyunyan et al., Q(lambda) with Off-Policy Corrections, 2016.
      https://arxiv.org/abs/1602.04951
      Tang et al., Off-policy Distributional Q(lambda), 2024. https://arxiv.org/abs/2402.05766
    """
    policy, _, decay = _probabilities(policy_probs, behaviour_probs, trace_decay)
    return jnp.broadcast_to(decay, policy.shape)


def td_lambda_traces(
    policy_probs: Float[Array, "*B"], behaviour_probs: Float[Array, "*B"], *, trace_decay: Knob
) -> Float[Array, "*B"]:
    """Returns traces of TD(lambda): lambda, the same numbers as `q_lambda_traces`.

    What makes it TD(lambda) is the policy handed to the target: the behaviour itself. Retrace and
    importance sampling have these traces then, too. With the action that was taken as a one-hot
    policy it is Sarsa(lambda), whose targets of laws are never signed.

    Args:
      policy_probs: pi(a_t | x_t) of the actions taken; not read. [...].
      behaviour_probs: mu(a_t | x_t) of the same actions; not read. [...].
      trace_decay: lambda in [0, 1]. A scalar or [...]; may be traced.

    Returns:
      Traces, gradient-stopped. [...].

    Raises:
      ValueError: the arrays differ in shape, or `trace_decay` is out of range.
      TypeError: an array is not floating point.

    References:
      Sutton, Learning to Predict by the Methods of Temporal Differences, 1988.
      https://doi.org/10.1007/BF00115009
    """
    return q_lambda_traces(policy_probs, behaviour_probs, trace_decay=trace_decay)


def retrace_traces(
    policy_probs: Float[Array, "*B"], behaviour_probs: Float[Array, "*B"], *, trace_decay: Knob
) -> Float[Array, "*B"]:
    r"""Returns traces of Retrace(lambda): an importance ratio that never exceeds 1.

    .. math:: c_t = \lambda \min(1, \pi(a_t \mid x_t) / \mu(a_t \mid x_t))

    Its expected backup contracts for any behaviour.

    Args:
      policy_probs: pi(a_t | x_t) of the actions taken, in [0, 1]. [...].
      behaviour_probs: mu(a_t | x_t) of the same actions; 0 gives a trace of 0. [...].
      trace_decay: lambda in [0, 1]. A scalar or [...]; may be traced.

    Returns:
      Traces, gradient-stopped. [...].

    Raises:
      ValueError: the arrays differ in shape, or `trace_decay` is out of range.
      TypeError: an array is not floating point.

    References:
      Munos et al., Safe and Efficient Off-Policy Reinforcement Learning, 2016.
      https://arxiv.org/abs/1606.02647
    """
    policy, behaviour, decay = _probabilities(policy_probs, behaviour_probs, trace_decay)
    return decay * jnp.minimum(_ratio(policy, behaviour), 1)


def tree_backup_traces(
    policy_probs: Float[Array, "*B"], behaviour_probs: Float[Array, "*B"], *, trace_decay: Knob = 1
) -> Float[Array, "*B"]:
    r"""Returns traces of tree backup: the policy's own probability.

    .. math:: c_t = \lambda \pi(a_t \mid x_t)

    It needs no behaviour probabilities, and every target of laws that it makes is a probability
    law.

    Args:
      policy_probs: pi(a_t | x_t) of the actions taken, in [0, 1]. [...].
      behaviour_probs: mu(a_t | x_t) of the same actions; not read. [...].
      trace_decay: lambda in [0, 1]; 1 is the classic form. A scalar or [...]; may be traced.

    Returns:
      Traces, gradient-stopped. [...].

    Raises:
      ValueError: the arrays differ in shape, or `trace_decay` is out of range.
      TypeError: an array is not floating point.

    References:
      Precup et al., Eligibility Traces for Off-Policy Policy Evaluation, 2000.
      https://dl.acm.org/doi/10.5555/645529.658134
    """
    policy, _, decay = _probabilities(policy_probs, behaviour_probs, trace_decay)
    return decay * policy


def importance_traces(
    policy_probs: Float[Array, "*B"], behaviour_probs: Float[Array, "*B"], *, trace_decay: Knob = 1
) -> Float[Array, "*B"]:
    r"""Returns traces of per-decision importance sampling.

    .. math:: c_t = \lambda \pi(a_t \mid x_t) / \mu(a_t \mid x_t)

    Args:
      policy_probs: pi(a_t | x_t) of the actions taken, in [0, 1]. [...].
      behaviour_probs: mu(a_t | x_t) of the same actions; 0 gives a trace of 0. [...].
      trace_decay: lambda in [0, 1]. A scalar or [...]; may be traced.

    Returns:
      Traces without an upper bound, gradient-stopped. [...].

    Raises:
      ValueError: the arrays differ in shape, or `trace_decay` is out of range.
      TypeError: an array is not floating point.

    References:
      Precup et al., Eligibility Traces for Off-Policy Policy Evaluation, 2000.
      https://dl.acm.org/doi/10.5555/645529.658134
    """
    policy, behaviour, decay = _probabilities(policy_probs, behaviour_probs, trace_decay)
    return decay * _ratio(policy, behaviour)


def _probabilities(
    policy_probs: Array, behaviour_probs: Array, trace_decay: Knob
) -> tuple[Array, Array, Array]:
    """Returns both probabilities and lambda: checked, stopped, of one dtype."""
    policy, behaviour = _checks.floats(policy_probs=policy_probs, behaviour_probs=behaviour_probs)
    _checks.in_range("trace_decay", trace_decay, 0, 1)
    dtype = jnp.result_type(policy, behaviour)
    policy, behaviour = policy.astype(dtype), behaviour.astype(dtype)
    return _checks.stop(policy, behaviour, _checks.knob("trace_decay", trace_decay, policy))


def _ratio(policy: Float[Array, "*B"], behaviour: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns pi / mu; 0 where mu is 0, as in padding: a quotient there would be NaN."""
    taken = behaviour > 0
    return jnp.where(taken, policy / jnp.where(taken, behaviour, 1), 0)
