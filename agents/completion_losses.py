"""Losses of a group of completions: an advantage of each, and what is made of it.

An `AdvantageFn` says how good each completion is among those of its prompt, a `CompletionLoss` what
the policy learns from that:

    REINFORCE               policy_gradient(plain(), beta=...)
    RLOO                    policy_gradient(leave_one_out(), beta=...)
    ReMax                   policy_gradient(greedy_baseline(), beta=...)
    pass@k, majority@k      policy_gradient(k_sample(k=...) or majority(...), over="sum")
    GRPO                    clipped(group_normalised(), beta=0.04)
    Dr. GRPO                clipped(group_centred(), tokens=max_new_tokens)
    DAPO                    clipped(group_normalised(), clip_epsilon_high=0.28, tokens="sum",
                            over="sum"), with the agent's average="tokens"
    PPO                     ppo(), which needs a critic
    AGRO, CoPG              agro(...), copg(...): regressions, on completions of any policy
    JEPO                    jepo(...): no reward at all, but the likelihood of a known answer
    supervised learning     answer_likelihood()

The weight of the divergence from the reference is `beta` everywhere, in units of reward a nat. In
the rewards (`kl="reward"`) a completion earns r - beta log(pi / pi_ref), constant; in the loss
(`kl="loss"`) beta times the estimate k3 of each token is added, which is differentiated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax import losses
from bellmax.agents.completions import CompletionLogProbs

# (rewards[B, G], the completions) -> advantages[B, G], constant.
AdvantageFn = Callable[[Float[Array, "B G"], CompletionLogProbs], Float[Array, "B G"]]
CompletionLoss = Callable[[CompletionLogProbs], Float[Array, " B"]]


def plain() -> AdvantageFn:
    """Returns rewards as they are, without a baseline."""
    return lambda rewards, group: rewards


def leave_one_out() -> AdvantageFn:
    """Returns each reward less the mean of the others', as in RLOO."""
    return lambda rewards, group: losses.leave_one_out_advantages(rewards)


def group_normalised(*, ddof: int = 0, epsilon: float = 1e-4) -> AdvantageFn:
    """Returns rewards less their mean and over their standard deviation, as in GRPO.

    Args:
      ddof: 0 divides the variance by G, 1 by G - 1.
      epsilon: added to the standard deviation.
    """
    return lambda rewards, group: losses.group_advantages(rewards, ddof=ddof, epsilon=epsilon)


def group_centred() -> AdvantageFn:
    """Returns rewards less their mean, as in Dr. GRPO."""
    return lambda rewards, group: losses.centred_advantages(rewards)


def greedy_baseline() -> AdvantageFn:
    """Returns rewards less that of the most likely completion, as in ReMax.

    The batch must have `greedy_rewards`.
    """

    def advantages(rewards, group):
        if group.greedy_rewards is None:
            raise ValueError("batch.greedy_rewards must be given for a greedy baseline.")
        return losses.greedy_baseline_advantages(rewards, group.greedy_rewards)

    return advantages


def k_sample(*, k: int, objective: str | losses.SetFn = "max") -> AdvantageFn:
    """Returns what each completion adds to an objective of k of them: "max" is pass@k.

    A share of one objective: the loss sums over the group.

    Args:
      k: completions of the objective, at most G.
      objective: see `losses.subset_k_sample_advantages`.
    """
    return lambda rewards, group: losses.subset_k_sample_advantages(
        rewards, k=k, objective=objective
    )


def majority(*, ties: str = "uniform") -> AdvantageFn:
    """Returns what each completion adds to the vote of its group, see `majority_advantages`.

    The batch must have `answers` and `correct_answers`; its rewards are not read.

    Args:
      ties: rule of `losses.majority_advantages`.
    """

    def advantages(rewards, group):
        del rewards
        if group.answers is None or group.correct_answers is None:
            raise ValueError("batch.answers and batch.correct_answers must be given for a vote.")
        return losses.majority_advantages(as_votes(group.answers), group.correct_answers, ties=ties)

    return advantages


def as_votes(answers: Int[Array, "B G"]) -> Int[Array, "B G"]:
    """Returns numbers to vote with: completions without an answer vote for nothing together.

    Args:
      answers: numbers, below 0 for no answer. [B, G].

    Returns:
      The numbers; a negative one of its own for each completion without an answer. [B, G].
    """
    return jnp.where(answers < 0, -1 - jnp.arange(answers.shape[-1]), answers)


def _regularised(group: CompletionLogProbs, beta: float) -> Float[Array, "B G"]:
    """Rewards less beta times the log-ratio to the reference; constant."""
    return jax.lax.stop_gradient(group.rewards - beta * group.log_ratios("reference"))


def _reduced(values: Float[Array, "B G"], over: str) -> Float[Array, " B"]:
    return values.sum(axis=-1) if over == "sum" else values.mean(axis=-1)


def _check(kl: str, over: str) -> None:
    if kl not in ("reward", "loss"):
        raise ValueError(f'kl must be "reward" or "loss", got {kl!r}.')
    if over not in ("mean", "sum"):
        raise ValueError(f'over must be "mean" or "sum", got {over!r}.')


