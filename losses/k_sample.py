r"""Objectives of several samples together: what one adds to the best of k, or to any function.

.. math:: J = E_{y_1 \ldots y_k \sim \pi} \left[ f(r_1, \ldots, r_k) \right]

Its gradient is the expectation of the sum over samples of A_i grad log pi(y_i), where A_i is f less
what f would be without sample i. That is a SUM over samples: a mean divides the gradient by k. With
f the mean it is RLOO, with f the maximum of zeros and ones it is pass@k. No sample has a part in
its own baseline f(y_{-i}), which is what keeps it unbiased; f of no samples is 0.

Subtracting the mean of the advantages of a group, or dividing by their deviation, are further
steps, both biased, that `advantages` has.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax.losses import _checks, _groups
from bellmax.losses._checks import Knob

# Maps the rewards [..., k] of k samples, for any k of at least 1, to one number [...].
SetFn = Callable[[Float[Array, "..."]], Float[Array, "..."]]

# Beyond this the rewards of all subsets at once would fill the memory.
_MOST_SUBSETS = 100_000


def k_sample_advantages(
    rewards: Float[Array, "*B G"], *, objective: str | SetFn
) -> Float[Array, "*B G"]:
    r"""Returns what each sample adds to an objective of all samples of its prompt.

    .. math:: A_i = f(r_1, \ldots, r_G) - f(r_{-i})

    The sum over samples of A_i grad log pi(y_i) is an unbiased gradient of the expected f. With
    "mean" the advantages are 1 / G of `leave_one_out_advantages`. With "max" only a unique best
    sample has one, by how much it is ahead; where the best are tied none has. A single sample has
    f(none) = 0 as its baseline: A is f of it, the reward itself with "mean" and "max".
    Gradient-stopped here.

    Args:
      rewards: r. [..., G].
      objective: "mean", "max", or any `SetFn`. A function sees G rewards once, and G - 1 at a time
        for every sample: time and memory grow as G^2.

    Returns:
      Advantages in the unit of the objective. [..., G].

    Raises:
      ValueError: there is no axis of samples, `objective` is unknown, or returns another shape.
      TypeError: `rewards` is not floating point.

    References:
      Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement
      Learning, 2025. https://arxiv.org/abs/2503.19595
    """
    values = _rewards(rewards)
    samples = values.shape[-1]
    if not callable(objective):
        _check_objective(objective)
        if samples == 1:
            return values
        if objective == "mean":
            return _groups.leave_one_out(values) / samples
        first, second = jnp.moveaxis(jax.lax.top_k(values, 2)[0], -1, 0)
        # Without the best sample the second best is the best, which may be as good.
        others = jnp.where(values == first[..., None], second[..., None], first[..., None])
        return first[..., None] - others
    everything = _call(objective, values)[..., None]
    if samples == 1:
        return everything
    others = np.array([[j for j in range(samples) if j != i] for i in range(samples)])
    return everything - _call(objective, values[..., others])


def subset_k_sample_advantages(
    rewards: Float[Array, "*B G"], *, k: int, objective: str | SetFn = "max"
) -> Float[Array, "*B G"]:
    r"""Returns advantages for an objective of k samples from G, averaged over all subsets.

    .. math:: A_i = \binom{G}{k}^{-1} \sum_{S \ni i, |S| = k} f(r_S) - f(r_{S \setminus i})

    The sum over all G samples of A_i grad log pi(y_i) is an unbiased gradient of the expected f of
    k samples, with less variance than groups of k apart. At k = G it is `k_sample_advantages`. In
    the order of the rewards, r_(0) the smallest, the maximum has the closed form

    .. math:: A_{(p)} = \binom{G}{k}^{-1} \sum_{m = 1}^{p} \binom{m}{k - 1} (r_{(m)} - r_{(m - 1)}),
              \quad k > 1

    a sum of terms that are not negative, in G log G steps, in which ties are gaps of 0. With c
    rewards of 1 and the others 0, a success has C(G - c, k - 1) / C(G, k). With "mean" it is
    1 / G of `leave_one_out_advantages`, whatever k above 1. At k = 1 there is no baseline, f(none)
    being 0: A is 1 / G of f of the sample alone. Gradient-stopped here.

    This extension to G > k is not in the first paper below; the second has the maximum in another
    form.

    Args:
      rewards: r. [..., G].
      k: size of a subset, from 1 to G. Static.
      objective: "max", "mean", or any `SetFn`, which is evaluated on all C(G, k) subsets, at most
        100000, and on what is left of each without one of its samples.

    Returns:
      Advantages in the unit of the objective. [..., G].

    Raises:
      ValueError: there is no axis of samples, `k` is out of range, `objective` is unknown or
        returns another shape, or there are too many subsets for a function.
      TypeError: `rewards` is not floating point.

    References:
      Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement
      Learning, 2025. https://arxiv.org/abs/2503.19595
      Walder and Karkhanis, Pass@K Policy Optimization, 2025. https://arxiv.org/abs/2505.15201
    """
    values = _rewards(rewards)
    samples = values.shape[-1]
    _groups.size_of_subsets(k, "rewards", values)
    if callable(objective):
        return _over_subsets(objective, values, k)
    _check_objective(objective)
    if k == 1:
        return values / samples
    if objective == "mean":
        return _groups.leave_one_out(values) / samples
    order = jnp.argsort(values, axis=-1)
    gaps = jnp.diff(jnp.take_along_axis(values, order, axis=-1), axis=-1)
    subsets = math.comb(samples, k)
    shares = np.array([math.comb(m, k - 1) / subsets for m in range(1, samples)])
    sums = jnp.cumsum(gaps * jnp.broadcast_to(shares.astype(gaps.dtype), gaps.shape), axis=-1)
    ranked = jnp.concatenate([jnp.zeros_like(values[..., :1]), sums], axis=-1)
    return jnp.take_along_axis(ranked, jnp.argsort(order, axis=-1), axis=-1)


def pass_at_k(num_samples: Knob, num_correct: Knob, k: Knob) -> Float[Array, "*B"]:
    r"""Returns the unbiased estimate of pass@k: that one of k samples, at least, is correct.

    .. math:: 1 - \binom{n - c}{k} \Big/ \binom{n}{k} = 1 - \prod_{i = 0}^{a - 1}
              \left( 1 - \frac{b}{n - i} \right), \quad a = \min(c, k), \; b = \max(c, k)

    It is the share of the subsets of k samples in which one is correct. Its expectation over n
    independent samples, each correct with probability p, is 1 - (1 - p)^k, unlike that of
    1 - (1 - c / n)^k. Gradient-stopped here.

    Args:
      num_samples: n, how many samples there are. A scalar or [...]; may be traced.
      num_correct: c, how many of them are correct, 0 to n. A scalar or [...]; may be traced.
      k: 1 to n. A scalar or [...]; may be traced.

    Returns:
      Estimates in [0, 1], in the floating-point type of the arguments or the default one; NaN where
      k or c is out of range, which only traced numbers and arrays can be. [...].

    Raises:
      ValueError: two shapes differ and neither is that of a scalar, or a number is out of range.
      TypeError: an argument is no number.

    References:
      Chen et al., Evaluating Large Language Models Trained on Code, 2021.
      https://arxiv.org/abs/2107.03374
    """
    named = {"num_samples": num_samples, "num_correct": num_correct, "k": k}
    arrays = {name: jnp.asarray(value) for name, value in named.items()}
    _check_counts(named, arrays)
    floats = [x.dtype for x in arrays.values() if jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = jnp.promote_types(jnp.result_type(*(floats or [float])), jnp.float32)
    shape = next((x.shape for x in arrays.values() if x.shape), ())
    total, correct, drawn = (
        jax.lax.stop_gradient(jnp.broadcast_to(x, shape).astype(dtype)) for x in arrays.values()
    )
    fewer, more = jnp.minimum(correct, drawn), jnp.maximum(correct, drawn)

    def add(i: Array, log_miss: Array) -> Array:
        left = jnp.maximum(total - i, 1)
        # Where fewer than k are wrong a factor is 0; those after it must not be negative.
        factor = jnp.log1p(-jnp.minimum(more / left, 1))
        return log_miss + jnp.where(i < fewer, factor, 0)

    steps = jnp.max(fewer, initial=0).astype(jnp.int32)
    # Made of the arguments: under `shard_map` a carry must vary over devices from the start.
    log_miss = jax.lax.fori_loop(0, steps, add, jnp.zeros_like(total + fewer))
    known = (drawn >= 1) & (drawn <= total) & (correct >= 0) & (correct <= total)
    return jnp.where(known, jnp.abs(jnp.expm1(log_miss)), jnp.nan)


def _rewards(rewards: Float[Array, "*B G"]) -> Float[Array, "*B G"]:
    values = jax.lax.stop_gradient(_checks.as_float("rewards", rewards))
    _groups.has_samples("rewards", values)
    return values


def _check_objective(objective: str) -> None:
    if objective not in ("mean", "max"):
        raise ValueError(f'objective must be "mean", "max" or a function, got {objective!r}.')


def _call(objective: SetFn, values: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    result = jnp.asarray(objective(values))
    if result.shape != values.shape[:-1]:
        raise ValueError(
            "objective must return one number for each set of rewards, shape "
            f"{values.shape[:-1]} for rewards of shape {values.shape}, got {result.shape}."
        )
    return jax.lax.stop_gradient(result.astype(values.dtype))


def _over_subsets(objective: SetFn, values: Float[Array, "*B G"], k: int) -> Array:
    """The mean over all subsets of what each sample adds, by enumeration. [..., G]."""
    count = math.comb(values.shape[-1], k)
    if count > _MOST_SUBSETS:
        raise ValueError(
            f"objective would be called on {count} subsets of {k} of {values.shape[-1]} rewards, "
            f"and at most {_MOST_SUBSETS} are taken: give fewer samples."
        )
    subsets = np.array(list(itertools.combinations(range(values.shape[-1]), k)))
    added = jnp.broadcast_to(
        _call(objective, values[..., subsets])[..., None], (*values.shape[:-1], *subsets.shape)
    )
    if k > 1:
        rests = np.stack([np.delete(subsets, position, axis=1) for position in range(k)], axis=1)
        added = added - _call(objective, values[..., rests])
    # Zeros made of the rewards, which keeps what varies over devices.
    return jnp.zeros_like(values).at[..., subsets].add(added / count)


def _check_counts(named: dict[str, Knob], arrays: dict[str, Array]) -> None:
    """Refuses what is no number, shapes that do not fit, and numbers known to be out of range."""
    for name, array in arrays.items():
        if not (
            jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
        ):
            raise TypeError(f"{name} must be a number, got dtype {array.dtype}.")
    if len({array.shape for array in arrays.values()} - {()}) > 1:
        listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{' and '.join(arrays)} must have one shape or be scalars, got {listed}.")
    _checks.in_range("k", named["k"], 1, float("inf"))
    _checks.in_range("num_correct", named["num_correct"], 0, float("inf"))
    limit = named["num_samples"]
    if isinstance(limit, int | float):
        _checks.in_range("k", named["k"], 1, limit)
        _checks.in_range("num_correct", named["num_correct"], 0, limit)
