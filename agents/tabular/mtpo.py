r"""Multi-turn preference optimisation (MTPO) on tables, its relatives, and the exact equilibrium.

Every state of every turn takes a mirror-descent step on the values of the current policy:

.. math:: \pi_{t+1}(y \mid x) \propto \mu(y \mid x)^{\alpha \eta_t}
          \pi_t(y \mid x)^{1 - \alpha \eta_t} \exp(\eta_t Q(x, y))

MTPO reads Q of pi_t against itself. MTPO-tau reads it at the geometric mixture of pi_t and mu with
weight alpha eta_t on mu, and steps from that mixture. Multi-turn RLHF reads a fixed reward of the
final state. With one turn MTPO is mirror descent and MTPO-tau is Nash-MD.

The arguments `(transition, final_preference, reference, initial_state)` are those of
`bellmax.envs.PreferenceMDP`, in its order: `mtpo(*mdp, alpha=0.1, num_steps=100)`.

Source: Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
https://arxiv.org/abs/2405.14655
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.agents.tabular import _games, multi_turn
from bellmax.agents.tabular.multi_turn import StateIndex
from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def _mtpo_values(policy, moves, goal, mu, initial_state, alpha):
    return multi_turn.preference_values(policy, policy, moves, goal, mu, initial_state, alpha=alpha)


def _reward_values(policy, moves, goal, mu, initial_state, alpha):
    del initial_state
    return multi_turn.action_values(policy, moves, goal, mu, alpha=alpha)


@functools.partial(jax.jit, static_argnames=("values", "mixture", "keep"))
def _iterate(values, moves, goal, mu, initial_state, alpha, step_sizes, *, mixture, keep):
    """Steps through all step sizes; `mixture` tells where Q is read, `keep` what comes back."""
    log_mu = jnp.log(mu)

    def step(ratios, step_size):
        mixed = (1 - alpha * step_size) * ratios
        policy = _games.to_policy(mixed if mixture else ratios, log_mu)
        q = values(policy, moves, goal, mu, initial_state, alpha)
        return mixed + step_size * q, ratios if keep else None

    last, earlier = jax.lax.scan(step, jnp.zeros_like(mu), step_sizes)
    if earlier is None:
        return _games.to_policy(last, log_mu)
    return _games.to_policy(jnp.concatenate([earlier, last[None]]), log_mu)


def _play(
    transition, final_preference, reference, initial_state, alpha, num_steps, rate, mixture, keep
):
    _checks.positive("alpha", alpha)
    if rate is not None:
        _games.check_pull(rate, alpha)
    moves, matrix, mu = multi_turn.arguments(
        transition, final_preference=final_preference, reference=reference
    )
    step_sizes = _games.step_sizes(rate, alpha, num_steps, moves.dtype)
    (weight,) = _games.constants(moves, alpha)
    # Less 1/2 everywhere: a constant of every Q, which the policies do not see.
    return _iterate(
        _mtpo_values,
        moves,
        matrix - 0.5,
        mu,
        initial_state,
        weight,
        step_sizes,
        mixture=mixture,
        keep=keep,
    )


def mtpo_iterates(
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    initial_state: StateIndex = 0,
    *,
    alpha: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
) -> Float[Array, "T+1 H X Y"]:
    r"""Returns every policy of MTPO, the reference first.

    With eta_t = 2 / (alpha (t + 2)),

    .. math:: \mathrm{KL}_p(\pi^*, \pi_T) \le \frac{32 H Q^2}{\alpha^2 (T + 1)}, \qquad
              Q \le \max(4 \alpha H \log(1 / \mu_{min}), 1)

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's. [X, X].
      reference: mu, the reference and the start. [H, X, Y].
      initial_state: where every conversation starts. May be traced.
      alpha: > 0, weight of the divergence, 1/nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / alpha: a number, or one a step [T]; None for the
        paper's schedule. May be traced.

    Returns:
      Policies. [T + 1, H, X, Y].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    return _play(
        transition,
        final_preference,
        reference,
        initial_state,
        alpha,
        num_steps,
        learning_rate,
        mixture=False,
        keep=True,
    )