def policy_gradient(
    advantage_fn: AdvantageFn,
    *,
    beta: float = 0.0,
    kl: str = "reward",
    importance_clip: float | None = None,
    over: str = "mean",
) -> CompletionLoss:
    r"""Returns a policy-gradient loss: minus advantage times log-probability of whole completions.

    .. math:: L = -\sum_i w_i A_i \log \pi(y_i \mid x) / G

    Args:
      advantage_fn: A, of rewards or regularised rewards.
      beta: weight of the divergence from the reference, >= 0.
      kl: where it enters, "reward" or "loss".
      importance_clip: w is the ratio pi / mu of whole completions to the behaviour policy, constant
        and at most this; None for w = 1, which takes completions for the policy's own.
      over: what becomes of the group, "mean" or "sum" (k-sample objectives, whose advantages are
        shares of one objective).

    Returns:
      The loss.

    Raises:
      ValueError: `kl` or `over` is unknown.
    """
    _check(kl, over)

    def loss_fn(group: CompletionLogProbs) -> Float[Array, " B"]:
        rewards = _regularised(group, beta if kl == "reward" else 0.0)
        advantages = advantage_fn(rewards, group)
        if importance_clip is None:
            loss = losses.policy_gradient_loss(group.sums("policy"), advantages)
        else:
            loss = losses.importance_weighted_policy_gradient_loss(
                group.sums("policy"),
                group.sums("behaviour"),
                advantages,
                ratio_clip=importance_clip,
            )
        if kl == "loss":
            loss = loss + beta * _divergence(group)
        return _reduced(loss, over)

    return loss_fn


def _divergence(group: CompletionLogProbs) -> Float[Array, "B G"]:
    """The estimate k3, summed over the tokens of each completion."""
    found = losses.kl_estimate(group.log_probs, group.reference_log_probs, estimator="k3")
    return losses.sequence_log_probs(found, group.mask)


def clipped(
    advantage_fn: AdvantageFn,
    *,
    clip_epsilon: float = 0.2,
    clip_epsilon_high: float | None = None,
    dual_clip: float | None = None,
    beta: float = 0.0,
    kl: str = "loss",
    level: str = "token",
    tokens: str | int = "mean",
    over: str = "mean",
) -> CompletionLoss:
    """Returns the clipped surrogate of PPO on advantages of whole completions: GRPO and its kin.

    Args:
      advantage_fn: of rewards or regularised rewards.
      clip_epsilon: ratios to the behaviour policy count within [1 - epsilon, 1 + epsilon].
      clip_epsilon_high: the upper epsilon, where it is another.
      dual_clip: see `losses.ppo_clip_loss`.
      beta: weight of the divergence from the reference, >= 0.
      kl: where it enters, "reward" or "loss".
      level: whose ratios are clipped, "token" (GRPO) or "sequence" (RLOO with several updates a
        batch).
      tokens: what becomes of the tokens of a completion: "mean" (GRPO), "sum", or a number that the
        sum is divided by, such as the longest completion there may be (Dr. GRPO). Not read at the
        level of sequences.
      over: what becomes of the group, "mean" or "sum".

    Returns:
      The loss.

    Raises:
      ValueError: `kl`, `level`, `tokens` or `over` is unknown.
    """
    _check(kl, over)
    if level not in ("token", "sequence"):
        raise ValueError(f'level must be "token" or "sequence", got {level!r}.')
    if tokens not in ("mean", "sum") and not (isinstance(tokens, int) and tokens > 0):
        raise ValueError(f'tokens must be "mean", "sum" or a number above 0, got {tokens!r}.')

    def loss_fn(group: CompletionLogProbs) -> Float[Array, " B"]:
        rewards = _regularised(group, beta if kl == "reward" else 0.0)
        advantages = advantage_fn(rewards, group)
        if level == "sequence":
            surrogate = losses.ppo_clip_loss(
                group.sums("policy"),
                group.sums("behaviour"),
                advantages,
                clip_epsilon=clip_epsilon,
                clip_epsilon_high=clip_epsilon_high,
                dual_clip=dual_clip,
            )
            extra = beta * _divergence(group) if kl == "loss" else 0.0
            return _reduced(surrogate + extra, over)
        loss = losses.grpo_loss(
            group.log_probs,
            group.behaviour_log_probs,
            group.mask,
            advantages,
            clip_epsilon=clip_epsilon,
            clip_epsilon_high=clip_epsilon_high,
            dual_clip=dual_clip,
            reference_log_probs=group.reference_log_probs,
            beta=beta if kl == "loss" else 0.0,
            reduction=tokens,
        )
        return _reduced(loss, over)

    return loss_fn


