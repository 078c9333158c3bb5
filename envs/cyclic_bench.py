r"""A preference bench without a reward: completions beat each other in a circle.

Prompts and completions are those of the gold bench. Every completion has one of three styles, and

    P(y beats y' | x) = sigmoid(c[style(x, y), style(x, y')] + q (r(x, y) - r(x, y')))

with c antisymmetric, r the gold reward and q the weight of quality. Style 0 beats style 1, 1 beats
2 and 2 beats 0, so that no reward explains the preference unless c is 0. The style is the most
frequent class among the completion's letters, where a letter's class is (letter + first letter of
the prompt) modulo 3: it cannot be known without the prompt. The setting is the smallest one of
Munos et al., Nash Learning from Human Feedback, 2023, https://arxiv.org/abs/2312.00886, in tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bellmax.envs import gold_bench

NUM_STYLES = 3
# P(style 0 beats 1), P(1 beats 2), P(2 beats 0): uneven, so that the equilibrium is not uniform.
CYCLE = (0.9, 0.8, 0.8)


class CyclicBench(NamedTuple):
    """The tables of one bench.

    Attributes:
      bench: prompts, completions and quality.
      cycle: logit of a style beating another; antisymmetric. [3, 3].
      quality_weight: q >= 0; 0 for preferences of style alone.
    """

    bench: gold_bench.GoldBench
    cycle: Float[Array, "3 3"]
    quality_weight: Float[Array, ""]


def make(
    bench: gold_bench.GoldBench,
    *,
    cycle: tuple[float, float, float] = CYCLE,
    quality_weight: float = 0.5,
) -> CyclicBench:
    """Returns a bench whose completions beat each other in a circle.

    Args:
      bench: prompts, completions and quality; at least 3 letters, so that every style can be
        written.
      cycle: P(style 0 beats 1), P(style 1 beats 2) and P(style 2 beats 0), each in (0, 1); all
        three above 1/2 for a circle.
      quality_weight: q >= 0, logits per standard deviation of the gold reward.

    Returns:
      The bench.

    Raises:
      ValueError: a size or a number is out of range.
    """
    if bench.num_letters < NUM_STYLES:
        raise ValueError(f"bench must have at least {NUM_STYLES} letters, got {bench.num_letters}.")
    if len(cycle) != 3 or not all(0 < p < 1 for p in cycle):
        raise ValueError(f"cycle must hold three probabilities in (0, 1), got {cycle}.")
    if not quality_weight >= 0:
        raise ValueError(f"quality_weight must be at least 0, got {quality_weight}.")
    logits = np.zeros((NUM_STYLES, NUM_STYLES), np.float32)
    for style, probability in enumerate(cycle):
        rival = (style + 1) % NUM_STYLES
        logits[style, rival] = np.log(probability) - np.log1p(-probability)
        logits[rival, style] = -logits[style, rival]
    return CyclicBench(bench, jnp.asarray(logits), jnp.asarray(quality_weight, jnp.float32))


def styles(
    cyclic: CyclicBench,
    prompts: Int[Array, "... P"],
    tokens: Int[Array, "... L+1"],
    mask: Float[Array, "... L+1"],
) -> Int[Array, "..."]:
    """Returns the style of completions.

    Args:
      cyclic: the bench.
      prompts: letter ids. [..., P].
      tokens: completions; what the mask leaves out is not read. [..., L + 1].
      mask: 1 through the first end token. [..., L + 1].

    Returns:
      0, 1 or 2: the most frequent class of letters, the lowest among equally frequent ones; 0 for a
      completion without letters. [...].
    """
    is_letter = (tokens < cyclic.bench.num_letters) & (mask > 0)
    classes = (tokens + prompts[..., :1]) % NUM_STYLES
    counts = jnp.sum(jax.nn.one_hot(classes, NUM_STYLES) * is_letter[..., None], axis=-2)
    return jnp.argmax(counts, axis=-1)


def preference_probs(
    cyclic: CyclicBench,
    prompts: Int[Array, "... P"],
    first_tokens: Int[Array, "... L+1"],
    first_mask: Float[Array, "... L+1"],
    second_tokens: Int[Array, "... L+1"],
    second_mask: Float[Array, "... L+1"],
) -> Float[Array, "..."]:
    """Returns the probability that the first of two completions is preferred.

    Args:
      cyclic: the bench.
      prompts: letter ids. [..., P].
      first_tokens: the first completions. [..., L + 1].
      first_mask: 1 through their first end token. [..., L + 1].
      second_tokens: the second completions. [..., L + 1].
      second_mask: 1 through their first end token. [..., L + 1].

    Returns:
      Probabilities; swapping the two gives the complement. [...].
    """
    first = (prompts, first_tokens, first_mask)
    second = (prompts, second_tokens, second_mask)
    quality = gold_bench.gold_reward(cyclic.bench, *first) - gold_bench.gold_reward(
        cyclic.bench, *second
    )
    circle = cyclic.cycle[styles(cyclic, *first), styles(cyclic, *second)]
    return jax.nn.sigmoid(circle + cyclic.quality_weight * quality)


def preference_matrix(
    cyclic: CyclicBench,
    prompt: Int[Array, " P"],
    tokens: Int[Array, "N L+1"],
    mask: Float[Array, "N L+1"],
) -> Float[Array, "N N"]:
    """Returns P(i beats j) for all pairs of listed completions of one prompt.

    Args:
      cyclic: the bench.
      prompt: letter ids. [P].
      tokens: completions, such as those of `gold_bench.enumerate_completions`. [N, L + 1].
      mask: 1 through the first end token. [N, L + 1].

    Returns:
      The matrix; P + P^T = 1. [N, N].
    """
    prompts = jnp.broadcast_to(prompt, (tokens.shape[0], prompt.shape[0]))
    style = styles(cyclic, prompts, tokens, mask)
    quality = cyclic.quality_weight * gold_bench.gold_reward(cyclic.bench, prompts, tokens, mask)
    circle = cyclic.cycle[style[:, None], style[None, :]]
    return jax.nn.sigmoid(circle + quality[:, None] - quality[None, :])