def mtpo(
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    initial_state: StateIndex = 0,
    *,
    alpha: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
) -> Float[Array, "H X Y"]:
    """Returns the last policy of `mtpo_iterates`.

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's. [X, X].
      reference: mu, the reference and the start. [H, X, Y].
      initial_state: where every conversation starts. May be traced.
      alpha: > 0, weight of the divergence, 1/nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / alpha: a number, or one a step [T]; None for 2 /
        (alpha (t + 2)). May be traced.

    Returns:
      pi_T. [H, X, Y].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    return _play(
        transition,
        final_preference,
        reference,
        initial_state,
        alpha,
        num_steps,
        learning_rate,
        mixture=False,
        keep=False,
    )


def mtpo_mixture_iterates(
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    initial_state: StateIndex = 0,
    *,
    alpha: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
) -> Float[Array, "T+1 H X Y"]:
    r"""Returns every policy of MTPO-tau, the reference first.

    .. math:: \pi_{t+1} \propto \pi_t^\alpha \exp(\eta_t Q^{\pi_t^\alpha, \pi_t^\alpha}), \qquad
              \pi_t^\alpha(\cdot \mid x) \propto \pi_t^{1 - \alpha \eta_t} \mu^{\alpha \eta_t}

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's. [X, X].
      reference: mu, the reference and the start. [H, X, Y].
      initial_state: where every conversation starts. May be traced.
      alpha: > 0, weight of the divergence, 1/nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / alpha: a number, or one a step [T]; None for 2 /
        (alpha (t + 2)). May be traced.

    Returns:
      Policies. [T + 1, H, X, Y].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    return _play(
        transition,
        final_preference,
        reference,
        initial_state,
        alpha,
        num_steps,
        learning_rate,
        mixture=True,
        keep=True,
    )


def mtpo_mixture(
    transition: Float[Array, "H X Y X"],
    final_preference: Float[Array, "X X"],
    reference: Float[Array, "H X Y"],
    initial_state: StateIndex = 0,
    *,
    alpha: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
) -> Float[Array, "H X Y"]:
    """Returns the last policy of `mtpo_mixture_iterates`.

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_preference: probability that the row's final state beats the column's. [X, X].
      reference: mu, the reference and the start. [H, X, Y].
      initial_state: where every conversation starts. May be traced.
      alpha: > 0, weight of the divergence, 1/nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / alpha: a number, or one a step [T]; None for 2 /
        (alpha (t + 2)). May be traced.

    Returns:
      pi_T. [H, X, Y].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    return _play(
        transition,
        final_preference,
        reference,
        initial_state,
        alpha,
        num_steps,
        learning_rate,
        mixture=True,
        keep=False,
    )


def multi_turn_rlhf_iterates(
    transition: Float[Array, "H X Y X"],
    final_rewards: Float[Array, " X"],
    reference: Float[Array, "H X Y"],
    *,
    alpha: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
) -> Float[Array, "T+1 H X Y"]:
    """Returns every policy of multi-turn RLHF, the reference first: MTPO with a reward at the end.

    Args:
      transition: probabilities of the next state. [H, X, Y, X].
      final_rewards: reward of each final state, such as a fitted Bradley-Terry one. [X].
      reference: mu, the reference and the start. [H, X, Y].
      alpha: > 0, weight of the divergence, 1/nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / alpha: a number, or one a step [T]; None for 2 /
        (alpha (t + 2)). May be traced.

    Returns:
      Policies, which converge to `multi_turn_rlhf`. [T + 1, H, X, Y].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    _checks.positive("alpha", alpha)
    if learning_rate is not None:
        _games.check_pull(learning_rate, alpha)
    moves, rewards, mu = multi_turn.arguments(
        transition, final_rewards=final_rewards, reference=reference
    )
    step_sizes = _games.step_sizes(learning_rate, alpha, num_steps, moves.dtype)
    (weight,) = _games.constants(moves, alpha)
    return _iterate(
        _reward_values, moves, rewards, mu, 0, weight, step_sizes, mixture=False, keep=True
    )
