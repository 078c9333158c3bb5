r"""Policy-gradient losses of single actions, and the value loss that goes with them.

All are elementwise. What an element is makes the method:

- a token or a step of control, with the advantages of `generalised_advantages`: actor-critic, PPO;
- a whole completion, its log-probability from `sequence_log_probs`, with the advantages of its
  group: REINFORCE, RLOO, ReMax, objectives of k samples; clipped, RLOO with several updates a
  batch;
- a whole completion, its log-probability AVERAGED over tokens on both sides (`normalise=True`), so
  that the ratio is a geometric mean: GSPO;
- a token, with one advantage for all tokens of a completion: `grpo_loss`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob

INFINITY = float("inf")


def policy_gradient_loss(
    log_probs: Float[Array, "*B"], advantages: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    r"""Returns the policy-gradient loss of actions sampled from the policy.

    .. math:: \ell = -\mathrm{stop}(A) \log \pi(y \mid x)

    The expected gradient is minus that of the expected advantage, whatever baseline that does not
    depend on y is in it. With the reward as advantage it is REINFORCE; less the mean of the other
    samples' rewards RLOO; less the reward of the most likely completion ReMax; with rewards
    regularised by the caller, r - beta log(pi / pi_ref), the gradient is that of the regularised
    objective. With weights of data, sampled by anybody, it is weighted likelihood. Gradients flow
    to `log_probs`; the advantages are stopped here. The value is no quantity to watch.

    Args:
      log_probs: log-probability of each action, token or completion (SUMMED over its tokens), nats.
        [...].
      advantages: A, any unit. [...].

    Returns:
      Losses. [...].

    Raises:
      ValueError: the arrays differ in shape.
      TypeError: an array is not floating point.

    References:
      Williams, Simple Statistical Gradient-Following Algorithms, 1992.
      https://doi.org/10.1007/BF00992696
      Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization, 2024.
      https://arxiv.org/abs/2402.14740
    """
    policy, advantage = _checks.floats(log_probs=log_probs, advantages=advantages)
    return -jax.lax.stop_gradient(advantage) * policy


def importance_weighted_policy_gradient_loss(
    log_probs: Float[Array, "*B"],
    behaviour_log_probs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
    *,
    ratio_clip: Knob = INFINITY,
) -> Float[Array, "*B"]:
    r"""Returns the policy-gradient loss of actions that another policy sampled.

    .. math:: \ell = -\mathrm{stop}(\min(\rho, c) A) \log \pi(y \mid x), \quad
              \rho = \frac{\pi(y \mid x)}{\mu(y \mid x)}

    Without a clip the expected gradient is exactly that on the policy's own samples, and the
    gradient is that of :math:`-\rho A`, whose variance grows with the distance of the two policies;
    truncation bounds it at the price of a bias towards the behaviour. Unlike under `ppo_clip_loss`,
    a truncated sample goes on pushing. Gradients flow to `log_probs` outside the brackets only.

    Args:
      log_probs: log-probability of each action, token or completion under the policy, nats. [...].
      behaviour_log_probs: the same under the policy mu that sampled it. [...].
      advantages: A, any unit. [...].
      ratio_clip: c > 0, the highest ratio that counts; infinity truncates nothing. A scalar or
        [...]; may be traced.

    Returns:
      Losses. [...].

    Raises:
      ValueError: the arrays differ in shape, or `ratio_clip` is not positive.
      TypeError: an array is not floating point.

    References:
      Ionides, Truncated Importance Sampling, 2008. https://doi.org/10.1198/106186008X320456
      Espeholt et al., IMPALA, 2018. https://arxiv.org/abs/1802.01561
    """
    policy, behaviour, advantage = _checks.floats(
        log_probs=log_probs, behaviour_log_probs=behaviour_log_probs, advantages=advantages
    )
    _checks.positive("ratio_clip", ratio_clip)
    # Truncated before the exponential, which would overflow.
    highest = jnp.log(_checks.knob("ratio_clip", ratio_clip, policy))
    weight = jnp.exp(jnp.minimum(policy - behaviour, highest)) * advantage
    return -jax.lax.stop_gradient(weight) * policy


def ppo_clip_loss(
    log_probs: Float[Array, "*B"],
    behaviour_log_probs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
    *,
    clip_epsilon: Knob,
    clip_epsilon_high: Knob | None = None,
    dual_clip: Knob | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the clipped surrogate loss of PPO.

    .. math:: \ell = -\min(\rho A, \; \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon_{high}) A),
              \quad \rho = \frac{\pi(y \mid x)}{\mu(y \mid x)}

    and with a dual clip c, where A < 0, :math:`\ell = \min(\ell, -c A)`. The gradient vanishes
    where the ratio has left the interval in the direction that the advantage asks for: above it for
    A > 0, below it for A < 0 (and above c under a dual clip); nowhere else. Gradients flow to
    `log_probs`; behaviour and advantages are stopped here. Where nothing clips it, a ratio beyond
    the dtype's range is infinite.

    Args:
      log_probs: log-probability of each action, token or completion under the policy, nats. [...].
      behaviour_log_probs: the same under the policy mu that sampled it. [...].
      advantages: A, any unit. [...].
      clip_epsilon: epsilon >= 0, a part of 1; 0.2 in the paper. From 1 on nothing is clipped below.
        A scalar or [...]; may be traced.
      clip_epsilon_high: epsilon above, >= 0; None for `clip_epsilon`. A scalar or [...]; may be
        traced.
      dual_clip: c > 1; None for no dual clip. A scalar or [...]; may be traced.

    Returns:
      Losses in the unit of the advantages; -A where the two policies agree. [...].

    Raises:
      ValueError: the arrays differ in shape, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Schulman et al., Proximal Policy Optimization Algorithms, 2017.
      https://arxiv.org/abs/1707.06347
      Ye et al., Mastering Complex Control in MOBA Games with Deep Reinforcement Learning, 2019
      (dual clip). https://arxiv.org/abs/1912.09729
    """
    policy, behaviour, advantage = _checks.floats(
        log_probs=log_probs, behaviour_log_probs=behaviour_log_probs, advantages=advantages
    )
    high = clip_epsilon if clip_epsilon_high is None else clip_epsilon_high
    _checks.in_range("clip_epsilon", clip_epsilon, 0, INFINITY)
    _checks.in_range("clip_epsilon_high", high, 0, INFINITY)
    if isinstance(dual_clip, int | float) and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}.")
    behaviour, advantage = _checks.stop(behaviour, advantage)
    # For each sign of A one side is clipped. In logarithms, so that what is clipped cannot
    # overflow: the gradient of a clipped infinity is NaN.
    falls = advantage < 0
    below = jnp.log(jnp.maximum(1 - _checks.knob("clip_epsilon", clip_epsilon, policy), 0))
    above = jnp.log1p(_checks.knob("clip_epsilon_high", high, policy))
    worst = INFINITY if dual_clip is None else jnp.log(_checks.knob("dual_clip", dual_clip, policy))
    lowest = jnp.where(falls, below, -INFINITY)
    highest = jnp.where(falls, worst, above)
    log_ratio = policy - behaviour
    bounded = jnp.where(log_ratio < lowest, lowest, log_ratio)
    bounded = jnp.where(log_ratio > highest, highest, bounded)
    return -advantage * jnp.exp(bounded)


