r"""A preference bench with a known gold reward, small enough that every expectation is exact.

A prompt is P letters of an alphabet of A. A completion is 1 to L letters and an end token.
Completions are drawn from a known law mu, pairs are labelled by Bradley-Terry on a known gold
reward r:

    P(y beats y' | x) = sigmoid(r(x, y) - r(x, y')).

The reward rewards letters that match the prompt's letter at the same place, good neighbours, and a
preferred length; it is centred and scaled to unit variance under mu. A language policy that decodes
at most L + 1 tokens has finitely many completions (`enumerate_completions`), so its expected gold
reward and its KL divergence to a reference are sums, not estimates. The setting is that of the
over-optimisation studies (Gao et al., 2022, https://arxiv.org/abs/2210.10760) with the gold reward
model replaced by a table.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray


class GoldBench(NamedTuple):
    """The tables of one bench; A letters have ids 0..A-1 and the end token has id A.

    Attributes:
      source_logits: logits of mu for the next token given the prompt's letter at that place. [P, A,
        A + 1].
      carry_logits: logits of mu for the next token given the letter before. [A, A + 1].
      match_reward: reward of a letter at a place, given the prompt's letter there. [P, A, A].
      neighbour_reward: reward of a letter after another. [A, A].
      length_reward: reward of the number of letters, 0 to L + 1. [L + 2].
      reward_mean: mean of the raw reward under mu.
      reward_scale: standard deviation of the raw reward under mu.
    """

    source_logits: Float[Array, "P A A+1"]
    carry_logits: Float[Array, "A A+1"]
    match_reward: Float[Array, "P A A"]
    neighbour_reward: Float[Array, "A A"]
    length_reward: Float[Array, " L+2"]
    reward_mean: Float[Array, ""]
    reward_scale: Float[Array, ""]

    @property
    def num_letters(self) -> int:
        """Size A of the alphabet, and id of the end token."""
        return self.carry_logits.shape[0]

    @property
    def prompt_length(self) -> int:
        """Letters P of a prompt."""
        return self.source_logits.shape[0]

    @property
    def max_letters(self) -> int:
        """Most letters L of a completion drawn from mu."""
        return self.length_reward.shape[0] - 2


def make(
    key: PRNGKeyArray, *, num_letters: int = 5, prompt_length: int = 4, max_letters: int = 4
) -> GoldBench:
    """Draws the tables of a bench.

    Args:
      key: randomness of the tables; consumed.
      num_letters: size A of the alphabet, at least 2.
      prompt_length: letters P of a prompt, at least 1; place t of a completion reads letter t
        modulo P.
      max_letters: most letters L of a completion, at least 1.

    Returns:
      A bench whose reward has mean 0 and variance 1 over prompts and completions drawn from mu
      (estimated once from 4,096 draws).

    Raises:
      ValueError: a size is too small.
    """
    if num_letters < 2 or prompt_length < 1 or max_letters < 1:
        raise ValueError(
            "num_letters must be at least 2, prompt_length and max_letters at least 1, got "
            f"{num_letters}, {prompt_length} and {max_letters}."
        )
    keys = jax.random.split(key, 7)
    a, p, n = num_letters, prompt_length, max_letters
    # An end is as likely as any one letter, so that lengths vary.
    bench = GoldBench(
        source_logits=0.7 * jax.random.normal(keys[0], (p, a, a + 1)),
        carry_logits=0.7 * jax.random.normal(keys[1], (a, a + 1)),
        match_reward=jax.random.normal(keys[2], (p, a, a)),
        neighbour_reward=jax.random.normal(keys[3], (a, a)),
        length_reward=jax.random.normal(keys[4], (n + 2,)),
        reward_mean=jnp.zeros(()),
        reward_scale=jnp.ones(()),
    )
    prompts = sample_prompts(keys[5], bench, 4096)
    tokens, mask = sample_completions(keys[6], bench, prompts)
    raw = gold_reward(bench, prompts, tokens, mask)
    return bench._replace(reward_mean=raw.mean(), reward_scale=raw.std())


def sample_prompts(key: PRNGKeyArray, bench: GoldBench, num_prompts: int) -> Int[Array, "N P"]:
    """Draws prompts of uniform letters.

    Args:
      key: randomness; consumed.
      bench: the bench.
      num_prompts: how many, N.

    Returns:
      Letter ids. [N, P].
    """
    return jax.random.randint(key, (num_prompts, bench.prompt_length), 0, bench.num_letters)


def _next_token_logits(
    bench: GoldBench, prompts: Int[Array, "N P"], previous: Int[Array, " N"] | None, place: int
) -> Float[Array, "N A+1"]:
    """Logits of mu for the token at `place`, with a first letter and a last end token forced."""
    column = place % bench.prompt_length
    logits = bench.source_logits[column, prompts[:, column]]
    if previous is not None:
        # After an end anything may stand here: callers do not read it.
        logits = logits + bench.carry_logits[jnp.minimum(previous, bench.num_letters - 1)]
    is_end = jnp.arange(bench.num_letters + 1) == bench.num_letters
    if place == 0:
        return jnp.where(is_end, -jnp.inf, logits)
    if place == bench.max_letters:
        return jnp.broadcast_to(jnp.where(is_end, 0.0, -jnp.inf), logits.shape)
    return logits


def sample_completions(
    key: PRNGKeyArray, bench: GoldBench, prompts: Int[Array, "N P"]
) -> tuple[Int[Array, "N L+1"], Float[Array, "N L+1"]]:
    """Draws one completion from mu for each prompt.

    Args:
      key: randomness; consumed.
      bench: the bench.
      prompts: letter ids. [N, P].

    Returns:
      Tokens, the end token repeated after the end, and a mask that is 1 through the first end
      token. [N, L + 1].
    """
    chex.assert_rank(prompts, 2)
    tokens, previous = [], None
    ended = jnp.zeros(prompts.shape[0], bool)
    for place, place_key in enumerate(jax.random.split(key, bench.max_letters + 1)):
        drawn = jax.random.categorical(
            place_key, _next_token_logits(bench, prompts, previous, place)
        )
        previous = jnp.where(ended, bench.num_letters, drawn)
        ended = ended | (previous == bench.num_letters)
        tokens.append(previous)
    stacked = jnp.stack(tokens, axis=-1)
    return stacked, _mask_through_end(stacked, bench.num_letters)


def _mask_through_end(tokens: Int[Array, "... L"], end: int) -> Float[Array, "... L"]:
    ends_before = jnp.cumsum(tokens == end, axis=-1) - (tokens == end)
    return (ends_before == 0).astype(jnp.float32)


def completion_log_probs(
    bench: GoldBench, prompts: Int[Array, "N P"], tokens: Int[Array, "N L+1"]
) -> Float[Array, " N"]:
    """Returns log mu(completion | prompt) in nats, -inf for what mu cannot draw.

    Args:
      bench: the bench.
      prompts: letter ids. [N, P].
      tokens: completions with the end token repeated after the end. [N, L + 1].

    Returns:
      Log-probabilities. [N].
    """
    mask = _mask_through_end(tokens, bench.num_letters)
    total = jnp.zeros(tokens.shape[0])
    for place in range(tokens.shape[1]):
        previous = None if place == 0 else tokens[:, place - 1]
        log_probs = jax.nn.log_softmax(_next_token_logits(bench, prompts, previous, place))
        picked = jnp.take_along_axis(log_probs, tokens[:, place, None], axis=-1)[:, 0]
        total = total + jnp.where(mask[:, place] > 0, picked, 0.0)
    return total


def gold_reward(
    bench: GoldBench,
    prompts: Int[Array, "... P"],
    tokens: Int[Array, "... L+1"],
    mask: Float[Array, "... L+1"],
) -> Float[Array, "..."]:
    """Returns the gold reward of completions, mean 0 and variance 1 under mu.

    Args:
      bench: the bench.
      prompts: letter ids. [..., P].
      tokens: completions of at most L + 1 tokens; what the mask leaves out is not read. [..., L +
        1].
      mask: 1 through the first end token. [..., L + 1].

    Returns:
      Rewards. [...].
    """
    chex.assert_equal_shape([tokens, mask])
    is_letter = (tokens < bench.num_letters) & (mask > 0)
    letters = jnp.where(is_letter, tokens, 0)
    columns = jnp.arange(tokens.shape[-1]) % bench.prompt_length
    sources = jnp.take(prompts, columns, axis=-1)
    match = jnp.where(is_letter, bench.match_reward[columns, sources, letters], 0.0)
    both = is_letter[..., 1:] & is_letter[..., :-1]
    neighbours = bench.neighbour_reward[letters[..., :-1], letters[..., 1:]]
    raw = (
        match.sum(axis=-1)
        + jnp.where(both, neighbours, 0.0).sum(axis=-1)
        + bench.length_reward[is_letter.sum(axis=-1)]
    )
    return (raw - bench.reward_mean) / bench.reward_scale


def preference_probs(
    rewards: Float[Array, "..."], other_rewards: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns the Bradley-Terry probability that the first of two completions is preferred.

    Args:
      rewards: gold rewards of the first completions. [...].
      other_rewards: gold rewards of the second completions. [...].

    Returns:
      Probabilities. [...].
    """
    chex.assert_equal_shape([rewards, other_rewards])
    return jax.nn.sigmoid(rewards - other_rewards)


def enumerate_completions(
    num_letters: int, max_letters: int
) -> tuple[Int[np.ndarray, "N L+1"], Float[np.ndarray, "N L+1"]]:
    """Lists every completion of at most L + 1 tokens, each once.

    There are those that end (0 to L letters and the end token) and those that are cut after L + 1
    letters. The probabilities of all of them under any autoregressive policy sum to 1.

    Args:
      num_letters: size A of the alphabet; the end token's id.
      max_letters: L.

    Returns:
      Tokens, the end token repeated after the end, and the mask through the first end token. [N, L
      + 1], with N = 1 + A + ... + A^L + A^(L + 1).
    """
    width = max_letters + 1
    rows = []
    for letters in range(width + 1):
        grid = np.indices((num_letters,) * letters).reshape(letters, num_letters**letters).T
        padded = np.full((grid.shape[0], width), num_letters, np.int32)
        padded[:, :letters] = grid
        rows.append(padded)
    tokens = np.concatenate(rows)
    ended = tokens == num_letters
    mask = (np.cumsum(ended, axis=1) - ended == 0).astype(np.float32)
    return tokens, mask
