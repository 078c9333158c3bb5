"""Training on token tasks: a supervised start, then one stage a method on its own completions.

    rows = train(TaskConfig(...), workdir)

A step draws problems, samples a group of completions of each, has them checked and takes one or
several updates on them: one program, in which generation reads the very weights that are trained.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from bellmax.agents import (
    Params,
    SupervisedBatch,
    networks,
    supervised,
    updates,
)
from bellmax.experiments import (
    announcement,
    language_run,
    pretrained,
    runner,
    task_data,
    task_evaluation,
    task_report,
    task_run,
    task_steps,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.numbered import Rows
from bellmax.experiments.task_config import TaskConfig
from bellmax.experiments.text_data import TextRows

_WARM_START = "warm_start"


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
    return train_run(task_run.prepare(config, workdir))


def train_run(run: task_run.TaskRun) -> list[dict[str, Any]]:
    """Trains every method of a run that is prepared, see `train`.

    Args:
      run: the run.

    Returns:
      The final table, one row a policy, the warm start first.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    config, workdir = run.config, run.workdir
    _announce(run)
    evaluation = task_evaluation.make(
        run.model,
        run.task,
        run.held_out,
        config.train,
        run.key("evaluation"),
        run.mesh,
        chunk_size=run.chunk_size,
    )
    reference = warm_start(run, evaluation)
    policies = {_WARM_START: reference}
    for place, name in enumerate(config.loss.names):
        policies[name] = optimise(run, place, reference, evaluation)
        run.save_policy(name, policies[name])
    rows = [{"method": name, **evaluation(params, reference)} for name, params in policies.items()]
    task_report.save(workdir, rows, config.loss.names)
    sampled = {name: evaluation.completions(params) for name, params in policies.items()}
    if jax.process_index() == 0:
        task_report.save_samples(workdir / "samples.txt", run.task, run.held_out, sampled)
    return rows


def _announce(run: task_run.TaskRun) -> None:
    train, loss = run.config.train, run.config.loss
    params = jax.eval_shape(functools.partial(networks.init, run.network), jax.random.key(0))
    ages = {0: "the reference's", 1: "the current policy's"}
    age = ages.get(loss.staleness, f"those of a policy up to {loss.staleness} steps old")
    lines = (
        f"policy: {networks.num_parameters(params):,} parameters, vocabulary "
        f"{run.network.vocab_size}",
        run.about,
        f"evaluation: {len(run.held_out.prompt)} problems that are held out, "
        f"{train.evaluation_samples} completions of each",
        f"steps: {train.warm_start_steps} of warm start, then {train.num_steps} each of "
        f"{', '.join(loss.names)}; {train.batch_size} problems a step, {train.group_size} "
        f"completions each, {'stored' if run.stored else age}; "
        f"{loss.updates_per_batch * loss.minibatches} updates a step",
    )
    announcement.announce(lines, mesh=run.mesh, workdir=run.workdir)


def warm_start(run: task_run.TaskRun, evaluation: task_evaluation.Evaluation) -> Params:
    """Trains the reference: maximum likelihood of worked solutions.

    Of no steps at all, it is what the run starts from.

    Args:
      run: the run.
      evaluation: of policies.

    Returns:
      Its parameters, on the mesh.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    keys = run.config.train
    start = pretrained.load(run.config.model, run.mesh)
    if start is not None and not keys.warm_start_steps:
        return start
    agent = supervised.make(
        run.model,
        language_run.make_stage_optimizer(
            run.config, keys.warm_start_steps, keys.warm_start_learning_rate
        ),
        init_params=language_run.compiled_init(run.network),
        chunk_size=run.chunk_size,
        accumulate_steps=keys.accumulate_steps,
    )

    def step(state: supervised.State, batch: Rows | TextRows, key: PRNGKeyArray):
        # Of one stream the problems, of another whose solution is shown.
        draw_key, noise_key = jax.random.split(key)
        given = batch if isinstance(batch, TextRows) else None
        drawn = run.problems(draw_key, batch.index, given)
        is_swapped = None
        if keys.warm_start_noise:
            is_swapped = jax.vmap(
                lambda number: jax.random.bernoulli(
                    jax.random.fold_in(noise_key, number), keys.warm_start_noise
                )
            )(batch.index)
        tokens, mask = task_data.solutions(run.task, drawn.problem, is_swapped)
        rows = SupervisedBatch(tokens, mask, index=batch.index, weight=drawn.weight)
        return agent.update(state, rows, key)

    state = agent.init(run.key(_WARM_START), params=start)
    # The state has copies.
    del start
    state = runner.run_stage(
        **run.stage(_WARM_START, keys.warm_start_steps, keys.warm_start_batch_size, run.train),
        state=state,
        train_step=step,
        evaluate=lambda state, step: evaluation(state.params, state.params),
    )
    return state.params


def optimise(
    run: task_run.TaskRun, place: int, reference: Params, evaluation: task_evaluation.Evaluation
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
    learner = task_steps.make_learner(run, place, reference)
    start = learner.agent.init(run.key(name), params=reference)
    behaviour = updates.copy_tree(reference) if loss.staleness > 1 else ()
    state = runner.run_stage(
        **run.stage(name, config.train.num_steps, config.train.batch_size, run.stored or run.train),
        state=task_steps.State(jnp.zeros((), jnp.int32), start, behaviour),
        train_step=task_steps.make_step(run, learner),
        evaluate=lambda state, step: evaluation(state.agent.params, state.agent.reference_params),
    )
    return state.agent.params


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
