"""The embedded data sets: preference pairs from the benches, as text. They need no file."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from bellmax.envs import cyclic_bench, gold_bench
from bellmax.experiments.data.records import PreferenceRecord

LETTERS = "abcde"

# Compiled as a whole: one by one, its operations take longer to compile than the rest of a run.
_make_bench = jax.jit(functools.partial(gold_bench.make, num_letters=len(LETTERS)))


class EmbeddedData(NamedTuple):
    """Pairs of a bench and what is needed to evaluate exactly.

    Attributes:
      bench: the tables behind prompts and completions.
      cyclic: the tables behind the labels, or None where the bench's gold reward labels.
      train: pairs to learn from.
      held_out: other draws from the same law; prompts are few, so that some are shared.
      evaluation_prompts: prompts of the exact evaluation, drawn likewise, letter ids. [M, P].
    """

    bench: gold_bench.GoldBench
    cyclic: cyclic_bench.CyclicBench | None
    train: list[PreferenceRecord]
    held_out: list[PreferenceRecord]
    evaluation_prompts: Int[Array, "M P"]


def _as_text(tokens: np.ndarray) -> list[str]:
    return ["".join(LETTERS[i] for i in row if i < len(LETTERS)) for row in tokens]


@functools.partial(jax.jit, static_argnames="count")
def _draw(
    keys: Array,
    bench: gold_bench.GoldBench,
    cyclic: cyclic_bench.CyclicBench | None,
    count: int,
) -> tuple[Array, Array, Array, Array]:
    """Draws prompts, two completions each, and whether the first one wins."""
    prompts = gold_bench.sample_prompts(keys[0], bench, count)
    drawn = [gold_bench.sample_completions(k, bench, prompts) for k in keys[1:3]]
    if cyclic is None:
        rewards = [gold_bench.gold_reward(bench, prompts, *completion) for completion in drawn]
        preferences = gold_bench.preference_probs(*rewards)
    else:
        preferences = cyclic_bench.preference_probs(cyclic, prompts, *drawn[0], *drawn[1])
    first_wins = jax.random.bernoulli(keys[3], preferences)
    return prompts, drawn[0][0], drawn[1][0], first_wins


def draw_pairs(
    key: Array,
    bench: gold_bench.GoldBench,
    num_pairs: int,
    cyclic: cyclic_bench.CyclicBench | None = None,
) -> list[PreferenceRecord]:
    """Draws prompts, two completions each, and which of them is preferred.

    Two equal completions carry no preference and are drawn again.

    Args:
      key: randomness; consumed.
      bench: the bench.
      num_pairs: how many.
      cyclic: the bench that labels; None for a Bradley-Terry label on the gold rewards.

    Returns:
      Pairs as text.
    """
    records: list[PreferenceRecord] = []
    while len(records) < num_pairs:
        keys = jax.random.split(key, 5)
        key = keys[0]
        *tokens, first_wins = jax.device_get(_draw(keys[1:], bench, cyclic, 2 * num_pairs))
        rows = zip(*map(_as_text, tokens), first_wins, strict=True)
        records += [
            PreferenceRecord(prompt, one, two) if wins else PreferenceRecord(prompt, two, one)
            for prompt, one, two, wins in rows
            if one != two
        ]
    return records[:num_pairs]


def make(
    seed: int,
    *,
    num_pairs: int,
    num_held_out_pairs: int,
    num_evaluation_prompts: int,
    quality_weight: float | None = None,
) -> EmbeddedData:
    """Makes the bench and its pairs.

    Args:
      seed: decides tables, prompts, completions and labels.
      num_pairs: pairs to learn from.
      num_held_out_pairs: pairs to evaluate on.
      num_evaluation_prompts: prompts of the exact evaluation, at least 2 (a standard error is
        taken).
      quality_weight: None labels by the gold reward; a number by the cyclic bench, with this weight
        of the gold reward, >= 0.

    Returns:
      The data set.

    Raises:
      ValueError: a count is too small, or the weight negative.
    """
    if num_pairs < 1 or num_held_out_pairs < 1 or num_evaluation_prompts < 2:
        raise ValueError(
            "num_pairs and num_held_out_pairs must be at least 1 and num_evaluation_prompts at "
            f"least 2, got {num_pairs}, {num_held_out_pairs} and {num_evaluation_prompts}."
        )
    keys = jax.random.split(jax.random.key(seed), 4)
    bench = _make_bench(keys[0])
    cyclic = None
    if quality_weight is not None:
        cyclic = cyclic_bench.make(bench, quality_weight=quality_weight)
    return EmbeddedData(
        bench=bench,
        cyclic=cyclic,
        train=draw_pairs(keys[1], bench, num_pairs, cyclic),
        held_out=draw_pairs(keys[2], bench, num_held_out_pairs, cyclic),
        evaluation_prompts=gold_bench.sample_prompts(keys[3], bench, num_evaluation_prompts),
    )
