r"""Nash learning from human feedback: policy gradients of a regularised preference game.

Two players send a completion each; the first wins with probability :math:`P(y \succ y')`, and each
pays tau times its KL divergence from one reference. The game's only equilibrium is symmetric;
`nash_game` has the game itself, where its table is known. All of the following are
`nash_md_pg_loss`, or its token form, and differ only in who the opponent is:

- self-play: y' from the policy itself (`mixture` 0);
- best response to the reference: y' from the reference (`mixture` 1);
- Nash-MD-PG: y' from `geometric_mixture_logits` of the two, `mixture` in between;
- Nash-EMA-PG: y' from the policy at averaged parameters.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def geometric_mixture_logits(
    logits: Float[Array, "*B A"], reference_logits: Float[Array, "*B A"], *, mixture: Knob
) -> Float[Array, "*B A"]:
    r"""Returns log-probabilities of the normalised geometric mixture of two laws.

    .. math:: \log \pi'(a) = (1 - b) \log \pi(a) + b \log \pi_{ref}(a) - \log Z

    A constant added to either array of logits changes nothing. An action of logit -inf under a law
    of positive weight is impossible, and so it is in the mixture; a law of weight 0 has no say,
    even about what it holds impossible. Sampled token by token this is not the geometric mixture of
    whole sequences: every prefix has its own Z. Gradients flow to both arrays; none to a logit of
    -inf.

    Args:
      logits: of the policy, normalised or not; -inf where an action is impossible. [..., A].
      reference_logits: of the reference, the same. [..., A].
      mixture: b in [0, 1], the weight ON THE REFERENCE: 0 is the policy, 1 the reference. A scalar
        or [...]; may be traced.

    Returns:
      Log-probabilities in nats; all -inf where no action is possible under both laws. [..., A].

    Raises:
      ValueError: the shapes differ, there is no axis of actions, or `mixture` is out of range.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    policy, reference = _checks.floats(logits=logits, reference_logits=reference_logits)
    _has_axis("logits", policy, "actions")
    _checks.in_range("mixture", mixture, 0, 1)
    weight = _checks.knob("mixture", mixture, policy[..., 0])
    weight = jnp.broadcast_to(weight, policy.shape[:-1])[..., None]
    mixed = _scaled_logits(1 - weight, policy) + _scaled_logits(weight, reference)
    possible = mixed != -jnp.inf
    # Where nothing is possible, a row of zeros is normalised in its place: -inf - -inf is NaN.
    any_possible = jnp.any(possible, axis=-1, keepdims=True)
    log_probs = jax.nn.log_softmax(jnp.where(any_possible, mixed, 0), axis=-1)
    return jnp.where(possible, log_probs, -jnp.inf)


def nash_md_pg_loss(
    log_probs: Float[Array, "*B"],
    reference_log_probs: Float[Array, "*B"],
    preferences: Float[Array, "*B"],
    *,
    tau: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the Nash-MD policy-gradient loss of completions sampled from the policy.

    .. math:: \ell = -\log \pi(y \mid x) \; \mathrm{stop} \left( P(y \succ y') - \tfrac12
              - \tau \log \frac{\pi(y \mid x)}{\pi_{ref}(y \mid x)} \right)

    Over y from the policy and y' from the opponent, held fixed, the expected gradient is minus that
    of :math:`P(\pi \succ \pi') - \tau \, KL(\pi, \pi_{ref})`. Self-play, best response, Nash-MD-PG
    and Nash-EMA-PG differ only in who sends y': see the module. The 1/2 is what a policy scores
    against itself, a baseline. Gradients flow to `log_probs` outside the bracket; the bracket is
    stopped here. The value is no quantity to watch: only its gradient means something.

    Args:
      log_probs: log-probability of the policy's sample y, nats, summed over its tokens. [...].
      reference_log_probs: the same under the reference. [...].
      preferences: P(y beats y'), in [0, 1], y' being the opponent's sample. [...].
      tau: >= 0, the weight of the KL divergence, 1/nats; 0.008 in the paper's summaries. A scalar
        or [...]; may be traced.

    Returns:
      Losses, nats. [...].

    Raises:
      ValueError: the arrays differ in shape, or `tau` is negative.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    policy, reference, wins = _checks.floats(
        log_probs=log_probs, reference_log_probs=reference_log_probs, preferences=preferences
    )
    _checks.in_range("tau", tau, 0, float("inf"))
    advantage = wins - 0.5 - _checks.knob("tau", tau, policy) * (policy - reference)
    return -policy * jax.lax.stop_gradient(advantage)


def nash_md_pg_token_loss(
    log_probs: Float[Array, "*B T"],
    reference_log_probs: Float[Array, "*B T"],
    mask: Shaped[Array, "*B T"],
    preferences: Float[Array, "*B"],
    *,
    tau: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the Nash-MD policy-gradient loss with the KL term of each token that is to come.

    .. math:: \ell = -\sum_n m_n \log \pi_n \; \mathrm{stop} \left( P(y \succ y') - \tfrac12
              - \tau \sum_{k \ge n} m_k \log \frac{\pi_k}{\pi_{ref, k}} \right)

    The expected gradient is that of `nash_md_pg_loss`, usually with less variance: what was sampled
    before token n does not depend on it. A token's own log-ratio alone, without those to come,
    would be biased. The opponents are those of `nash_md_pg_loss`. Gradients flow to `log_probs`
    outside the bracket; the bracket is stopped here.

    Args:
      log_probs: log-probability of each token of the policy's sample, nats; masked entries may hold
        anything. [..., T].
      reference_log_probs: the same under the reference. [..., T].
      mask: 1 where a token counts. [..., T].
      preferences: P(y beats y'), in [0, 1], of the whole completions. [...].
      tau: >= 0, the weight of the KL divergence, 1/nats. A scalar or [...]; may be traced.

    Returns:
      Losses, nats; 0 where nothing counts. [...].

    Raises:
      ValueError: the shapes do not fit, there is no axis of tokens, or `tau` is negative.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    _checks.same_shape(log_probs=log_probs, reference_log_probs=reference_log_probs, mask=mask)
    policy, reference = _checks.floats(log_probs=log_probs, reference_log_probs=reference_log_probs)
    _has_axis("log_probs", policy, "tokens")
    wins = _checks.as_float("preferences", preferences)
    if wins.shape != policy.shape[:-1]:
        raise ValueError(
            "preferences must have the shape of log_probs without its last axis, got "
            f"{wins.shape} and {policy.shape}."
        )
    _checks.in_range("tau", tau, 0, float("inf"))
    ratios = _checks.keep(policy - reference, mask)
    to_come = jnp.flip(jnp.cumsum(jnp.flip(ratios, axis=-1), axis=-1), axis=-1)
    weight = jnp.broadcast_to(_checks.knob("tau", tau, wins), wins.shape)[..., None]
    advantages = wins[..., None] - 0.5 - weight * to_come
    return -jnp.sum(_checks.keep(policy, mask) * jax.lax.stop_gradient(advantages), axis=-1)


def _scaled_logits(weight: Array, logits: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
    """Returns weight * logits, with 0 * -inf = 0. [..., A]."""
    impossible = logits == -jnp.inf
    finite = weight * jnp.where(impossible, 0, logits)
    return jnp.where(impossible, jnp.where(weight > 0, -jnp.inf, 0), finite)


def _has_axis(name: str, value: Array, axis: str) -> None:
    if value.ndim < 1:
        raise ValueError(f"{name} must have an axis of {axis}, got a scalar.")
