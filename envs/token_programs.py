r"""Writing programs for a stack machine, which are executed on the examples that the prompt gives.

The stack of the machine holds numbers modulo m and, to begin with, the input of the program. A
number pushes itself; `+`, `-` and `*` replace the two topmost numbers u (below) and v (on top) by
u + v, u - v and u v; `neg` turns v into -v; `dup` pushes v once more; `swap` exchanges u and v. A
program has an output if it never lacks a number, never holds more than the stack can, and leaves
exactly one. The prompt gives inputs and outputs; the answer is a program, and any that gives those
outputs is right:

    3 > 7 5 > 1 =   dup 3 5   + 6 0   1 1 1   + 7 1   # dup + 1 + <end>

The steps are the instructions of the program with what then lies on top, for each example. The
difficulty is the number of instructions of a program that is known to give those outputs.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import MARKER, Row, TokenProblem, TokenTask

FIRST_NUMBER = len(token_tasks.STEP_NAMES)  # Id of number 0; the m - 1 others follow.
ADD, SUBTRACT, MULTIPLY, NEGATE, DUPLICATE, SWAP, PUSH = range(7)
# By kind of instruction: numbers that it needs on the stack, and how many more there are after it.
_NEEDS = (2, 2, 2, 1, 1, 2, 0)
_GROWS = (-1, -1, -1, 0, 1, 0, 1)
# Products of two numbers, and the names of all numbers, stay small.
MAX_MODULUS = 1000
INSTRUCTION_NAMES = ("+", "-", "*", "neg", "dup", "swap")


def make(
    *,
    max_instructions: int = 6,
    num_examples: int = 2,
    modulus: int = 10,
    stack_size: int = 4,
) -> TokenTask:
    """Returns the task of writing programs of up to L instructions.

    Args:
      max_instructions: L, at least 1: the longest program that is known to solve a problem. A
        completion may hold longer ones.
      num_examples: inputs E with their outputs in a prompt, at least 1.
      modulus: m, 2 to 1,000 and at least E, since the inputs differ; m^E must fit into int32.
      stack_size: numbers that the stack can hold, at least 2.

    Returns:
      The task; its difficulty is the number of instructions of the known program. `solution` is
      inputs [E], outputs [E], that program as ids, 0 behind it [L], and its length.

    Raises:
      ValueError: a size is out of its range.
    """
    token_tasks.check_range("max_instructions", max_instructions, 1)
    token_tasks.check_range("num_examples", num_examples, 1)
    token_tasks.check_range("modulus", modulus, max(2, num_examples), MAX_MODULUS)
    token_tasks.check_range("stack_size", stack_size, 2)
    if modulus**num_examples > 2**31:
        raise ValueError(
            f"modulus ** num_examples must fit into int32, got {modulus} ** {num_examples}."
        )
    max_answer = max_instructions + 1
    max_new_tokens = max_instructions * (num_examples + 1) + 1 + max_answer
    machine = {"modulus": modulus, "stack_size": stack_size}
    answer = functools.partial(_answer, **machine)
    correct_answer = functools.partial(_correct_answer, modulus=modulus)
    return TokenTask(
        vocabulary=_vocabulary(modulus),
        marker=MARKER,
        max_prompt=3 * num_examples + 1,
        max_new_tokens=max_new_tokens,
        max_answer=max_answer,
        max_difficulty=max_instructions,
        sample=functools.partial(
            _sample, max_instructions=max_instructions, num_examples=num_examples, **machine
        ),
        demonstration=functools.partial(_demonstration, size=max_new_tokens, **machine),
        reference=functools.partial(_reference, size=max_answer),
        verify=token_tasks.verify_by_answer(answer, correct_answer),
        answer=answer,
        correct_answer=correct_answer,
    )


def _vocabulary(modulus: int) -> tuple[str, ...]:
    numbers = (str(number) for number in range(modulus))
    return (*token_tasks.STEP_NAMES, *numbers, *INSTRUCTION_NAMES, ">", "=")


def execute(
    program: Int[Array, " N"],
    length: Int[Array, ""],
    value: Int[Array, ""],
    *,
    modulus: int,
    stack_size: int,
) -> tuple[Int[Array, ""], Bool[Array, ""], Int[Array, " N"]]:
    """Runs a program on one input, in N steps at most.

    Args:
      program: ids; those that are no instruction make it fail. [N].
      length: instructions of the program, 0 to N; nothing behind them is read.
      value: the input, 0 to m - 1.
      modulus: m.
      stack_size: numbers that the stack can hold.

    Returns:
      The output, whether there is one (0 where there is none), and what lies on top after each
      instruction, which means nothing from a failure on. [N].
    """
    needs, grows = jnp.array(_NEEDS, jnp.int32), jnp.array(_GROWS, jnp.int32)

    def step(state, instruction_and_place):
        stack, depth, works = state
        instruction, place = instruction_and_place
        number = instruction - FIRST_NUMBER
        is_known = (number >= 0) & (number < modulus + PUSH)
        kind = jnp.where(number < modulus, PUSH, jnp.clip(number - modulus, 0, PUSH))
        top, below = stack[depth - 1], stack[depth - 2]
        new_depth = depth + grows[kind]
        works_now = is_known & (depth >= needs[kind]) & (new_depth <= stack_size)
        results = jnp.stack([below + top, below - top, below * top, -top, top, below, number])
        # Where it does not work, places may lie outside of the stack: nothing of this is kept.
        changed = stack.at[new_depth - 1].set(results[kind] % modulus)
        changed = jnp.where(kind == SWAP, changed.at[depth - 2].set(top), changed)
        goes_on = works & works_now & (place < length)
        stack = jnp.where(goes_on, changed, stack)
        depth = jnp.where(goes_on, new_depth, depth)
        return (stack, depth, works & (works_now | (place >= length))), stack[depth - 1]

    stack = jnp.zeros(stack_size, jnp.int32).at[0].set(value)
    start = (stack, jnp.ones((), jnp.int32), jnp.ones((), bool))
    places = jnp.arange(program.shape[0])
    (stack, depth, works), tops = jax.lax.scan(step, start, (program.astype(jnp.int32), places))
    works = works & (depth == 1)
    return jnp.where(works, stack[0], 0), works, tops


def _sample(
    key: PRNGKeyArray,
    difficulty: int | Int[Array, ""],
    *,
    max_instructions: int,
    num_examples: int,
    modulus: int,
    stack_size: int,
) -> TokenProblem:
    length = jnp.clip(jnp.asarray(difficulty, jnp.int32), 1, max_instructions)
    input_key, program_key = jax.random.split(key)
    inputs = jax.random.permutation(input_key, modulus)[:num_examples].astype(jnp.int32)
    needs, grows = jnp.array(_NEEDS, jnp.int32), jnp.array(_GROWS, jnp.int32)

    def draw(depth, place_and_key):
        place, key = place_and_key
        kind_key, number_key = jax.random.split(key)
        new_depths = depth + grows
        # Every instruction that is left can take one number away: one must remain at the end.
        can_end = new_depths - 1 <= length - 1 - place
        allowed = (depth >= needs) & (new_depths <= stack_size) & can_end
        kind = jax.random.categorical(kind_key, jnp.where(allowed, 0.0, -jnp.inf))
        number = jax.random.randint(number_key, (), 0, modulus, jnp.int32)
        instruction = FIRST_NUMBER + jnp.where(kind == PUSH, number, modulus + kind)
        is_written = place < length
        return jnp.where(is_written, new_depths[kind], depth), jnp.where(
            is_written, instruction, token_tasks.PAD
        )

    keys = jax.random.split(program_key, max_instructions)
    _, program = jax.lax.scan(draw, jnp.ones((), jnp.int32), (jnp.arange(max_instructions), keys))
    run = functools.partial(execute, program, length, modulus=modulus, stack_size=stack_size)
    outputs, _, _ = jax.vmap(run)(inputs)
    yields = FIRST_NUMBER + modulus + len(INSTRUCTION_NAMES)
    examples = jnp.stack(
        [FIRST_NUMBER + inputs, jnp.full_like(inputs, yields), FIRST_NUMBER + outputs], axis=1
    )
    prompt, mask = token_tasks.concatenate(
        [(examples.reshape(-1), True), (yields + 1, True)], 3 * num_examples + 1
    )
    return TokenProblem(prompt, mask, (inputs, outputs, program, length))


def _demonstration(problem: TokenProblem, *, size: int, modulus: int, stack_size: int) -> Row:
    inputs, _, program, length = problem.solution
    run = functools.partial(execute, program, length, modulus=modulus, stack_size=stack_size)
    _, _, tops = jax.vmap(run)(inputs)
    steps = jnp.concatenate([program[:, None], FIRST_NUMBER + tops.T], axis=1)
    is_written = jnp.arange(program.shape[0]) < length
    return token_tasks.concatenate(
        [
            (steps.reshape(-1), jnp.repeat(is_written, steps.shape[1])),
            (MARKER, True),
            (program, is_written),
            (token_tasks.END, True),
        ],
        size,
    )


def _reference(problem: TokenProblem, *, size: int) -> Row:
    _, _, program, length = problem.solution
    is_written = jnp.arange(program.shape[0]) < length
    return token_tasks.concatenate([(program, is_written), (token_tasks.END, True)], size)


def _number(outputs: Int[Array, " E"], modulus: int) -> Int[Array, ""]:
    """The number of the outputs, their digits in base m."""
    return jnp.sum(outputs * modulus ** jnp.arange(outputs.shape[0]), dtype=jnp.int32)


def _answer(
    problem: TokenProblem,
    tokens: Int[Array, " N"],
    mask: Array,
    *,
    modulus: int,
    stack_size: int,
) -> Int[Array, ""]:
    written = token_tasks.written_answer(tokens, mask, MARKER)
    run = functools.partial(
        execute, written.tokens, written.length, modulus=modulus, stack_size=stack_size
    )
    outputs, works, _ = jax.vmap(run)(problem.solution[0])
    # A program without instructions is none, though it would return its input.
    is_program = written.is_whole & (written.length > 0) & jnp.all(works)
    return jnp.where(is_program, _number(outputs, modulus), -1)


def _correct_answer(problem: TokenProblem, *, modulus: int) -> Int[Array, ""]:
    return _number(problem.solution[1], modulus)
