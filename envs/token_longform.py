r"""Questions whose long answers nobody can check, only find more or less likely.

The question is a state s_0 of m and operations k_1 .. k_d; with sigma exchanging states 0 and 1,

    s_t = (sigma(s_{t - 1}) + k_t) mod m,    z = s_d

The answer is drawn from a known law given z: a manner w, and A words in it, each replaced by a
random one with probability nu, independently:

    P(a | z) = P(w) prod_j [ (1 - nu) 1{a_j = (z + j (w + 1)) mod m} + nu / m ],    j = 1 .. A

    s3 k2 k0 k4 =   s5 s5 s2 #   w1 v4 v6 v1 <end>
    question        chain        answer

The operations do not commute (they generate all permutations of m states), so that a small network
cannot tell z in one pass for long questions; written down state by state, each is a table of two
tokens. That is what a chain is good for. A data set has questions and answers, but no chains, and
two right answers to a question are seldom the same: no verifier compares them. All that can be
learnt is the likelihood of answers given a chain, which has a known best: `LongFormTask.entropy`.

The difficulty is d. The setting stands for the long-form data of Tang et al., Beyond Verifiable
Rewards: Scaling RL for Language Models to Unverifiable Data, 2025, https://arxiv.org/abs/2503.19618.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import END, MARKER, Row, TokenProblem

# State s has id FIRST_STATE + s; operations, words, manners and "=" follow in this order.
FIRST_STATE = len(token_tasks.STEP_NAMES)


class LongFormTask(NamedTuple):
    """A task whose answers have a likelihood and nothing else; names are those of `TokenTask`.

    Attributes:
      vocabulary: name of every token.
      marker: id of the token that ends the chain and begins the answer.
      max_prompt: tokens P of a padded prompt.
      max_new_tokens: tokens N of a padded demonstration.
      max_answer: tokens of every reference answer, the end token included: A + 2.
      max_difficulty: difficulties are 1 to this.
      entropy: of the answer given the question, in nats: no policy that answers in the words of the
        data finds them likelier than -entropy on average.
      sample: `(key, difficulty) -> problem`, the question with an answer drawn for it.
      demonstration: `(problem) -> (tokens[N], mask[N])`: chain, marker and that answer.
      reference: `(problem) -> (tokens[A + 2], mask[A + 2])`: that answer alone.
      answer_log_prob: `(problem, tokens, mask) -> nats` of an answer (without chain and marker)
        under the law of the data; -inf for what the law cannot draw.
      guess_log_prob: the same under its mixture over all states, equally likely: the best for who
        cannot tell z, where z is uniform.
      chain_is_right: `(problem, tokens, mask) -> 0 or 1`: whether the token before the first marker
        is z. For evaluation: training does not see it.
    """

    vocabulary: tuple[str, ...]
    marker: int
    max_prompt: int
    max_new_tokens: int
    max_answer: int
    max_difficulty: int
    entropy: float
    sample: Callable[[PRNGKeyArray, int | Int[Array, ""]], TokenProblem]
    demonstration: Callable[[TokenProblem], Row]
    reference: Callable[[TokenProblem], Row]
    answer_log_prob: Callable[[TokenProblem, Int[Array, " N"], Array], Float[Array, ""]]
    guess_log_prob: Callable[[TokenProblem, Int[Array, " N"], Array], Float[Array, ""]]
    chain_is_right: Callable[[TokenProblem, Int[Array, " N"], Array], Float[Array, ""]]

    @property
    def vocab_size(self) -> int:
        """Tokens V in all."""
        return len(self.vocabulary)

    @property
    def max_chain(self) -> int:
        """Most tokens of the chain, the marker included."""
        return self.max_new_tokens - self.max_answer


class _Law(NamedTuple):
    """The law of answers.

    Attributes:
      num_states: m.
      num_words: A.
      manner_probs: law of the manner. [W].
      noise: nu.
    """

    num_states: int
    num_words: int
    manner_probs: tuple[float, ...]
    noise: float

    @property
    def first_operation(self) -> int:
        return FIRST_STATE + self.num_states

    @property
    def first_word(self) -> int:
        return FIRST_STATE + 2 * self.num_states

    @property
    def first_manner(self) -> int:
        return FIRST_STATE + 3 * self.num_states

    @property
    def equals(self) -> int:
        return self.first_manner + len(self.manner_probs)


def make(
    *,
    max_operations: int = 6,
    num_states: int = 7,
    num_words: int = 6,
    manner_probs: Sequence[float] = (0.5, 0.3, 0.2),
    noise: float = 0.1,
) -> LongFormTask:
    """Returns the task of answering questions of up to D operations.

    Args:
      max_operations: D, at least 1.
      num_states: m, at least 3.
      num_words: A, at least 1.
      manner_probs: law of the manner w: W positive numbers that sum to 1, 1 to m - 1 of them.
      noise: nu, probability that a word is replaced, in (0, 1).

    Returns:
      The task. `solution` is the states s_1 .. s_d, 0 behind them [D], d, and the answer as ids
      [A + 2].

    Raises:
      ValueError: a size or a probability is out of its range.
    """
    token_tasks.check_range("max_operations", max_operations, 1)
    token_tasks.check_range("num_states", num_states, 3)
    token_tasks.check_range("num_words", num_words, 1)
    manner_probs = tuple(float(prob) for prob in manner_probs)
    if not (
        1 <= len(manner_probs) < num_states
        and all(prob > 0 for prob in manner_probs)
        and abs(sum(manner_probs) - 1) < 1e-6
    ):
        raise ValueError(
            f"manner_probs must be 1 to {num_states - 1} positive numbers that sum to 1, got "
            f"{manner_probs}."
        )
    if not 0 < noise < 1:
        raise ValueError(f"noise must be between 0 and 1, got {noise}.")
    law = _Law(num_states, num_words, manner_probs, float(noise))
    names = [f"{kind}{number}" for kind in "skv" for number in range(num_states)]
    names += [f"w{number}" for number in range(len(manner_probs))]
    max_answer = num_words + 2
    max_new_tokens = max_operations + 1 + max_answer
    return LongFormTask(
        vocabulary=(*token_tasks.STEP_NAMES, *names, "="),
        marker=MARKER,
        max_prompt=max_operations + 2,
        max_new_tokens=max_new_tokens,
        max_answer=max_answer,
        max_difficulty=max_operations,
        entropy=_entropy(law),
        sample=functools.partial(_sample, law=law, max_operations=max_operations),
        demonstration=functools.partial(_demonstration, size=max_new_tokens),
        reference=_reference,
        answer_log_prob=functools.partial(_answer_log_prob, law=law),
        guess_log_prob=functools.partial(_guess_log_prob, law=law),
        chain_is_right=_chain_is_right,
    )


def _entropy(law: _Law) -> float:
    wrong = law.noise / law.num_states
    right = 1 - law.noise + wrong
    word = -right * math.log(right) - (law.num_states - 1) * wrong * math.log(wrong)
    manner = -sum(prob * math.log(prob) for prob in law.manner_probs)
    return manner + law.num_words * word


def _expected_words(state: Array, manner: Array, law: _Law) -> Int[Array, "... A"]:
    places = jnp.arange(1, law.num_words + 1)
    return (state[..., None] + places * (manner[..., None] + 1)) % law.num_states


def _sample(
    key: PRNGKeyArray, difficulty: int | Int[Array, ""], *, law: _Law, max_operations: int
) -> TokenProblem:
    count = jnp.clip(jnp.asarray(difficulty, jnp.int32), 1, max_operations)
    start_key, operation_key, manner_key, noise_key, word_key = jax.random.split(key, 5)
    start = jax.random.randint(start_key, (), 0, law.num_states, jnp.int32)
    operations = jax.random.randint(operation_key, (max_operations,), 0, law.num_states, jnp.int32)

    def operate(state, operation):
        exchanged = jnp.where(state < 2, 1 - state, state)
        state = (exchanged + operation) % law.num_states
        return state, state

    _, states = jax.lax.scan(operate, start, operations)
    is_asked = jnp.arange(max_operations) < count
    manner = jax.random.categorical(manner_key, jnp.log(jnp.array(law.manner_probs)))
    words = _expected_words(states[count - 1], manner, law)
    replaced = jax.random.bernoulli(noise_key, law.noise, words.shape)
    others = jax.random.randint(word_key, words.shape, 0, law.num_states)
    words = jnp.where(replaced, others, words)
    answer, _ = token_tasks.concatenate(
        [(law.first_manner + manner, True), (law.first_word + words, True), (END, True)],
        law.num_words + 2,
    )
    prompt, mask = token_tasks.concatenate(
        [
            (FIRST_STATE + start, True),
            (law.first_operation + operations, is_asked),
            (law.equals, True),
        ],
        max_operations + 2,
    )
    return TokenProblem(prompt, mask, (jnp.where(is_asked, states, 0), count, answer))


def _demonstration(problem: TokenProblem, *, size: int) -> Row:
    states, count, answer = problem.solution
    is_asked = jnp.arange(states.shape[0]) < count
    return token_tasks.concatenate(
        [(FIRST_STATE + states, is_asked), (MARKER, True), (answer, True)], size
    )


def _reference(problem: TokenProblem) -> Row:
    answer = problem.solution[2]
    return answer, jnp.ones(answer.shape, jnp.float32)


def _log_probs_by_state(tokens: Int[Array, " N"], mask: Array, law: _Law) -> Float[Array, " m"]:
    """The log-probability of an answer given each state."""
    written = token_tasks.written_answer(tokens, mask, None)
    size = law.num_words + 1
    row = jnp.zeros(size, tokens.dtype).at[: tokens.shape[0]].set(written.tokens[:size])
    manner, words = row[0] - law.first_manner, row[1:] - law.first_word
    is_drawn = (
        written.is_whole
        & (written.length == size)
        & (manner >= 0)
        & (manner < len(law.manner_probs))
        & jnp.all((words >= 0) & (words < law.num_states))
    )
    manner = jnp.clip(manner, 0, len(law.manner_probs) - 1)
    wrong = law.noise / law.num_states
    expected = _expected_words(jnp.arange(law.num_states), manner[None], law)
    is_right = words == expected
    per_word = jnp.where(is_right, jnp.log1p(wrong - law.noise), jnp.log(wrong))
    total = jnp.log(jnp.array(law.manner_probs))[manner] + jnp.sum(per_word, axis=-1)
    return jnp.where(is_drawn, total, -jnp.inf)


def _answer_log_prob(
    problem: TokenProblem, tokens: Int[Array, " N"], mask: Array, *, law: _Law
) -> Float[Array, ""]:
    states, count, _ = problem.solution
    return _log_probs_by_state(tokens, mask, law)[states[count - 1]]


def _guess_log_prob(
    problem: TokenProblem, tokens: Int[Array, " N"], mask: Array, *, law: _Law
) -> Float[Array, ""]:
    del problem
    by_state = _log_probs_by_state(tokens, mask, law)
    return jax.scipy.special.logsumexp(by_state) - math.log(law.num_states)


def _chain_is_right(
    problem: TokenProblem, tokens: Int[Array, " N"], mask: Array
) -> Float[Array, ""]:
    states, count, _ = problem.solution
    counted = jnp.where(jnp.asarray(mask) != 0, tokens, token_tasks.PAD)
    is_marker = counted == MARKER
    place = jnp.argmax(is_marker)
    is_right = counted[place - 1] == FIRST_STATE + states[count - 1]
    return (jnp.any(is_marker) & (place > 0) & is_right).astype(jnp.float32)
