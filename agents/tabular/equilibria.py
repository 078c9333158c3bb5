r"""Exact equilibria of preference games: Newton's method on a map that is monotone.

A game's equilibrium is a fixed point of "respond to the rewards that my own law brings about":

.. math:: d = \nabla \Psi(A d), \qquad A = P - \tfrac12, \quad A + A^T = 0

with d the law of actions, r = A d their rewards, and Psi the convex function whose gradient is the
regularised response: tau log sum mu exp(r / tau) in one turn, the soft value of a decision process
in many. In r the residual is G(r) = r - A grad Psi(r), with Jacobian J = I - A S and S the Hessian
of Psi, positive semi-definite. If J v = 0, then v'Sv = v'SASv = 0 since A is antisymmetric, so
S v = 0 and v = 0: J is never singular. And |G(r)| is at least |r| minus a constant. A stationary
point of |G|^2 is therefore a root, and Newton's method with a line search on |G|^2 reaches it from
any start, quadratically at the end; nothing here depends on tau being large.

In one turn the residual also bounds the error: with rho = G(r), h = r / tau and pi the response,

.. math:: \| \pi - \pi^* \|_1^2 \le \mathrm{KL}(\pi, \pi^*) + \mathrm{KL}(\pi^*, \pi)
          = \langle \pi - \pi^*, h - h^* \rangle = \langle \pi - \pi^*, \rho / \tau \rangle

because the antisymmetric part drops out, so the error in total absolute value is at most
max |rho| / tau.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bellmax.agents.tabular import _games
from bellmax.losses import _checks
from bellmax.losses._checks import Knob

# Steps of the line search, 1 down to 2^-30, tried all at once.
_HALVINGS = 31
# Far above what is needed: tau = 0.001 on 50 actions takes about 50.
_MAX_STEPS = 1000


class _Search(NamedTuple):
    rewards: Float[Array, " A"]
    residual: Float[Array, " A"]
    num_steps: Int[Array, ""]
    improved: Bool[Array, ""]


def monotone_fixed_point(
    respond: Callable[[Float[Array, " A"]], Float[Array, " A"]], game: Float[Array, "A A"]
) -> Float[Array, " A"]:
    """Returns the rewards r = A respond(r) of a zero-sum game, by Newton's method.

    Args:
      respond: the gradient of a convex function: rewards to the law of the response. [A] to [A].
      game: an antisymmetric matrix, A. [A, A].

    Returns:
      The rewards, to the rounding error of the dtype. [A].
    """
    tolerance = 2 * jnp.finfo(game.dtype).eps
    step_sizes = 0.5 ** jnp.arange(_HALVINGS, dtype=game.dtype)
    identity = jnp.eye(game.shape[0], dtype=game.dtype)

    def residual(rewards):
        return rewards - jnp.matmul(game, respond(rewards), precision="highest")

    def unfinished(search: _Search):
        large = jnp.max(jnp.abs(search.residual)) > tolerance
        return large & search.improved & (search.num_steps < _MAX_STEPS)

    def step(search: _Search):
        slopes = jax.jacfwd(respond)(search.rewards)
        jacobian = identity - jnp.matmul(game, slopes, precision="highest")
        direction = jnp.linalg.solve(jacobian, search.residual)
        trials = search.rewards - step_sizes[:, None] * direction
        residuals = jax.vmap(residual)(trials)
        sizes = jnp.sum(jnp.square(residuals), axis=-1)
        best = jnp.argmin(sizes)
        # Where rounding leaves nothing to gain, the search is over.
        improved = sizes[best] < jnp.sum(jnp.square(search.residual))
        return _Search(
            jnp.where(improved, trials[best], search.rewards),
            jnp.where(improved, residuals[best], search.residual),
            search.num_steps + 1,
            improved,
        )

    rewards = jnp.zeros(game.shape[0], game.dtype)
    start = _Search(rewards, residual(rewards), jnp.zeros((), jnp.int32), jnp.ones((), bool))
    return jax.lax.while_loop(unfinished, step, start).rewards


def regularised_nash(
    preference: Float[Array, "A A"], reference: Float[Array, " A"], *, tau: Knob
) -> Float[Array, " A"]:
    r"""Returns the one equilibrium of the regularised preference game.

    .. math:: \pi^*(y) \propto \mu(y) \exp(P(y \succ \pi^*) / \tau)

    of the payoff P(pi over pi') - tau KL(pi, mu) + tau KL(pi', mu). Damped Newton steps, which
    converge from anywhere for every tau > 0 (the module says why); about 4 of them at tau = 0.1, 10
    at 0.01. An action that the reference never takes has probability 0. Reverse-mode derivatives do
    not pass through the search.

    Args:
      preference: probability that the row's action beats the column's; preference + its transpose
        is 1 everywhere, which is not checked. [A, A].
      reference: mu, the reference policy. [A].
      tau: temperature, > 0: weight of the KL to the reference, nats. May be traced.

    Returns:
      The policy, within 1e-10 of the equilibrium in float64 and about 1e-6 in float32 (the error in
      total absolute value is about the rounding error over tau). [A].

    Raises:
      ValueError: a shape is wrong, or `tau` is not positive.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    return ipo_md_equilibrium(preference, reference, tau=tau, mixture=0.0)


def ipo_md_equilibrium(
    preference: Float[Array, "A A"], reference: Float[Array, " A"], *, tau: Knob, mixture: Knob
) -> Float[Array, " A"]:
    r"""Returns the policy at which IPO-MD and Nash-MD-PG stand still.

    .. math:: \pi_\beta(y) \propto \mu(y) \exp(P(y \succ \pi_\beta^{1 - \beta} \mu^\beta) / \tau)

    The mixture inside is the equilibrium of temperature tau / (1 - beta). Mixture 0 gives
    `regularised_nash`, to which online IPO and self-play lead; mixture 1 the best response to the
    reference. Nash-MD with a constant step size eta ends at mixture eta tau, not at the
    equilibrium.

    Args:
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu, the reference policy. [A].
      tau: temperature, > 0, nats. May be traced.
      mixture: beta in [0, 1], the geometric weight of the reference in the opponent. May be traced.

    Returns:
      The policy, as exact as that of `regularised_nash`. [A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Calandriello et al., Human Alignment of Large Language Models through Online Preference
      Optimisation, 2024. https://arxiv.org/abs/2403.08635
    """
    _checks.positive("tau", tau)
    _checks.in_range("mixture", mixture, 0, 1)
    matrix, base = _games.game(preference, reference=reference)
    return _ipo_md_equilibrium(matrix, base, *_games.constants(matrix, tau, mixture))


@jax.jit
def _ipo_md_equilibrium(preference, reference, tau, mixture):
    log_reference = jnp.log(reference)

    def respond(temperature, rewards):
        return _games.to_policy(rewards * temperature, log_reference)

    rewards = monotone_fixed_point(
        functools.partial(respond, (1 - mixture) / tau), preference - 0.5
    )
    return respond(1 / tau, rewards)
