"""Increasing numbers by enumeration: the verdict, and the reward that grows by the token."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.envs import token_increasing, token_tasks

TASK = token_increasing.make(num_values=5, max_count=3)


def test_increasing_numbers_against_their_definition():
    keys = jax.random.split(jax.random.key(0), 3)
    problem = jax.device_get(jax.jit(jax.vmap(TASK.sample))(keys, jnp.arange(1, 4)))
    # 8 tokens: padding, end, 5 numbers, "=".
    rows = np.array(list(itertools.product(range(8), repeat=5)), np.int32)
    ended = np.cumsum(rows == token_tasks.END, axis=1) - (rows == token_tasks.END)
    masks = (ended == 0).astype(np.float32)
    reward = functools.partial(token_increasing.prefix_reward, TASK)
    check = jax.vmap(
        lambda *row: (TASK.verify(*row), TASK.answer(*row), reward(*row)),
        (None, 0, 0),
    )
    for row in range(3):
        count = 1 + row
        assert token_tasks.as_text(TASK.vocabulary, problem.prompt[row]) == f"{count} ="
        one = jax.tree.map(lambda leaf, row=row: leaf[row], problem)
        rewards, answers, dense = jax.device_get(jax.jit(check)(one, rows, masks))
        for place in range(0, len(rows), 7):
            names = token_tasks.as_text(TASK.vocabulary, rows[place], masks[place]).split()
            ended = "<end>" in names
            said = [name for name in names if name != "<end>"]
            numbers = [int(name) for name in said if name.isdigit()]
            prefix = 0
            for number in numbers:
                if prefix and number <= numbers[prefix - 1]:
                    break
                prefix += 1
            is_sorted = bool(numbers) and prefix == len(said)
            answer = min(len(said), count) if ended and is_sorted else -1
            assert int(answers[place]) == answer
            assert float(rewards[place]) == float(answer == count)
            # allenai/RL4LMs: sorted_count / max(len(gen_tokens), min_tokens / 2).
            expected = prefix / max(len(said), count)
            np.testing.assert_allclose(dense[place], expected, rtol=1e-6)


def test_demonstrations_are_drawn_without_replacement():
    def draw(key):
        return TASK.demonstration(TASK.sample(key, 2))

    tokens, _ = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 500))
    texts = {token_tasks.as_text(TASK.vocabulary, row[:3]) for row in np.asarray(tokens)}
    pairs = itertools.combinations(range(5), 2)
    assert texts == {f"{one} {two} <end>" for one, two in pairs}
