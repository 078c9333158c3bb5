r"""Majority voting among the answers of one prompt's samples: what a vote adds, and who wins.

The most frequent answer wins, and the objective is whether it is the correct one. Where several
answers have the most votes a rule decides, the same in both functions:

- "lowest": the smallest number among the tied answers wins. Where answers are numbered by their
  first appearance among the samples, that is the one that was given first.
- "uniform": each tied answer wins with the same probability, and the objective is the expectation.

Answers are whole numbers without any other meaning; give all samples without an answer one number
that is never correct, and they vote for it together, or a number each, and they vote alone.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks, _groups

_TIES = ("lowest", "uniform")


def majority_advantages(
    answers: Int[Array, "*B G"],
    correct_answer: Int[Array, "*B"],
    *,
    ties: str,
    k: int | None = None,
) -> Float[Array, "*B G"]:
    r"""Returns what each sample adds to the majority vote of the samples of its prompt.

    .. math:: A_i = m(a_1, \ldots, a_G) - m(a_{-i})

    with m the probability, over ties, that the winner of the vote is correct, and 0 without votes:
    a single sample has the advantage 1 if it is correct. The sum over samples of
    A_i grad log pi(y_i) is an unbiased gradient of the expected m, with either rule: it needs no
    symmetry, only that the vote without sample i does not depend on it. Time and memory grow as
    G^2. The result is a constant.

    For votes of k samples from G, the advantages are averaged over all subsets, as in
    `subset_k_sample_advantages`, in the time of G estimates M of `majority_at_k`:

    .. math:: A_i = M_k(a) - \left( 1 - \tfrac{k}{G} \right) M_k(a_{-i})
              - \tfrac{k}{G} M_{k - 1}(a_{-i})

    The paper's rule for ties was not at hand, so both are offered. With "uniform" samples may be
    permuted and answers renamed; with "lowest" samples may be permuted.

    Args:
      answers: number of each sample's answer. [..., G].
      correct_answer: number of the right one. [...].
      ties: "lowest" or "uniform", see the module.
      k: how many samples vote, from 1 to G; None for all. Static.

    Returns:
      Advantages in [-1, 1], in the default floating-point type. [..., G].

    Raises:
      ValueError: the shapes do not fit, there is no axis of samples, or `k` or `ties` is none of
        those allowed.
      TypeError: an array does not hold integers.

    References:
      Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement
      Learning, 2025. https://arxiv.org/abs/2503.19595
    """
    votes, right = _checked(answers, correct_answer, ties)
    samples = votes.shape[-1]
    if k is not None and k != samples:
        return _subset_advantages(votes, right, ties, k)
    # Row 0 holds the vote of all samples, row i + 1 the vote without sample i.
    voting = np.concatenate([np.ones((1, samples), bool), ~np.eye(samples, dtype=bool)])
    shape = (*votes.shape[:-1], *voting.shape)
    voting = jnp.broadcast_to(voting, shape)
    same = votes[..., :, None] == votes[..., None, :]
    everyone = jnp.sum(same, axis=-1, dtype=jnp.int32)[..., None, :]
    counts = jnp.concatenate([everyone, everyone - same.astype(jnp.int32)], axis=-2)
    counts = jnp.where(voting, counts, 0)
    tied = voting & (counts == jnp.max(counts, axis=-1, keepdims=True))
    given = jnp.broadcast_to(votes[..., None, :], shape)
    if ties == "lowest":
        winner = jnp.min(jnp.where(tied, given, jnp.iinfo(votes.dtype).max), axis=-1)
        wins = jnp.any(tied, axis=-1) & (winner == right[..., None])
        chances = wins.astype(float)
    else:
        # Each tied answer has the same number of votes, so their samples count like the answers.
        agree = jnp.sum(tied & (given == right[..., None, None]), axis=-1)
        chances = agree / jnp.maximum(jnp.sum(tied, axis=-1), 1)
    return chances[..., :1] - chances[..., 1:]


def majority_at_k(
    answers: Int[Array, "*B G"], correct_answer: Int[Array, "*B"], *, k: int, ties: str
) -> Float[Array, "*B"]:
    r"""Returns the unbiased estimate of majority@k: that a vote of k samples finds what is correct.

    It is the mean over all subsets of k samples of the probability, over ties, that their most
    frequent answer is correct, so over independent samples its expectation is that of a vote of k
    of them. At k = 1 it is the share of correct answers, at k = G the vote of all.

    No subset is enumerated. Let every sample vote with probability q = k / G, apart from the
    others: given that k samples voted, all subsets are alike, so

    .. math:: \frac{1}{P(k)} \int_0^1 \sum_{v = 1}^{k} B(c, v) \, [x^{k - v}] \prod_{a}
              \left( \sum_{j < v} B(n_a, j) x^j + s B(n_a, v) x^v \right) ds

    where a runs over the wrong answers, n_a and c count the samples of a wrong and of the correct
    answer, B(n, j) is the binomial probability of j votes of n, and P(k) that of k votes in all. A
    tie with t wrong answers has weight s^t, whose integral is the share 1 / (t + 1); it is taken
    exactly, by Gauss-Legendre quadrature. For "lowest" s is 0 of a smaller number and 1 of a
    larger. All terms are positive. The work grows as G k^3, with "uniform" as G k^4 / 2. The
    result is a constant. This estimate is ours.

    Args:
      answers: number of each sample's answer. [..., G].
      correct_answer: number of the right one. [...].
      k: how many samples vote, from 1 to G. Static.
      ties: "lowest" or "uniform", see the module.

    Returns:
      Probabilities in [0, 1], in the default floating-point type. [...].

    Raises:
      ValueError: the shapes do not fit, or `k` or `ties` is none of those allowed.
      TypeError: an array does not hold integers.

    References:
      Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models, 2022
      (majority voting). https://arxiv.org/abs/2203.11171
    """
    votes, right = _checked(answers, correct_answer, ties)
    samples = votes.shape[-1]
    _groups.size_of_subsets(k, "answers", votes)
    nodes, weights = np.polynomial.legendre.leggauss((k + 1) // 2)
    nodes, weights = (nodes + 1) / 2, weights / 2
    shape = votes.shape
    if ties == "lowest":
        nodes, weights = np.zeros(1), np.ones(1)
        shares = (votes > right[..., None])[..., None].astype(float)
    else:
        shares = jnp.broadcast_to(jnp.asarray(nodes, float), (*shape, nodes.size))
    # An answer is dealt with where it is first given.
    same = votes[..., :, None] == votes[..., None, :]
    earlier = jnp.broadcast_to(np.tri(samples, k=-1, dtype=bool), same.shape)
    first = ~jnp.any(same & earlier, axis=-1)
    agree = votes == right[..., None]
    rivals = jnp.where(first & ~agree, jnp.sum(same, axis=-1), 0)
    binomial = jnp.asarray(_binomials(samples, k), shares.dtype)
    sums = _vote_sums(binomial[rivals], shares, k)
    own = binomial[jnp.sum(agree, axis=-1)]
    # v votes for the correct answer meet k - v votes for the others.
    met = jnp.stack([sums[..., v - 1, k - v] for v in range(1, k + 1)], axis=-1)
    chances = jnp.sum(own[..., None, 1:] * met, axis=-1)
    weights = jnp.broadcast_to(jnp.asarray(weights, chances.dtype), chances.shape)
    return jnp.sum(chances * weights, axis=-1) / binomial[samples, k]


def _subset_advantages(votes: Array, right: Array, ties: str, k: int) -> Float[Array, "*B G"]:
    """The mean over all subsets of k samples of what each adds to their vote. [..., G]."""
    samples = votes.shape[-1]
    everyone = majority_at_k(votes, right, k=k, ties=ties)[..., None]
    others = votes[..., np.array([[j for j in range(samples) if j != i] for i in range(samples)])]
    rights = jnp.broadcast_to(right[..., None], votes.shape)
    advantages = everyone - (1 - k / samples) * majority_at_k(others, rights, k=k, ties=ties)
    if k == 1:
        return advantages
    fewer = majority_at_k(others, rights, k=k - 1, ties=ties)
    return advantages - k / samples * fewer


def _vote_sums(
    chances: Float[Array, "*B G J"], shares: Float[Array, "*B G N"], k: int
) -> Float[Array, "*B N V X"]:
    """Coefficients of x^0 to x^k of the product over answers, for every s and v = 1 .. k."""
    votes = np.arange(1, k + 1)[:, None]
    given = np.arange(k + 1)[None, :]
    # Row x of the matrix of an answer's polynomial holds the coefficients of x - y.
    lag = np.arange(k + 1)[:, None] - np.arange(k + 1)[None, :]

    def times(product: Array, answer: tuple[Array, Array]) -> tuple[Array, None]:
        chance, share = answer
        full = (*share.shape, k, k + 1)
        weight = jnp.where(
            jnp.broadcast_to(given == votes, full),
            share[..., None, None],
            jnp.broadcast_to(given < votes, full).astype(share.dtype),
        )
        polynomial = weight * chance[..., None, None, :]
        matrix = polynomial[..., np.maximum(lag, 0)]
        matrix = jnp.where(jnp.broadcast_to(lag >= 0, matrix.shape), matrix, 0)
        return jnp.sum(matrix * product[..., None, :], axis=-1), None

    # Made of the arguments: under `shard_map` a carry must vary over devices from the start.
    nothing = (jnp.zeros_like(shares[..., 0, :]) + jnp.zeros_like(chances[..., 0, :1]))[..., None]
    one = jnp.broadcast_to(np.eye(1, k + 1), (*nothing.shape[:-1], k, k + 1))
    start = nothing[..., None] + one.astype(shares.dtype)
    answers = jnp.moveaxis(chances, -2, 0), jnp.moveaxis(shares, -2, 0)
    return jax.lax.scan(times, start, answers)[0]


def _binomials(samples: int, k: int) -> np.ndarray:
    """Probabilities of 0 .. k votes of 0 .. G samples that vote with k / G. [G + 1, k + 1]."""
    vote = k / samples
    return np.array(
        [
            [
                math.comb(n, j) * vote**j * (1 - vote) ** (n - j) if j <= n else 0.0
                for j in range(k + 1)
            ]
            for n in range(samples + 1)
        ]
    )


def _checked(answers: Array, correct_answer: Array, ties: str) -> tuple[Array, Array]:
    votes = _checks.as_integer("answers", answers)
    right = _checks.as_integer("correct_answer", correct_answer)
    _groups.has_samples("answers", votes)
    if right.shape != votes.shape[:-1]:
        raise ValueError(
            "correct_answer must have the shape of answers without its last axis, got "
            f"{right.shape} and {votes.shape}."
        )
    if ties not in _TIES:
        raise ValueError(f'ties must be "lowest" or "uniform", got {ties!r}.')
    dtype = jnp.promote_types(votes.dtype, right.dtype)
    return votes.astype(dtype), right.astype(dtype)
