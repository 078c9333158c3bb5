"""The stack machine against one in plain Python, on every short program and on changed ones."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import token_programs, token_tasks

TASK = token_programs.make(max_instructions=6)
NAMES = TASK.vocabulary
COUNT = 2000


def interpret(words, value, *, modulus=10, stack_size=4):
    """The output of a program, None where it has none, and what lay on top after each word."""
    stack, tops = [value], []
    for word in words:
        try:
            if word.isdigit():
                stack.append(int(word))
            elif word == "neg":
                stack.append(-stack.pop())
            elif word == "dup":
                stack.append(stack[-1])
            elif word == "swap":
                top, below = stack.pop(), stack.pop()
                stack += [top, below]
            elif word in ("+", "-", "*"):
                top, below = stack.pop(), stack.pop()
                stack.append({"+": below + top, "-": below - top, "*": below * top}[word])
            else:
                return None, tops
        except IndexError:
            return None, tops
        if len(stack) > stack_size:
            return None, tops
        stack[-1] %= modulus
        tops.append(stack[-1])
    return (stack[0] if len(stack) == 1 else None), tops


@functools.cache
def drawn():
    def draw(key, difficulty):
        problem = TASK.sample(key, difficulty)
        return problem, TASK.demonstration(problem)

    keys = jax.random.split(jax.random.key(1), COUNT)
    return jax.device_get(jax.jit(jax.vmap(draw))(keys, 1 + jnp.arange(COUNT) % 6))


@functools.cache
def judge():
    compiled = jax.jit(jax.vmap(lambda *row: (TASK.verify(*row), TASK.answer(*row))))
    return lambda *arguments: jax.device_get(compiled(*arguments))


def examples(problem, row):
    words = token_tasks.as_text(NAMES, problem.prompt[row], problem.prompt_mask[row]).split()
    assert (words[1], words[4], words[6]) == (">", ">", "=")
    return [(int(words[0]), int(words[2])), (int(words[3]), int(words[5]))]


def test_demonstrations_are_programs_with_their_traces():
    problem, (tokens, mask) = drawn()
    for row in range(COUNT):
        words = token_tasks.as_text(NAMES, tokens[row], mask[row]).split()
        marker = words.index("#")
        program = words[marker + 1 : -1]
        assert len(program) == 1 + row % 6
        pairs = examples(problem, row)
        assert pairs[0][0] != pairs[1][0]
        trace = [[word] for word in program]
        for value, target in pairs:
            output, tops = interpret(program, value)
            assert output == target
            for line, top in zip(trace, tops, strict=True):
                line.append(str(top))
        assert words[:marker] == list(itertools.chain(*trace))


def test_known_programs_vary():
    problem, _ = drawn()
    hardest = problem.solution[2][5::6]
    used = {NAMES[token] for token in np.unique(hardest)}
    assert used == {*map(str, range(10)), *token_programs.INSTRUCTION_NAMES}
    assert len({tuple(program) for program in hardest.tolist()}) > 0.9 * len(hardest)


def expected_judgement(completion, pairs):
    words = completion.split()
    if "<end>" not in words:
        return False, -1
    words = words[: words.index("<end>")]
    if "#" not in words:
        return False, -1
    program = words[len(words) - words[::-1].index("#") :]
    outputs = [interpret(program, value)[0] for value, _ in pairs]
    first, second = outputs
    if not program or first is None or second is None:
        return False, -1
    return outputs == [target for _, target in pairs], first + 10 * second


def test_judgements_of_changed_completions():
    problem, (tokens, mask) = drawn()
    random = np.random.default_rng(0)
    rows = tokens.copy()
    masks = mask.copy()
    for row in range(COUNT):
        length = int(mask[row].sum())
        for _ in range(random.integers(0, 3)):
            place = length - 1 - min(random.geometric(0.3) - 1, length - 1)
            rows[row, place] = random.integers(0, TASK.vocab_size)
        if random.random() < 0.05:
            masks[row, length - 1] = 0
    rewards, answers = judge()(problem, rows, masks)
    for row in range(COUNT):
        completion = token_tasks.as_text(NAMES, rows[row], masks[row])
        expected = expected_judgement(completion, examples(problem, row))
        assert (bool(rewards[row]), int(answers[row])) == expected
    assert 0.2 < rewards.mean() < 0.8


def test_every_short_program_runs_as_in_python():
    # Modulus 3 and a stack of 2: 3 numbers and 6 instructions, 9 + 81 + 729 + 6561 programs.
    task = token_programs.make(max_instructions=4, modulus=3, stack_size=2)
    words = [task.vocabulary[token] for token in range(3, 12)]
    programs = [
        program for length in range(5) for program in itertools.product(range(9), repeat=length)
    ]
    rows = np.zeros((len(programs), 4), np.int32)
    for row, program in enumerate(programs):
        rows[row, : len(program)] = np.array(program) + 3
    lengths = np.array([len(program) for program in programs])
    run = functools.partial(token_programs.execute, modulus=3, stack_size=2)
    every = jax.jit(jax.vmap(jax.vmap(run, (None, None, 0)), (0, 0, None)))
    outputs, works, _ = jax.device_get(every(rows, lengths, jnp.arange(3)))
    for row, program in enumerate(programs):
        for value in range(3):
            names = [words[token] for token in program]
            expected, _ = interpret(names, value, modulus=3, stack_size=2)
            assert bool(works[row, value]) == (expected is not None)
            assert int(outputs[row, value]) == (expected or 0)
    # Neither verdict is rare.
    assert 0.02 < works.mean() < 0.5


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        # Inputs 3 and 5; 7 and 1 are wanted, so the right answer has number 7 + 10 * 1 = 17.
        ("# dup + 1 + <end>", 17),
        ("# 2 * 1 + <end>", 17),
        ("# 1 swap dup + + <end>", 17),
        ("# 5 neg neg swap 2 * swap - 6 + <end>", 17),
        ("dup 6 0 # dup + 1 + <end>", 17),
        ("# 7 # dup + 1 + <end>", 17),
        ("# neg <end>", 57),
        ("# 9 - 2 * <end>", 28),
        ("# <end>", -1),
        ("# + <end>", -1),
        ("# dup <end>", -1),
        ("# 7 <end>", -1),
        ("# swap <end>", -1),
        ("# 1 1 1 + + + <end>", 86),
        ("# 1 1 1 1 + + + + <end>", -1),
        ("# dup + 1 + = <end>", -1),
        ("# dup + <pad> 1 + <end>", -1),
        ("# dup + 1 +", -1),
        ("dup + 1 + <end>", -1),
    ],
)
def test_programs_by_hand(completion, answer):
    ids = token_tasks.from_text(NAMES, completion)
    row = np.zeros((1, TASK.max_new_tokens), np.int32)
    row[0, : ids.size] = ids
    mask = (np.arange(TASK.max_new_tokens) < ids.size)[None]
    problem = token_tasks.TokenProblem(
        jnp.zeros((1, 7), jnp.int32),
        jnp.zeros((1, 7)),
        (np.array([[3, 5]]), np.array([[7, 1]]), np.zeros((1, 6), np.int32), np.array([3])),
    )
    rewards, answers = judge()(problem, row, mask)
    assert (int(answers[0]), float(rewards[0])) == (answer, float(answer == 17))


def test_other_machines_have_other_vocabularies():
    task = token_programs.make(max_instructions=2, num_examples=3, modulus=5)
    assert task.vocabulary[3:8] == tuple("01234")
    problem = jax.jit(task.sample)(jax.random.key(0), 2)
    tokens, mask = jax.jit(task.demonstration)(problem)
    assert problem.prompt.shape == (task.max_prompt,) == (10,)
    assert len(set(problem.solution[0].tolist())) == 3
    assert task.verify(problem, tokens, mask) == 1
