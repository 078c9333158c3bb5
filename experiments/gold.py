"""Exact evaluation of a language policy on the gold bench: nothing here is sampled.

The completions of a prompt are few enough to list, and the probability of each comes from one
forward pass over the deepest prefixes: a completion that ends early reads its next-token law from
any prefix that begins with it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bellmax.agents import Params
from bellmax.envs import gold_bench


class GoldEvaluator(NamedTuple):
    """What an exact evaluation needs, made once by `make`.

    Attributes:
      prompts: held-out prompts. [M, P].
      tokens: every completion, the end token repeated after the end. [N, L + 1].
      mask: 1 through the first end token. [N, L + 1].
      rewards: gold reward of every completion of every prompt. [M, N].
      completion_log_probs: `params -> [M, N]`, jitted.
    """

    prompts: Int[np.ndarray, "M P"]
    tokens: Int[np.ndarray, "N L+1"]
    mask: Float[np.ndarray, "N L+1"]
    rewards: Float[Array, "M N"]
    completion_log_probs: Callable[[Params], Float[Array, "M N"]]


def make(
    bench: gold_bench.GoldBench,
    prompts: Int[Array, "M P"],
    apply: Callable[[Params, Array], Array],
) -> GoldEvaluator:
    """Prepares the exact evaluation of policies on some prompts.

    Args:
      bench: the bench; its letters are the policy's token ids and its end token the last id.
      prompts: held-out prompts. [M, P].
      apply: `(params, tokens[B, T]) -> logits[B, T, A + 1]`.

    Returns:
      The evaluator.
    """
    letters, depth = bench.num_letters, bench.max_letters
    tokens, mask = gold_bench.enumerate_completions(letters, depth)
    prefixes = np.indices((letters,) * depth).reshape(depth, -1).T
    # Row of the deepest prefix that begins with each completion's letters (ends count as letter 0).
    inside = np.where(tokens[:, :depth] < letters, tokens[:, :depth], 0)
    rows = inside @ (letters ** np.arange(depth)[::-1])
    places = np.arange(depth + 1)
    start = bench.prompt_length - 1

    def of_prompt(params: Params, prompt: Array) -> Array:
        repeated = jnp.broadcast_to(prompt, (prefixes.shape[0], prompt.shape[0]))
        logits = apply(params, jnp.concatenate([repeated, jnp.asarray(prefixes)], axis=1))
        table = jax.nn.log_softmax(logits[:, start:].astype(jnp.float32))
        picked = table[rows[:, None], places[None, :], tokens]
        return jnp.sum(jnp.where(mask > 0, picked, 0.0), axis=-1)

    def completion_log_probs(params: Params) -> Array:
        return jax.lax.map(lambda prompt: of_prompt(params, prompt), jnp.asarray(prompts))

    rewards = jax.vmap(
        lambda prompt: gold_bench.gold_reward(
            bench,
            jnp.broadcast_to(prompt, (tokens.shape[0], prompt.shape[0])),
            jnp.asarray(tokens),
            jnp.asarray(mask),
        )
    )(jnp.asarray(prompts))
    return GoldEvaluator(np.asarray(prompts), tokens, mask, rewards, jax.jit(completion_log_probs))


class GoldScore(NamedTuple):
    """Exact figures of one policy, averaged over prompts.

    Attributes:
      reward: expected gold reward.
      gain: reward minus that of the reference.
      gain_stderr: standard error of the gain over prompts.
      kl: KL(policy, reference) in nats.
      accuracy: probability that the implicit reward orders two completions drawn from the reference
        as their Bradley-Terry label does; ties count one half.
    """

    reward: float
    gain: float
    gain_stderr: float
    kl: float
    accuracy: float


@jax.jit
def _per_prompt(log_probs: Array, reference_log_probs: Array, rewards: Array) -> tuple[Array, ...]:
    probs, log_ratios = jnp.exp(log_probs), log_probs - reference_log_probs
    reward = jnp.sum(probs * rewards, axis=-1)
    reference_reward = jnp.sum(jnp.exp(reference_log_probs) * rewards, axis=-1)
    kl = jnp.sum(jnp.where(probs > 0, probs * log_ratios, 0.0), axis=-1)
    return reward, reference_reward, kl


@jax.jit
def _pair_accuracy(log_ratios: Array, reference_log_probs: Array, rewards: Array) -> Array:
    weights = jax.nn.softmax(reference_log_probs)
    agrees = jax.nn.sigmoid(rewards[:, None] - rewards[None, :])
    order = jnp.sign(log_ratios[:, None] - log_ratios[None, :])
    # P(label agrees) is sigmoid where the order is +1, 1 - sigmoid where it is -1, 1/2 on a tie.
    correct = 0.5 + order * (agrees - 0.5)
    return jnp.einsum("i,ij,j->", weights, correct, weights, precision="highest")


def score(
    evaluator: GoldEvaluator, log_probs: Float[Array, "M N"], reference: Float[Array, "M N"]
) -> GoldScore:
    """Scores a policy from the log-probabilities of every completion.

    Args:
      evaluator: the evaluator that listed the completions.
      log_probs: the policy's. [M, N].
      reference: the reference's. [M, N].

    Returns:
      Averages over the prompts. The accuracy looks only at completions that end within L letters,
      which are all that the data hold, with the reference renormalised on them.
    """
    reward, reference_reward, kl = _per_prompt(log_probs, reference, evaluator.rewards)
    ended = np.flatnonzero(evaluator.tokens[:, -1] == evaluator.tokens.max())
    accuracy = jax.lax.map(
        lambda rows: _pair_accuracy(rows[0] - rows[1], rows[1], rows[2]),
        (log_probs[:, ended], reference[:, ended], evaluator.rewards[:, ended]),
    )
    gain = np.asarray(reward - reference_reward, np.float64)
    stderr = gain.std(ddof=1) / np.sqrt(gain.size) if gain.size > 1 else float("nan")
    return GoldScore(
        reward=float(reward.mean()),
        gain=float(gain.mean()),
        gain_stderr=float(stderr),
        kl=float(kl.mean()),
        accuracy=float(accuracy.mean()),
    )


def optimal_frontier(
    evaluator: GoldEvaluator, reference: Float[Array, "M N"], temperatures: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Returns the best trade-off that any policy can reach: KL and gold reward of exact tilts.

    The maximiser of E[r] - temperature * KL(pi, reference) is reference * exp(r / temperature),
    normalised.

    Args:
      evaluator: the evaluator.
      reference: log-probabilities of every completion under the reference. [M, N].
      temperatures: weights of the KL, > 0. [K].

    Returns:
      KL in nats and expected gold reward, each averaged over prompts. [K] and [K].
    """
    points = []
    for temperature in temperatures:
        tilted = jax.nn.log_softmax(reference + evaluator.rewards / temperature)
        reward, _, kl = _per_prompt(tilted, reference, evaluator.rewards)
        points.append((float(kl.mean()), float(reward.mean())))
    kls, rewards = np.asarray(points).T
    return kls, rewards
