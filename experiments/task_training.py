"""Training on token tasks: a supervised start, then one stage a method on its own completions.

    rows = train(TaskConfig(...), workdir)

A step draws problems, samples a group of completions of each, has them checked and takes one or
several updates on them: one program, in which generation reads the very weights that are trained.
"""

import functools
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax.agents import (
    Agent,
    CompletionBatch,
    Metrics,
    Params,
    SupervisedBatch,
    completions,
    critics,
    followers,
    language,
    networks,
    policy_gradient,
    supervised,
    updates,
)
from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import TokenProblem, TokenTask
from bellmax.experiments import (
    announcement,
    language_config,
    language_run,
    mesh,
    runner,
    task_config,
    task_data,
    task_evaluation,
    task_methods,
    task_report,
    task_rollouts,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.task_config import TaskConfig

_WARM_START = "warm_start"


class Rows(NamedTuple):
    """A step's problems before they are drawn.

    Attributes:
      index: their global numbers, which with the step's key decide their randomness. [B].
    """

    # Fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Any


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


class TaskRun(NamedTuple):
    """What every stage of a run shares.

    Attributes:
      config: the run's keys.
      workdir: folder of the run.
      task: the task.
      network: the network's shape.
      model: the network as functions.
      mesh: the devices.
      held_out: problems of the evaluation.
    """

    config: TaskConfig
    workdir: pathlib.Path
    task: task_data.Task
    network: networks.TransformerConfig
    model: language.LanguageModel
    mesh: Mesh
    held_out: TokenProblem

    def key(self, stage: str) -> PRNGKeyArray:
        """Returns a stage's root key, by its name: a method trains alike alone and among others."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(stage.encode()))

    def stage(self, name: str, num_steps: int, batch_size: int) -> dict[str, Any]:
        """Returns what all stages tell the runner."""
        train = self.config.train
        share = batch_size // jax.process_count()
        first = jax.process_index() * share
        return {
            "name": name,
            "workdir": self.workdir,
            "batches": runner.SameBatches(Rows(np.arange(first, first + share, dtype=np.int32))),
            "schedule": runner.Schedule(
                num_steps=num_steps,
                log_every=train.log_every,
                evaluate_every=train.evaluate_every,
                checkpoint_every=train.checkpoint_every,
                keep_checkpoints=train.keep_checkpoints,
            ),
            "run_key": self.key(name),
            "mesh": self.mesh,
        }


def prepare(config: TaskConfig, workdir: pathlib.Path) -> TaskRun:
    """Finds in a second what would else be found after the warm start.

    Args:
      config: the run.
      workdir: its folder.

    Returns:
      The run, ready to train.

    Raises:
      UserError: the config is wrong.
    """
    task_config.check(config)
    task = task_data.make_task(config.data)
    network = language_config.make_network(config.model, task.vocab_size)
    train, loss = config.train, config.loss
    for rate in (train.warm_start_learning_rate, *loss.learning_rates):
        language_run.make_stage_optimizer(config, 1, rate or config.optimizer.learning_rate)
    for name, beta in zip(loss.names, loss.betas, strict=True):
        task_methods.make_method(name, beta, loss, task)
    return TaskRun(
        config=config,
        workdir=workdir,
        task=task,
        network=network,
        model=language_config.make_model(network),
        mesh=mesh.make_mesh(data=train.mesh_data, fsdp=train.mesh_fsdp, tensor=train.mesh_tensor),
        held_out=task_data.held_out(task, config.data, jax.random.key(config.seed)),
    )


def train(config: TaskConfig, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains every method, or what is left of it, and writes table and figures.

    Args:
      config: the run.
      workdir: its folder, which exists; receives checkpoints, `metrics.jsonl`, TensorBoard events,
        `result.json`, `learning_curves.png` and `samples.txt`.

    Returns:
      The final table, one row a policy, the warm start first.

    Raises:
      UserError: the config is wrong, training has diverged, or a checkpoint does not fit.
    """
    run = prepare(config, workdir)
    _announce(run)
    evaluation = task_evaluation.make(
        run.model, run.task, run.held_out, config.train, run.key("evaluation")
    )
    reference = warm_start(run, evaluation)
    policies = {_WARM_START: reference}
    for place, name in enumerate(config.loss.names):
        policies[name] = optimise(run, place, reference, evaluation)
    rows = [{"method": name, **evaluation(params, reference)} for name, params in policies.items()]
    task_report.save(workdir, rows, config.loss.names)
    sampled = {name: evaluation.completions(params) for name, params in policies.items()}
    if jax.process_index() == 0:
        task_report.save_samples(workdir / "samples.txt", run.task, run.held_out, sampled)
    return rows


def _announce(run: TaskRun) -> None:
    data, train, loss = run.config.data, run.config.train, run.config.loss
    params = jax.eval_shape(functools.partial(networks.init, run.network), jax.random.key(0))
    age = {0: "the reference's", 1: "the current policy's"}.get(
        loss.staleness, f"those of a policy up to {loss.staleness} steps old"
    )
    lines = (
        f"policy: {networks.num_parameters(params):,} parameters, vocabulary "
        f"{run.network.vocab_size}",
        f"task: {data.task} of difficulty {data.difficulty}; {len(run.held_out.prompt)} problems "
        f"held out, {train.evaluation_samples} completions of each in an evaluation",
        f"steps: {train.warm_start_steps} of warm start, then {train.num_steps} each of "
        f"{', '.join(loss.names)}; {train.batch_size} problems a step, {train.group_size} "
        f"completions each, {age}; {loss.updates_per_batch * loss.minibatches} updates a step",
    )
    announcement.announce(lines, mesh=run.mesh, workdir=run.workdir)


def warm_start(run: TaskRun, evaluation: task_evaluation.Evaluation) -> Params:
    """Trains the reference: maximum likelihood of worked solutions.

    Args:
      run: the run.
      evaluation: of policies.

    Returns:
      Its parameters, on the mesh.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    keys = run.config.train
    agent = supervised.make(
        run.model,
        language_run.make_stage_optimizer(
            run.config, keys.warm_start_steps, keys.warm_start_learning_rate
        ),
        init_params=language_run.compiled_init(run.network),
    )

    def step(state: supervised.State, batch: Rows, key: PRNGKeyArray):
        drawn = task_data.draw(run.task, key, batch.index, difficulty=run.config.data.difficulty)
        tokens, mask = task_data.solutions(run.task, drawn.problem)
        rows = SupervisedBatch(tokens, mask, index=batch.index, weight=drawn.weight)
        return agent.update(state, rows, key)

    state = runner.run_stage(
        **run.stage(_WARM_START, keys.warm_start_steps, keys.warm_start_batch_size),
        state=agent.init(run.key(_WARM_START)),
        train_step=step,
        evaluate=lambda state, step: evaluation(state.params, state.params),
    )
    return state.params


def optimise(
    run: TaskRun, place: int, reference: Params, evaluation: task_evaluation.Evaluation
) -> Params:
    """Trains one method from the warm start.

    Args:
      run: the run.
      place: of the method among `config.loss.names`.
      reference: parameters of the warm start, which are also the reference.
      evaluation: of policies.

    Returns:
      The policy's parameters, on the mesh.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    config, loss = run.config, run.config.loss
    name = loss.names[place]
    method = task_methods.make_method(name, loss.betas[place], loss, run.task)
    num_updates = config.train.num_steps * loss.updates_per_batch * loss.minibatches
    critic = None
    init_params = language_run.compiled_init(run.network)
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
    )
    start = agent.init(run.key(name), params=reference)
    behaviour = updates.copy_tree(reference) if loss.staleness > 1 else ()
    state = runner.run_stage(
        **run.stage(name, config.train.num_steps, config.train.batch_size),
        state=State(jnp.zeros((), jnp.int32), start, behaviour),
        train_step=make_step(run, method, agent, critic),
        evaluate=lambda state, step: evaluation(state.agent.params, state.agent.reference_params),
    )
    return state.agent.params


