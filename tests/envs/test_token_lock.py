"""The lock by enumeration, and its guide by its law."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.envs import token_lock, token_tasks

LOCK = token_lock.make(max_length=3, num_letters=3, prompt_letters=2)


def problems(task, count):
    keys = jax.random.split(jax.random.key(0), count)
    difficulties = 1 + jnp.arange(count) % task.max_difficulty
    return difficulties, jax.device_get(jax.jit(jax.vmap(task.sample))(keys, difficulties))


def words(task, problem, row):
    return token_tasks.as_text(task.vocabulary, problem.prompt[row], problem.prompt_mask[row])


def every_completion(vocab_size, width):
    """All rows of ids with their masks through the end token, or of the whole row."""
    rows = np.array(list(itertools.product(range(vocab_size), repeat=width)), np.int32)
    ended = np.cumsum(rows == token_tasks.END, axis=1) - (rows == token_tasks.END)
    return rows, (ended == 0).astype(np.float32)


def combination(prompt):
    length, *letters = prompt.split()
    letters = [int(letter[1:]) for letter in letters]
    places = range(int(length[1:]))
    return [f"x{(letters[t % len(letters)] + t) % 3}" for t in places]


def test_each_lock_opens_to_its_combination_alone():
    difficulties, problem = problems(LOCK, 12)
    # 8 tokens: padding, end, 3 letters, 3 lengths.
    assert LOCK.vocab_size == 8
    rows, masks = every_completion(8, 4)
    check = jax.vmap(lambda *row: (LOCK.verify(*row), LOCK.answer(*row)), (None, 0, 0))
    rewards, answers = jax.device_get(
        jax.jit(jax.vmap(check, (0, None, None)))(problem, rows, masks)
    )
    texts = [token_tasks.as_text(LOCK.vocabulary, *row) for row in zip(rows, masks, strict=True)]
    for row in range(12):
        prompt = words(LOCK, problem, row)
        secret = combination(prompt)
        assert len(secret) == int(difficulties[row])
        opened = {text for text, reward in zip(texts, rewards[row], strict=True) if reward}
        assert opened == {" ".join([*secret, "<end>"])}
        # Every combination of that length is an answer, with a number of its own.
        found = dict(zip(texts, answers[row].tolist(), strict=True))
        numbers = {
            found[" ".join([*letters, "<end>"])]
            for letters in itertools.product(("x0", "x1", "x2"), repeat=len(secret))
        }
        assert numbers == set(range(3 ** len(secret)))
        assert sum(number >= 0 for number in found.values()) == 3 ** len(secret)


def test_every_lock_comes():
    _, problem = problems(LOCK, 600)
    prompts = {words(LOCK, problem, row) for row in range(600)}
    assert len(prompts) == 3 * 3**2


def test_dense_reward_pays_every_place():
    _, problem = problems(LOCK, 12)
    task = LOCK._replace(verify=token_lock.dense_reward)
    rows, masks = every_completion(5, 4)
    check = jax.vmap(lambda *row: (task.verify(*row), LOCK.verify(*row)), (None, 0, 0))
    dense, sparse = jax.device_get(jax.jit(jax.vmap(check, (0, None, None)))(problem, rows, masks))
    for row in range(12):
        secret = [*combination(words(LOCK, problem, row)), "<end>"]
        ids = token_tasks.from_text(LOCK.vocabulary, " ".join(secret))
        right = ((rows[:, : ids.size] == ids) & (masks[:, : ids.size] == 1)).sum(axis=1)
        np.testing.assert_allclose(dense[row], (right / ids.size) ** 3, rtol=1e-6)
    np.testing.assert_array_equal(dense == 1, sparse == 1)


def test_guide_opens_the_lock_with_the_power_of_its_accuracy():
    task = token_lock.make(max_length=8, num_letters=6)
    problem = jax.jit(task.sample)(jax.random.key(3), 5)
    law = np.exp(jax.jit(functools.partial(token_lock.guide_log_probs, task))(problem, 0.7))
    assert law.shape == (9, task.vocab_size)
    np.testing.assert_allclose(law.sum(axis=1), 1, rtol=1e-6)
    tokens, mask = task.demonstration(problem)
    picked = law[np.arange(9), np.asarray(tokens)]
    np.testing.assert_allclose(picked, [0.7] * 5 + [1] * 4, rtol=1e-6)
    # The letters that are wrong share the rest; nothing else is ever said.
    np.testing.assert_allclose(np.sort(law[0])[-6:], [0.06] * 5 + [0.7], rtol=1e-5)
    assert np.count_nonzero(law[0]) == 6
    np.testing.assert_allclose(np.prod(picked[mask == 1]), 0.7**5, rtol=1e-5)
    drawn = jax.random.categorical(jax.random.key(0), jnp.log(law), shape=(20_000, 9))
    row_mask = np.broadcast_to(np.asarray(mask), (20_000, 9))
    opened = jax.jit(jax.vmap(task.verify, (None, 0, 0)))(problem, drawn, row_mask)
    # Five standard errors of a proportion.
    bound = 5 * np.sqrt(0.7**5 * (1 - 0.7**5) / 20_000)
    assert abs(float(opened.mean()) - 0.7**5) < bound


def test_long_combinations_have_numbers_too():
    # 6^30 combinations do not fit into int32; those that are compared still differ.
    task = token_lock.make(max_length=30, num_letters=6)
    problem = jax.jit(task.sample)(jax.random.key(0), 30)
    tokens, mask = task.demonstration(problem)
    answer = jax.jit(jax.vmap(task.answer, (None, 0, None)))
    rows = np.tile(np.asarray(tokens), (30, 1))
    rows[np.arange(30), np.arange(30)] = 2 + (rows[np.arange(30), np.arange(30)] - 1) % 6
    numbers = np.append(answer(problem, rows, mask), task.correct_answer(problem))
    assert len(set(numbers.tolist())) == 31
    assert numbers.min() >= 0


def test_rewards_are_exchanged_by_replacing_one_field():
    task = LOCK._replace(verify=token_lock.dense_reward)
    problem = jax.jit(task.sample)(jax.random.key(0), 1)
    # The letter is right and the end is missing: one place of two.
    tokens, mask = task.demonstration(problem)
    cut = jnp.where(jnp.arange(4) < 1, mask, 0)
    assert jax.jit(task.verify)(problem, tokens, cut) == 0.5**3
