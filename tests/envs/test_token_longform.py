"""The law of long answers by enumeration, and the chains that lead to them in plain Python."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import token_longform, token_tasks

TASK = token_longform.make()
# 3 states, 2 words, 2 manners: 18 answers.
SMALL = token_longform.make(
    max_operations=3, num_states=3, num_words=2, manner_probs=(0.6, 0.4), noise=0.3
)
COUNT = 3000


@functools.cache
def drawn():
    def draw(key, difficulty):
        problem = TASK.sample(key, difficulty)
        reference = TASK.reference(problem)
        return (
            problem,
            TASK.demonstration(problem),
            reference,
            TASK.answer_log_prob(problem, *reference),
            TASK.guess_log_prob(problem, *reference),
            TASK.chain_is_right(problem, *TASK.demonstration(problem)),
        )

    keys = jax.random.split(jax.random.key(4), COUNT)
    return jax.device_get(jax.jit(jax.vmap(draw))(keys, 1 + jnp.arange(COUNT) % 6))


@functools.cache
def likelihoods():
    return jax.jit(lambda *row: (TASK.answer_log_prob(*row), TASK.guess_log_prob(*row)))


def states(question):
    """The states after each operation of a question."""
    start, *operations, equals = question.split()
    assert equals == "="
    state, found = int(start[1:]), []
    for operation in operations:
        state = {0: 1, 1: 0}.get(state, state)
        state = (state + int(operation[1:])) % 7
        found.append(state)
    return found


def test_chains_are_the_states():
    problem, (tokens, mask), *_, is_right = drawn()
    for row in range(COUNT):
        question = token_tasks.as_text(
            TASK.vocabulary, problem.prompt[row], problem.prompt_mask[row]
        )
        words = token_tasks.as_text(TASK.vocabulary, tokens[row], mask[row]).split()
        expected = states(question)
        assert len(expected) == 1 + row % 6
        assert words[: words.index("#")] == [f"s{state}" for state in expected]
    np.testing.assert_array_equal(is_right, 1)


def test_documented_example():
    assert states("s3 k2 k0 k4 =") == [5, 5, 2]
    # Manner 1 and state 2: words 2 + 2, 2 + 4, 2 + 6 modulo 7.
    ids = token_tasks.from_text(TASK.vocabulary, "w1 v4 v6 v1 v3 v5 v0 <end>")
    problem = jax.tree.map(lambda leaf: leaf[0], drawn()[0])
    problem = problem._replace(solution=(jnp.array([5, 5, 2, 0, 0, 0]), jnp.array(3), None))
    found = likelihoods()(problem, jnp.pad(ids, (0, 2)), jnp.arange(10) < 8)[0]
    # P(w = 1) = 0.3, and six words of probability 0.9 + 0.1 / 7 each.
    np.testing.assert_allclose(found, np.log(0.3) + 6 * np.log(0.9 + 0.1 / 7), rtol=1e-5)


@functools.cache
def enumerated():
    """Every answer of the small task, and its log-probability after each state."""
    names = [
        f"w{manner} v{one} v{two} <end>"
        for manner, one, two in itertools.product(range(2), range(3), range(3))
    ]
    rows = np.stack([token_tasks.from_text(SMALL.vocabulary, name) for name in names])
    prompt = jnp.zeros(SMALL.max_prompt, jnp.int32)

    @jax.jit
    def log_probs(state):
        solution = (jnp.stack([0 * state, state, 0 * state]), jnp.array(2), None)
        problem = token_tasks.TokenProblem(prompt, jnp.ones(prompt.shape), solution)
        both = jax.vmap(
            lambda row: (
                SMALL.answer_log_prob(problem, row, jnp.ones(4)),
                SMALL.guess_log_prob(problem, row, jnp.ones(4)),
            )
        )
        return both(rows)

    found = [log_probs(jnp.asarray(state)) for state in range(3)]
    return rows, np.array([one for one, _ in found]), np.array([two for _, two in found])


def test_law_of_answers_by_enumeration():
    rows, log_probs, guesses = enumerated()
    for state, row_log_probs in enumerate(log_probs):
        for row, log_prob in zip(rows, row_log_probs, strict=True):
            manner, *words, _ = (SMALL.vocabulary[token] for token in row)
            style = int(manner[1:])
            expected = (0.6, 0.4)[style]
            for place, word in enumerate(words, start=1):
                is_right = int(word[1:]) == (state + place * (style + 1)) % 3
                expected *= 0.7 * is_right + 0.1
            np.testing.assert_allclose(log_prob, np.log(expected), rtol=1e-5)
    law = np.exp(log_probs)
    np.testing.assert_allclose(law.sum(axis=1), 1, rtol=1e-5)
    # The entropy is the same after each state; who guesses has the mixture.
    np.testing.assert_allclose(-(law * log_probs).sum(axis=1), SMALL.entropy, rtol=1e-5)
    np.testing.assert_allclose(np.exp(guesses), np.tile(law.mean(axis=0), (3, 1)), rtol=1e-5)


def test_sampled_answers_follow_the_law():
    rows, log_probs, _ = enumerated()
    place = {tuple(row): i for i, row in enumerate(rows.tolist())}
    size = 12_000
    keys = jax.random.split(jax.random.key(1), size)
    problem = jax.device_get(jax.jit(jax.vmap(SMALL.sample, (0, None)))(keys, 3))
    final = problem.solution[0][:, 2]
    for state in range(3):
        answers = problem.solution[2][final == state]
        # Bijections of a uniform start: every state is as likely.
        assert abs(len(answers) / size - 1 / 3) < 5 * np.sqrt(2 / 9 / size)
        counts = np.bincount([place[tuple(row)] for row in answers.tolist()], minlength=18)
        law = np.exp(log_probs[state])
        bound = 5 * np.sqrt(law * (1 - law) / len(answers))
        np.testing.assert_array_less(np.abs(counts / len(answers) - law), bound)


def test_mean_likelihood_is_the_entropy_and_a_guess_is_worse():
    *_, log_probs, guesses, _ = drawn()
    error = log_probs.std() / np.sqrt(COUNT)
    assert abs(log_probs.mean() + TASK.entropy) < 5 * error
    # Six words tell the states apart: knowing z is worth nearly log 7 nats.
    gain = log_probs.mean() - guesses.mean()
    assert 0.8 * np.log(7) < gain < np.log(7) + 1e-3


def test_operations_generate_every_permutation():
    # As documented: of 4 states there are 24, and they do not commute.
    exchange = np.array([1, 0, 2, 3])
    operations = [tuple((exchange + k) % 4) for k in range(4)]
    reached, new = {(0, 1, 2, 3)}, {(0, 1, 2, 3)}
    while new:
        new = {tuple(f[s] for s in g) for f in operations for g in new} - reached
        reached |= new
    assert len(reached) == 24


@pytest.mark.parametrize(
    "answer",
    [
        "v4 v6 v1 v3 v5 v0 <end>",
        "w1 v4 v6 v1 v3 v5 <end>",
        "w1 v4 v6 v1 v3 v5 v0 v0 <end>",
        "w1 v4 v6 v1 v3 v5 v0",
        "w1 v4 v6 v1 v3 v5 s0 <end>",
        "w1 w1 v6 v1 v3 v5 v0 <end>",
        "# w1 v4 v6 v1 v3 v5 v0 <end>",
        "<end>",
        "<pad>",
    ],
)
def test_what_is_no_answer_is_never_drawn(answer):
    problem = jax.tree.map(lambda leaf: leaf[0], drawn()[0])
    ids = token_tasks.from_text(TASK.vocabulary, answer)
    row = np.zeros(10, np.int32)
    row[: ids.size] = ids
    assert likelihoods()(problem, row, np.arange(10) < ids.size) == (-np.inf, -np.inf)


def test_only_the_last_state_before_the_marker_counts():
    problem = jax.tree.map(lambda leaf: leaf[0], drawn()[0])
    problem = problem._replace(solution=(jnp.array([5, 5, 2, 0, 0, 0]), jnp.array(3), None))
    check = jax.jit(TASK.chain_is_right)
    cases = {
        "s5 s5 s2 #": 1,
        "s2 #": 1,
        "s2 # s1 #": 1,
        "s5 s5 #": 0,
        "#": 0,
        "s5 s5 s2": 0,
        "v2 #": 0,
    }
    for chain, expected in cases.items():
        ids = token_tasks.from_text(TASK.vocabulary, chain)
        row = np.zeros(6, np.int32)
        row[: ids.size] = ids
        assert check(problem, row, np.arange(6) < ids.size) == expected
    assert check(problem, np.full(6, 3), np.zeros(6)) == 0