def ppo_value_loss(
    values: Float[Array, "*B"],
    old_values: Float[Array, "*B"],
    returns: Float[Array, "*B"],
    *,
    clip_epsilon: Knob | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the value loss of PPO: half a squared error, with a limit on how far a value gains.

    .. math:: \ell = \tfrac12 \max \left( (V - G)^2, \;
              (V_{old} + \mathrm{clip}(V - V_{old}, -\epsilon, \epsilon) - G)^2 \right)

    The gradient vanishes where V has moved towards G by more than epsilon. Gradients flow to
    `values`; old values and returns are stopped here.

    Args:
      values: V of each state. [...].
      old_values: what the values were when the batch was made; not read without a clip. [...].
      returns: G, what the values should be: `generalised_advantages` plus the old values. [...].
      clip_epsilon: epsilon > 0, IN THE UNIT OF THE VALUES, 0.2 in the usual code; None for the
        plain squared error. A scalar or [...]; may be traced.

    Returns:
      Losses, with the factor 1/2. [...].

    Raises:
      ValueError: the arrays differ in shape, or `clip_epsilon` is not positive.
      TypeError: an array is not floating point.

    References:
      Schulman et al., Proximal Policy Optimization Algorithms, 2017.
      https://arxiv.org/abs/1707.06347
      Engstrom et al., Implementation Matters in Deep RL, 2020 (clipped values).
      https://arxiv.org/abs/2005.12729
    """
    value, old, target = _checks.floats(values=values, old_values=old_values, returns=returns)
    old, target = _checks.stop(old, target)
    loss = jnp.square(value - target)
    if clip_epsilon is not None:
        _checks.positive("clip_epsilon", clip_epsilon)
        limit = _checks.knob("clip_epsilon", clip_epsilon, value)
        near = old + jnp.clip(value - old, -limit, limit)
        loss = jnp.maximum(loss, jnp.square(near - target))
    return loss / 2