def ppo(
    *,
    clip_epsilon: float = 0.2,
    value_clip_epsilon: float | None = 0.2,
    value_coefficient: float = 0.1,
    trace_decay: float = 0.95,
    beta: float = 0.0,
) -> CompletionLoss:
    """Returns PPO on tokens: the clipped surrogate of advantages that a critic estimates.

    A token earns -beta log(pi / pi_ref), of the policy that sampled it, and the last one the reward
    as well. Nothing is discounted. The group is no more than several samples: none is a baseline of
    another.

    Args:
      clip_epsilon: ratios to the behaviour policy count within [1 - epsilon, 1 + epsilon].
      value_clip_epsilon: how far a value may move from the batch's first one before its loss stops
        to help; None for any distance.
      value_coefficient: weight of the value loss, >= 0.
      trace_decay: lambda of generalised advantage estimation.
      beta: weight of the divergence from the reference in the rewards, >= 0.

    Returns:
      The loss; the agent needs a critic.
    """

    def loss_fn(group: CompletionLogProbs) -> Float[Array, " B"]:
        if group.values is None:
            raise ValueError("ppo reads values: the agent must have a critic.")
        values = group.values * group.mask
        old = values if group.behaviour_values is None else group.behaviour_values * group.mask
        old = jax.lax.stop_gradient(old)
        rewards = losses.kl_shaped_rewards(
            group.rewards,
            group.behaviour_log_probs,
            group.reference_log_probs,
            group.mask,
            beta=beta,
        )
        # A step leads to the next token of the completion, and to nothing after the last.
        following = jnp.pad(group.mask[..., 1:], [(0, 0), (0, 0), (0, 1)])
        advantages = losses.generalised_advantages(
            rewards, jnp.pad(old, [(0, 0), (0, 0), (0, 1)]), following, trace_decay=trace_decay
        )
        policy = losses.ppo_clip_loss(
            group.log_probs, group.behaviour_log_probs, advantages, clip_epsilon=clip_epsilon
        )
        value = losses.ppo_value_loss(
            values, old, advantages + old, clip_epsilon=value_clip_epsilon
        )
        token_loss = policy + value_coefficient * value
        return losses.sequence_log_probs(token_loss, group.mask, normalise=True).mean(axis=-1)

    return loss_fn


def agro(*, beta: float, on_policy: bool = False) -> CompletionLoss:
    """Returns AGRO: what the completions earn, less their divergence, should be one number.

    Divided by beta, so that its gradient has the scale of a policy gradient.

    Args:
      beta: weight of the divergence from the reference, > 0.
      on_policy: adds the likelihood-ratio term, for completions of the policy itself.

    Returns:
      The loss.
    """
    return lambda group: (
        losses.agro_loss(
            group.sums("policy"),
            group.sums("reference"),
            group.rewards,
            beta=beta,
            on_policy=on_policy,
        )
        / beta
    )


def copg(*, beta: float) -> CompletionLoss:
    """Returns contrastive policy gradient over all pairs of a group.

    Args:
      beta: weight of the divergence from the reference, > 0.

    Returns:
      The loss.
    """
    return lambda group: losses.copg_loss(
        group.sums("policy"), group.sums("reference"), group.rewards, beta=beta
    )


def answer_likelihood() -> CompletionLoss:
    """Returns supervised learning of the known answer, whatever comes before it.

    `batch.answer_mask` must be given.
    """
    return lambda group: -_answers(group).mean(axis=-1)


def _answers(group: CompletionLogProbs) -> Float[Array, "B G"]:
    """Log-probability of the known answer after each completion."""
    if group.answer_mask is None:
        raise ValueError("batch.answer_mask must be given for a loss that learns known answers.")
    return losses.sequence_log_probs(group.log_probs, group.answer_mask)


def jepo(
    *,
    multi_sample: bool = True,
    beta: float = 0.0,
    beta_supervised: float = 1.0,
    practical: bool = True,
    clip: float | None = 1.0,
) -> CompletionLoss:
    """Returns JEPO: chains that make a known answer likely, and the answer after them.

    Completions are chains, followed in the batch by the answer (`answer_mask`). A chain of negative
    reward is badly formatted: it has no answer to learn from.

    Args:
      multi_sample: whether the bound is that of all chains together, or of one at a time.
      beta: weight of the divergence of the chains from the reference, nats a nat, in the chains'
        rewards.
      beta_supervised: weight of the answer's own likelihood; 0 to 1e-2 for short answers, 1 for
        long ones.
      practical: scale and clip the advantages, and penalise bad formatting
        (`losses.jepo_practical_loss`); False for the bare bound, in which all chains count and
        `beta_supervised` is not read (`losses.jepo_loss`).
      clip: of the scaled advantages.

    Returns:
      The loss; `batch.answer_mask` must be given.
    """

    def loss_fn(group: CompletionLogProbs) -> Float[Array, " B"]:
        chains, answers = group.sums("policy"), _answers(group)
        if practical:
            loss = losses.jepo_practical_loss(
                chains,
                answers,
                group.rewards >= 0,
                beta_supervised=beta_supervised,
                multi_sample=multi_sample,
                clip=clip,
            )
        else:
            loss = losses.jepo_loss(chains, answers, multi_sample=multi_sample)
        if not beta:
            return loss
        distance = -jax.lax.stop_gradient(group.log_ratios("reference"))
        pull = losses.policy_gradient_loss(chains, losses.leave_one_out_advantages(distance))
        return loss + beta * pull.mean(axis=-1)

    return loss_fn
