"""A step of a method on a token task: problems, completions, rewards and updates in one program."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import (
    Agent,
    CompletionBatch,
    Metrics,
    Params,
    completions,
    critics,
    followers,
    policy_gradient,
    sampling,
    updates,
)
from bellmax.envs.token_longform import LongFormTask
from bellmax.envs.token_tasks import TokenProblem
from bellmax.experiments import (
    language_run,
    resharding,
    task_methods,
    task_rollouts,
)
from bellmax.experiments.numbered import Rows
from bellmax.experiments.task_run import TaskRun
from bellmax.experiments.text_data import TextRows
from bellmax.experiments.text_tasks import Stored, TextTask


class State(NamedTuple):
    """What the loop carries.

    Attributes:
      step: steps of the loop so far.
      agent: the agent's state.
      behaviour_params: the earlier policy whose samples are trained on; `()` where it is the
        current one or the reference.
    """

    step: Int[Array, ""]
    agent: policy_gradient.State
    behaviour_params: Params


class Learner(NamedTuple):
    """A method bound to a run.

    Attributes:
      method: what is learnt.
      agent: learns it.
      critic: the agent's, or None.
    """

    method: task_methods.Method
    agent: Agent
    critic: critics.Critic | None


def make_learner(run: TaskRun, place: int, reference: Params | None = None) -> Learner:
    """Returns what a method of a run becomes.

    Args:
      run: the run.
      place: of the method among `config.loss.names`.
      reference: parameters that a critic starts from; None for fresh ones.

    Returns:
      The learner.

    Raises:
      UserError: a key is wrong.
    """
    config, loss = run.config, run.config.loss
    method = task_methods.make_method(loss.names[place], loss.betas[place], loss, run.task)
    num_updates = config.train.num_steps * loss.updates_per_batch * loss.minibatches
    init_params = language_run.compiled_init(run.network)
    critic = None
    if method.needs_critic:
        critic = critics.of_model(run.model, init_params, params=reference)
    agent = policy_gradient.make(
        run.model,
        language_run.make_stage_optimizer(
            config, num_updates, loss.learning_rates[place] or config.optimizer.learning_rate
        ),
        loss_fn=method.loss_fn,
        init_params=init_params,
        critic=critic,
        average=method.average,
        chunk_size=run.chunk_size,
        accumulate_steps=config.train.accumulate_steps,
    )
    return Learner(method, agent, critic)


def make_step(
    run: TaskRun, made: Learner
) -> Callable[[State, Rows | TextRows, PRNGKeyArray], tuple[State, Metrics]]:
    """Returns draw, sample, check and update as one function, which becomes one program.

    Args:
      run: the run.
      made: what learns.

    Returns:
      `(state, rows, key) -> (state, metrics)`.
    """
    method, agent, critic = made
    loss, minibatches = run.config.loss, run.config.loss.minibatches
    keep = followers.every(max(loss.staleness, 1))

    def step(state: State, rows: Rows | TextRows, key: PRNGKeyArray):
        learner = state.agent
        behaviour = {0: learner.reference_params, 1: learner.params}.get(
            loss.staleness, state.behaviour_params
        )
        given = rows if isinstance(rows, TextRows) else None
        batch = collect(run, method, behaviour, rows.index, key, given)
        batch = batch._replace(
            reference_log_probs=completions.token_log_probs(
                run.model, learner.reference_params, batch, chunk_size=run.chunk_size
            )
        )
        if critic is not None:
            batch = batch._replace(
                behaviour_values=completions.token_values(critic, learner.value_params, batch)
            )
        parts = updates.parts(batch, minibatches)

        def one_pass(carry, _):
            return jax.lax.scan(agent.update, carry, parts)

        learner, found = jax.lax.scan(one_pass, learner, length=loss.updates_per_batch)
        averaged = {name: jnp.mean(values) for name, values in found.items()}
        # A count, which is not averaged; the guard wants to know of how many.
        averaged["updates/skipped"] = found["updates/skipped"][-1, -1]
        averaged["updates/done"] = jnp.asarray(found["loss"].size, jnp.float32)
        number = state.step + 1
        kept = keep(state.behaviour_params, learner.params, number) if loss.staleness > 1 else ()
        return State(number, learner, kept), averaged

    return step


def collect(
    run: TaskRun,
    method: task_methods.Method,
    params: Params,
    index: Int[Array, " B"],
    key: PRNGKeyArray,
    given: TextRows | None = None,
) -> CompletionBatch:
    """Draws problems, samples completions of them and has them checked.

    Args:
      run: the run.
      method: what it needs.
      params: the policy that samples.
      index: numbers of the problems in the whole batch. [B].
      key: randomness; consumed.
      given: the rows of a table, with completions or without; None to draw problems. [B, ...].

    Returns:
      The batch.
    """
    train, task = run.config.train, run.task
    draw_key, sample_key = jax.random.split(key)
    problems, weight = run.problems(draw_key, index, given)
    if given is not None and given.stored is not None:
        return _of_stored(run, params, problems, weight, index, given.stored)
    if not method.thinks:
        assert not isinstance(task, TextTask)
        empty = task_rollouts.no_chains(problems, index=index, weight=weight)
        return task_rollouts.with_answers(task, problems, empty)
    if isinstance(task, LongFormTask) or method.on_answers:
        assert not isinstance(task, TextTask)
        assert task.marker is not None
        stop_token, most = task.marker, task.max_chain
    else:
        stop_token, most = task.end_token, task.max_new_tokens
    sample = functools.partial(
        task_rollouts.generate,
        run.model,
        resharding.to_generation(run.mesh, params),
        problems,
        index,
        sample_key,
        max_new_tokens=most,
        stop_token=stop_token,
    )
    completion = sample(group_size=train.group_size, temperature=train.temperature)
    batch = task_rollouts.as_batch(
        problems, completion, group_size=train.group_size, index=index, weight=weight
    )
    if method.on_answers:
        assert not isinstance(task, TextTask)
        return task_rollouts.with_answers(task, problems, batch)
    assert not isinstance(task, LongFormTask)
    checked = task_rollouts.check(task, problems, completion)
    batch = batch._replace(
        rewards=checked.rewards,
        answers=checked.answers,
        correct_answers=jax.vmap(task.correct_answer)(problems),
    )
    if not method.needs_greedy:
        return batch
    greedy = task_rollouts.check(task, problems, sample(group_size=1, temperature=0.0))
    return batch._replace(greedy_rewards=greedy.rewards[:, 0])


def _of_stored(
    run: TaskRun,
    params: Params,
    problems: TokenProblem,
    weight: Float[Array, " B"],
    index: Int[Array, " B"],
    stored: Stored,
) -> CompletionBatch:
    """Completions of another policy; where its log-probabilities are not known, as if by params."""
    assert isinstance(run.task, TextTask)
    zeros = jnp.zeros(stored.tokens.shape, jnp.float32)
    known = zeros if stored.log_probs is None else stored.log_probs
    rows = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (stored.tokens, known, known, stored.mask))
    batch = task_rollouts.as_batch(
        problems,
        sampling.Completion(*rows),
        group_size=stored.tokens.shape[1],
        index=index,
        weight=weight,
    )
    if stored.log_probs is None:
        found = completions.token_log_probs(run.model, params, batch, chunk_size=run.chunk_size)
        batch = batch._replace(behaviour_log_probs=jnp.where(batch.mask != 0, found, 0.0))
    return batch._replace(
        rewards=stored.rewards,
        answers=stored.answers,
        correct_answers=jax.vmap(run.task.correct_answer)(problems),
    )
