r"""Off-policy multi-step operators on tables of categorical laws: Q(lambda), Retrace and the like.

With B the projected backup of the policy pi to evaluate and C that of the behaviour mu weighed by
traces c(x, a), both on laws of pairs,

.. math:: A \eta = \eta + (I - C)^{-1} (B \eta - \eta) = (I - C)^{-1} (B - C) \eta

c = lambda gives Q(lambda), without importance sampling; c = lambda min(1, pi / mu) Retrace;
c = lambda pi tree backup; c = lambda pi / mu importance sampling; c = lambda with pi = mu
TD(lambda). The fixed point is that of B, whatever mu and c. Iterates have mass 1 and may be signed.
On differences of laws I - C is invertible at lambda = 1 as well.

Every step of B and C is projected. A target of several steps, as
`losses.categorical_multistep_target` makes it, is projected once; the two agree where the
rewards keep atoms on the support, and up to the width of its gaps elsewhere.

How far pi and mu differ decides whether Q(lambda) converges. In the distance ell_p of cumulative
functions, with epsilon = max_x sum_a |pi(a|x) - mu(a|x)|,

.. math:: \| A \eta - A \nu \|_p \le \beta_p \| \eta - \nu \|_p, \qquad
          \beta_p = \frac{\gamma^{1/p} (1 - \lambda + \lambda \epsilon)}
                         {1 - \lambda \gamma^{1/p}}

because a push-forward scales ell_p by gamma^(1/p) and the coefficients pi - lambda mu sum to at
most 1 - lambda + lambda epsilon in absolute value. beta_p < 1 iff lambda is below
(1 - gamma^(1/p)) / (gamma^(1/p) epsilon). Both are derived here; the paper states such a bound.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.agents.tabular import _categorical, _resolvent
from bellmax.agents.tabular.categorical_dp import MAX_DENSE, MAX_SWEEPS
from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def multistep_dp_step(
    probs: Float[Array, "S A K"],
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    policy: Float[Array, "S A"],
    behaviour: Float[Array, "S A"],
    discount: Knob,
    support: Float[Array, " K"],
    *,
    traces: Float[Array, "S A"],
    num_steps: int | None = None,
    max_dense: int = MAX_DENSE,
    tolerance: float | None = None,
    max_sweeps: int = MAX_SWEEPS,
) -> Float[Array, "S A K"]:
    r"""Returns laws after one application of the operator A: what learning expects of its targets.

    Differentiable and vmappable, matrix-free above `max_dense` unknowns. Over finite trajectories
    of T transitions, with no trace after the last, the operator is
    :math:`\eta + \sum_{t < T} C^t (B \eta - \eta)`.

    Args:
      probs: eta, weights of mass 1 and any sign. [S, A, K].
      transition: probabilities of the next state. [S, A, S].
      reward: of each pair. [S, A].
      policy: pi, probabilities of the policy to evaluate. [S, A].
      behaviour: mu, probabilities of the policy that acts. [S, A].
      discount: gamma, in [0, 1]. May be traced.
      support: z, strictly increasing. [K].
      traces: c, of each pair, >= 0. [S, A].
      num_steps: T, at least 1; None for trajectories without an end, which needs gamma times the
        largest sum_a mu c to be below 1.
      max_dense: S A (K - 1) up to which the inverse is taken by elimination.
      tolerance: of the matrix-free inverse, as in `categorical_fixed_point`.
      max_sweeps: of the matrix-free inverse.

    Returns:
      A eta. [S, A, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Tang et al., Off-policy Distributional Q(lambda): Distributional RL without Importance
      Sampling, 2024. https://arxiv.org/abs/2402.05766
      Tang et al., The Nature of Temporal Difference Errors in Multi-step Distributional
      Reinforcement Learning, 2022. https://arxiv.org/abs/2207.07570
    """
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    followed, (laws,) = _backups(
        transition, reward, policy, behaviour, traces, discount, support, probs=probs
    )
    options = {"max_dense": max_dense, "tolerance": tolerance, "max_sweeps": max_sweeps}
    return _step(*followed, laws, discount, num_steps=num_steps, **options)


def q_lambda_dp_step(
    probs: Float[Array, "S A K"],
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    policy: Float[Array, "S A"],
    behaviour: Float[Array, "S A"],
    discount: Knob,
    support: Float[Array, " K"],
    *,
    trace_decay: Knob,
    num_steps: int | None = None,
) -> Float[Array, "S A K"]:
    """Returns laws after one application of Q(lambda): `multistep_dp_step` with traces of lambda.

    Args:
      probs: weights of mass 1 and any sign. [S, A, K].
      transition: probabilities of the next state. [S, A, S].
      reward: of each pair. [S, A].
      policy: pi, of the policy to evaluate. [S, A].
      behaviour: mu, of the policy that acts. [S, A].
      discount: gamma, in [0, 1]. May be traced.
      support: z, strictly increasing. [K].
      trace_decay: lambda, in [0, 1]; 0 is one step of dynamic programming. May be traced.
      num_steps: length of trajectories; None for no end.

    Returns:
      Weights. [S, A, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Tang et al., Off-policy Distributional Q(lambda): Distributional RL without Importance
      Sampling, 2024. https://arxiv.org/abs/2402.05766
    """
    _checks.in_range("trace_decay", trace_decay, 0, 1)
    traces = jnp.full(jnp.shape(policy), trace_decay, jnp.result_type(policy))
    return multistep_dp_step(
        probs,
        transition,
        reward,
        policy,
        behaviour,
        discount,
        support,
        traces=traces,
        num_steps=num_steps,
    )


def multistep_dp_matrix(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    policy: Float[Array, "S A"],
    behaviour: Float[Array, "S A"],
    discount: Knob,
    support: Float[Array, " K"],
    *,
    traces: Float[Array, "S A"],
) -> Float[Array, "M M"]:
    """Returns the operator A on differences of laws as a matrix, M = S A (K - 1).

    Args:
      transition: probabilities of the next state. [S, A, S].
      reward: of each pair. [S, A].
      policy: pi, of the policy to evaluate. [S, A].
      behaviour: mu, of the policy that acts. [S, A].
      discount: gamma, in [0, 1]. May be traced.
      support: z, strictly increasing. [K].
      traces: c, of each pair, >= 0. [S, A].

    Returns:
      What A does to the cumulative values of a difference, flattened from [S, A, K - 1]. [M, M].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    followed, _ = _backups(transition, reward, policy, behaviour, traces, discount, support)
    return _matrix(*followed)


def spectral_radius(matrix: Float[Array, "M M"]) -> Float[Array, ""]:
    """Returns the largest absolute eigenvalue: how fast iterates of the operator converge at last.

    Args:
      matrix: of the operator; at most a few thousand rows. [M, M].

    Returns:
      The radius; below 1 iff iterating converges from everywhere. [].

    Raises:
      ValueError: `matrix` is no square.
      TypeError: it is not floating point.
    """
    array = _checks.as_float("matrix", matrix)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"matrix must have shape [M, M], got {array.shape}.")
    return jnp.max(jnp.abs(jnp.linalg.eigvals(array)))


def policy_distance(
    policy: Float[Array, "S A"], behaviour: Float[Array, "S A"]
) -> Float[Array, ""]:
    """Returns epsilon: the largest sum over actions of |pi - mu|, over states.

    Args:
      policy: pi. [S, A].
      behaviour: mu. [S, A].

    Returns:
      The distance, in [0, 2]. [].

    Raises:
      ValueError: the shapes differ.
      TypeError: an array is not floating point.
    """
    target, acting = _checks.floats(policy=policy, behaviour=behaviour)
    return jnp.max(jnp.sum(jnp.abs(target - acting), axis=-1))


def q_lambda_modulus(
    policy: Float[Array, "S A"],
    behaviour: Float[Array, "S A"],
    discount: Knob,
    *,
    trace_decay: Knob,
    order: int = 2,
) -> Float[Array, ""]:
    """Returns beta_p, by which Q(lambda) contracts ell_p distances at least: the module's formula.

    It holds on a support too: projected cumulative functions are averages over the gaps, which by
    Jensen's inequality stretches no ell_p.

    Args:
      policy: pi. [S, A].
      behaviour: mu. [S, A].
      discount: gamma, in [0, 1). May be traced.
      trace_decay: lambda, in [0, 1]. May be traced.
      order: p, 1 or 2.

    Returns:
      The factor; above 1 nothing is promised. [].

    Raises:
      ValueError: the shapes differ, or a number is out of range.
      TypeError: an array is not floating point.
    """
    _checks.in_range("trace_decay", trace_decay, 0, 1)
    factor = _factor(discount, order)
    mismatch = policy_distance(policy, behaviour)
    return factor * (1 - trace_decay + trace_decay * mismatch) / (1 - trace_decay * factor)


def q_lambda_threshold(
    policy: Float[Array, "S A"],
    behaviour: Float[Array, "S A"],
    discount: Knob,
    *,
    order: int = 2,
) -> Float[Array, ""]:
    """Returns the lambda below which Q(lambda) is known to contract ell_p.

    Args:
      policy: pi. [S, A].
      behaviour: mu. [S, A].
      discount: gamma, in (0, 1). May be traced.
      order: p, 1 or 2; order 1 gives the condition of the scalar Q(lambda), which is the wider one.

    Returns:
      The threshold, infinite where the policies are equal; any lambda in [0, 1] is below it where
      it is above 1. [].

    Raises:
      ValueError: the shapes differ, or a number is out of range.
      TypeError: an array is not floating point.
    """
    factor = _factor(discount, order)
    return (1 - factor) / (factor * policy_distance(policy, behaviour))


def _factor(discount: Knob, order: int) -> Array:
    _checks.in_range("discount", discount, 0, 1, closed=False)
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}.")
    return jnp.asarray(discount) ** (1 / order)