def make_step(
    run: TaskRun, method: task_methods.Method, agent: Agent, critic: critics.Critic | None
) -> Callable[[State, Rows, PRNGKeyArray], tuple[State, Metrics]]:
    """Returns draw, sample, check and update as one function, which becomes one program.

    Args:
      run: the run.
      method: what is learnt.
      agent: the agent.
      critic: the agent's, or None.

    Returns:
      `(state, rows, key) -> (state, metrics)`.
    """
    loss, minibatches = run.config.loss, run.config.loss.minibatches
    keep = followers.every(max(loss.staleness, 1))

    def step(state: State, rows: Rows, key: PRNGKeyArray):
        learner = state.agent
        behaviour = {0: learner.reference_params, 1: learner.params}.get(
            loss.staleness, state.behaviour_params
        )
        batch = collect(run, method, behaviour, rows.index, key)
        batch = batch._replace(
            reference_log_probs=completions.token_log_probs(
                run.model, learner.reference_params, batch
            )
        )
        if critic is not None:
            batch = batch._replace(
                behaviour_values=completions.token_values(critic, learner.value_params, batch)
            )
        # Every so many-th row, so that each device keeps its share of a part.
        parts = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf.reshape(-1, minibatches, *leaf.shape[1:]), 1, 0), batch
        )

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
) -> CompletionBatch:
    """Draws problems, samples completions of them and has them checked.

    Args:
      run: the run.
      method: what it needs.
      params: the policy that samples.
      index: numbers of the problems in the whole batch. [B].
      key: randomness; consumed.

    Returns:
      The batch.
    """
    train, task = run.config.train, run.task
    draw_key, sample_key = jax.random.split(key)
    problems, weight = task_data.draw(task, draw_key, index, difficulty=run.config.data.difficulty)
    if not method.thinks:
        empty = task_rollouts.no_chains(problems, index=index, weight=weight)
        return task_rollouts.with_answers(task, problems, empty)
    stop_token = token_tasks.END
    if method.on_answers:
        assert task.marker is not None
        stop_token = task.marker
    sample = functools.partial(
        task_rollouts.generate,
        run.model,
        params,
        problems,
        index,
        sample_key,
        max_new_tokens=task.max_chain if method.on_answers else task.max_new_tokens,
        stop_token=stop_token,
    )
    completion = sample(group_size=train.group_size, temperature=train.temperature)
    batch = task_rollouts.as_batch(
        problems, completion, group_size=train.group_size, index=index, weight=weight
    )
    if method.on_answers:
        return task_rollouts.with_answers(task, problems, batch)
    assert isinstance(task, TokenTask)
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


def run_config(config: Any, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains what a config says, in a folder of its own.

    Args:
      config: the run's keys, a `ConfigDict`.
      workdir: its folder, made if it is missing; one of other settings is refused.

    Returns:
      As `train`.

    Raises:
      UserError: as `train`, or the folder holds another run.
    """
    parsed = config_lib.to_dataclass(TaskConfig, config)
    config_lib.save_run_config(workdir, config)
    return train(parsed, workdir)
