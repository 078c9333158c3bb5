"""Problems of token tasks for training and evaluation, which never share one."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bellmax.envs import (
    token_arithmetic,
    token_countdown,
    token_lock,
    token_longform,
    token_programs,
    token_tasks,
)
from bellmax.envs.token_longform import LongFormTask
from bellmax.envs.token_tasks import TokenProblem, TokenTask
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors
from bellmax.experiments.task_config import DataConfig
from bellmax.experiments.text_tasks import TextTask

# One prompt in so many is held out, by a hash of its tokens.
_HELD_OUT_SHARE = 8
# Draws among which a problem of the right side is looked for.
_TRIES = 4


class Problems(NamedTuple):
    """Problems on a first axis.

    Attributes:
      problem: their fields. [B, ...].
      weight: 0 where no problem of the right side was found, 1 elsewhere. [B].
    """

    problem: TokenProblem
    weight: Float[Array, " B"]


# Those that draw their problems, and all.
Task = TokenTask | LongFormTask
AnyTask = Task | TextTask
# Each no larger than a difficulty needs.
TASKS: dict[str, Callable[[int], Task]] = {
    "addition": lambda difficulty: token_arithmetic.addition(max_digits=difficulty),
    "multiplication": lambda difficulty: token_arithmetic.multiplication(max_digits=difficulty),
    "programs": lambda difficulty: token_programs.make(max_instructions=difficulty),
    "countdown": lambda difficulty: token_countdown.make(max_operations=difficulty),
    "lock": lambda difficulty: token_lock.make(max_length=difficulty, prompt_letters=3),
    "long_form": lambda difficulty: token_longform.make(max_operations=difficulty),
}


def make_task(config: DataConfig) -> Task:
    """Returns the task of a config, no larger than its difficulty asks for.

    Args:
      config: the data group.

    Returns:
      The task.

    Raises:
      UserError: there is no such task, or it has no such difficulty.
    """
    if config.task not in TASKS:
        raise config_lib.unknown("config.data.task", config.task, TASKS)
    with config_lib.user_errors("config.data.difficulty"):
        task = TASKS[config.task](config.difficulty)
    if config.difficulty > task.max_difficulty:
        raise errors.UserError(
            f"config.data.difficulty must be at most {task.max_difficulty} in {config.task}, got "
            f"{config.difficulty}."
        )
    return task


def is_held_out(prompt: Int[Array, "... P"]) -> Bool[Array, "..."]:
    """Returns whether a prompt is kept for evaluation, always the same for the same tokens.

    Args:
      prompt: token ids, 0 on padding. [..., P].

    Returns:
      True for an eighth of all prompts. [...].
    """
    found = jnp.zeros(prompt.shape[:-1], jnp.uint32)
    for place in range(prompt.shape[-1]):
        found = (found ^ prompt[..., place].astype(jnp.uint32)) * jnp.uint32(16777619)
    found = (found ^ (found >> 15)) * jnp.uint32(2246822519)
    return (found >> 16) % _HELD_OUT_SHARE == 0


def draw(
    task: Task,
    key: PRNGKeyArray,
    index: Int[Array, " B"],
    *,
    difficulty: int,
    held_out: bool = False,
) -> Problems:
    """Draws problems of one side of the split.

    Args:
      task: the task.
      key: randomness; consumed.
      index: number of each problem in the whole batch, which decides its randomness. [B].
      difficulty: of the problems.
      held_out: which side.

    Returns:
      The problems.
    """

    def one(number: Int[Array, ""]) -> Problems:
        keys = jax.random.split(jax.random.fold_in(key, number), _TRIES)
        tried = jax.vmap(lambda key: task.sample(key, difficulty))(keys)
        fits = is_held_out(tried.prompt) == held_out
        first = jnp.argmax(fits)
        found = jax.tree.map(lambda leaf: leaf[first], tried)
        return Problems(found, jnp.any(fits).astype(jnp.float32))

    return jax.vmap(one)(index)


def held_out(task: Task, config: DataConfig, key: PRNGKeyArray) -> TokenProblem:
    """Returns distinct problems for evaluation.

    Args:
      task: the task.
      config: the data group.
      key: randomness; consumed.

    Returns:
      Problems; as many as the config asks for, or as many as were found in draws of eight times
      that number. [M, ...].

    Raises:
      UserError: fewer than two were found.
    """
    count = 8 * _HELD_OUT_SHARE * config.num_held_out
    sample = functools.partial(draw, task, difficulty=config.difficulty, held_out=True)
    drawn = jax.device_get(jax.jit(sample)(key, jnp.arange(count // _TRIES)))
    there = np.flatnonzero(drawn.weight)
    _, first = np.unique(drawn.problem.prompt[there], axis=0, return_index=True)
    rows = there[np.sort(first)][: config.num_held_out]
    if len(rows) < 2:
        raise errors.UserError(
            f"config.data.difficulty {config.difficulty} of {config.task} has too few problems to "
            "hold any out."
        )
    return jax.tree.map(lambda leaf: leaf[rows], drawn.problem)


def solutions(
    task: AnyTask, problems: TokenProblem, is_swapped: Bool[Array, " B"] | None = None
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """Returns prompts and worked solutions, as supervised training reads them.

    Args:
      task: the task.
      problems: [B, ...].
      is_swapped: whether a problem is shown the solution of the next one; None for its own. [B].

    Returns:
      Tokens, padded on the right, and a mask that is 1 on the solution's. [B, P + N] each.
    """
    tokens, mask = jax.vmap(task.demonstration)(problems)
    if is_swapped is not None:
        swapped = is_swapped[:, None]
        tokens = jnp.where(swapped, jnp.roll(tokens, -1, axis=0), tokens)
        mask = jnp.where(swapped, jnp.roll(mask, -1, axis=0), mask)
    return jax.vmap(append)(problems.prompt, problems.prompt_mask, tokens, mask)


def append(
    tokens: Int[Array, " S"], mask: Array, more: Int[Array, " N"], more_mask: Array
) -> tuple[Int[Array, " T"], Float[Array, " T"]]:
    """Returns a row with more tokens behind those that count.

    Args:
      tokens: token ids. [S].
      mask: 1 on those that count. [S].
      more: token ids. [N].
      more_mask: 1 on those that count. [N].

    Returns:
      Tokens, 0 on padding, and a mask that is 1 on those of `more`. [S + N] each.
    """
    size = tokens.shape[0] + more.shape[0]
    row, there = token_tasks.concatenate([(tokens, mask != 0), (more, more_mask != 0)], size)
    return row, there * (jnp.arange(size) >= jnp.sum(mask != 0))