def _backups(transition, reward, policy, behaviour, traces, discount, support, **laws):
    counts = jnp.shape(behaviour)
    for name, value in (("policy", policy), ("traces", traces)):
        if jnp.shape(value) != counts:
            raise ValueError(f"{name} must have shape {counts}, got {jnp.shape(value)}.")
    coefficients = {"policy": policy, "behaviour": behaviour * traces}
    backups, found = _categorical.pairs(transition, reward, coefficients, discount, support, **laws)
    return backups, found


@functools.partial(jax.jit, static_argnames=("num_steps", "max_dense", "tolerance", "max_sweeps"))
def _step(target, traced, probs, discount, *, num_steps, **options):
    flat = probs.reshape(target.atoms.shape)
    error = _categorical.on_weights(target, flat) - flat
    values = _categorical.to_differences(error)
    if num_steps is None:
        total = _resolvent.resolvent(traced, values, discount, **options)
    else:

        def add(_, pair):
            total, term = pair
            term = _categorical.on_differences(traced, term)
            return total + term, term

        total, _ = jax.lax.fori_loop(1, num_steps, add, (values, values))
    return (flat + _categorical.to_weights(total)).reshape(probs.shape)


@jax.jit
def _matrix(target, traced):
    evaluated, followed = (_categorical.matrix(backup) for backup in (target, traced))
    identity = jnp.eye(evaluated.shape[0], dtype=evaluated.dtype)
    return jnp.linalg.solve(identity - followed, evaluated - followed)
