"""Dry runs of `align` and `reason`: the steps that they train with, as shapes and without data.

A published size takes the place of the config's network; rows and tokens come from the config or
from the simulation. Tasks and judges that only make numbers of a batch are left out of a step whose
length is not their own: what remains samples, scores and learns as the run does.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bellmax.agents import (
    PreferenceBatch,
    PromptBatch,
    judges,
    networks,
    sampling,
)
from bellmax.envs.token_tasks import TokenProblem, TokenTask
from bellmax.experiments import (
    align_config,
    align_stages,
    dry_run,
    errors,
    judging,
    language_config,
    mesh,
    model_sizes,
    numbered,
    pretrained,
    reason_config,
    reason_methods,
    reason_stages,
    simulated_devices,
    task_config,
    task_data,
    task_run,
    task_steps,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.dry_run import Program


def run(config: Any, simulation: config_lib.Simulation) -> dry_run.Report:
    """Prints what a step of a run needs on devices that are not there.

    Args:
      config: the run.
      simulation: the devices, and what takes the place of the config's sizes.

    Returns:
      What was printed.

    Raises:
      UserError: mesh, rows, size or devices do not fit, or this flow of data has no dry run.
    """
    chips = None
    if simulation.topology:
        chips = simulated_devices.topology_devices(simulation.topology)
    simulated_devices.force(simulation.devices if chips is None else len(chips))
    keys = config.train
    devices = mesh.of_config(keys)
    if chips is not None:
        devices = simulated_devices.on_topology(devices, chips)
    program = make_program(config, simulation, devices)
    report = dry_run.examine(program, devices)
    dry_run.print_report(report)
    return report


def make_program(config: Any, simulation: config_lib.Simulation, devices: Mesh) -> Program:
    """Returns the step of the first loss or method of a run.

    Args:
      config: an `AlignConfig`, `ReasonConfig` or `TaskConfig`.
      simulation: what takes the place of the config's sizes.
      devices: the mesh.

    Returns:
      The step, as shapes.

    Raises:
      UserError: the config is wrong, or its flow of data has no dry run.
    """
    makers: dict[type, Callable[..., Program]] = {
        align_config.AlignConfig: _pairs,
        reason_config.ReasonConfig: _duels,
        task_config.TaskConfig: _completions,
    }
    if type(config) not in makers:
        raise errors.UserError(
            f"There is no dry run of data.source {config.data.source!r}; of reason's flows, "
            f"prompts with a judge and {task_config.SOURCE!r} have one."
        )
    return makers[type(config)](config, simulation, devices)


def _network(
    config: Any, simulation: config_lib.Simulation, vocab_size: int
) -> networks.TransformerConfig:
    if simulation.model_size:
        return model_sizes.shape(simulation.model_size)
    return pretrained.network_shape(config.model, vocab_size)


def _name(config: Any, simulation: config_lib.Simulation, method: str, network: Any) -> str:
    size = simulation.model_size or config.model.checkpoint or "the config's network"
    params = jax.eval_shape(functools.partial(networks.init, network), _key())
    return f"{method}; {size}, {networks.num_parameters(params):,} parameters"


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _array(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _pairs(
    config: align_config.AlignConfig, simulation: config_lib.Simulation, devices: Mesh
) -> Program:
    del devices
    align_config.check(config)
    tokenizer = pretrained.make_tokenizer(config)
    network = _network(config, simulation, tokenizer.vocab_size)
    loss, beta = config.loss.names[0], config.loss.betas[0]
    agent = align_stages.make_agent(config, network, loss, beta)
    rows = simulation.rows or config.train.batch_size
    length = simulation.length or config.data.max_length
    tokens, mask = _array(jnp.int32, rows, length), _array(bool, rows, length)
    scores = None if config.train.live_reference else _array(jnp.float32, rows)
    batch = PreferenceBatch(
        chosen_tokens=tokens,
        rejected_tokens=tokens,
        chosen_mask=mask,
        rejected_mask=mask,
        chosen_reference_log_probs=scores,
        rejected_reference_log_probs=scores,
        index=_array(jnp.int32, rows),
        weight=_array(jnp.float32, rows),
    )
    name = _name(config, simulation, f"{rows} pairs x {length} tokens, {loss}", network)
    return Program(name, jax.eval_shape(agent.init, _key()), batch, agent.update)


def _blank_task(prompt: int, completion: int) -> TokenTask:
    """A task of prompts and completions of so many tokens, in which every completion fails."""

    def row(problem, *_):
        del problem
        return jnp.zeros(completion, jnp.int32), jnp.ones(completion)

    def sample(key, difficulty):
        del difficulty
        tokens = jax.random.randint(key, (prompt,), 0, 2)
        return TokenProblem(tokens, jnp.ones(prompt), jnp.zeros((), jnp.int32))

    return TokenTask(
        vocabulary=("<pad>", "<end>", "#"),
        marker=2,
        max_prompt=prompt,
        max_new_tokens=completion,
        max_answer=1,
        max_difficulty=1,
        sample=sample,
        demonstration=row,
        reference=row,
        verify=lambda problem, tokens, mask: jnp.zeros(()),
        answer=lambda problem, tokens, mask: jnp.zeros((), jnp.int32),
        correct_answer=lambda problem: jnp.zeros((), jnp.int32),
    )


def _completions(
    config: task_config.TaskConfig, simulation: config_lib.Simulation, devices: Mesh
) -> Program:
    task_config.check(config)
    task: task_data.Task = task_data.make_task(config.data)
    if simulation.length:
        # Half of a row is the prompt.
        completion = simulation.length // 2
        task = _blank_task(simulation.length - completion, completion)
    network = _network(config, simulation, task.vocab_size)
    run = task_run.TaskRun(
        config=config,
        workdir=pathlib.Path(),
        task=task,
        network=network,
        model=language_config.make_model(network),
        mesh=devices,
        held_out=jax.eval_shape(task.sample, _key(), 1),
    )
    loss, learner = config.loss, task_steps.make_learner(run, 0)

    def start(key: Any) -> task_steps.State:
        behaviour = networks.init(network, key) if loss.staleness > 1 else ()
        return task_steps.State(jnp.zeros((), jnp.int32), learner.agent.init(key), behaviour)

    rows, group = simulation.rows or config.train.batch_size, config.train.group_size
    shape = f"{rows} prompts x {group} completions, {task.max_prompt} + {task.max_new_tokens}"
    return Program(
        _name(config, simulation, f"{shape} tokens, {loss.names[0]}", network),
        jax.eval_shape(start, _key()),
        numbered.Rows(_array(jnp.int32, rows)),
        task_steps.make_step(run, learner),
    )


def _judge(
    kind: str, network: networks.TransformerConfig, rank: int
) -> tuple[Callable[[Any], Any], judging.Judge]:
    """A judge as large as the policy, and what makes its parameters; ties where it learns none."""
    hidden_states = functools.partial(networks.hidden_states, network)
    common: dict[str, Any] = {
        "init_network": functools.partial(networks.init, network),
        "embed_dim": network.embed_dim,
    }
    if kind == "known":
        return lambda key: (), judging.Judge((), lambda _, prompts, *sides: prompts.weight * 0.5)
    if kind == "pairwise":
        init = functools.partial(judges.pairwise.init_params, rank=rank, **common)
        decide = functools.partial(judges.pairwise_preferences, hidden_states=hidden_states)
    else:
        init = functools.partial(judges.bradley_terry.init_params, **common)
        decide = functools.partial(judges.bradley_terry_preferences, hidden_states=hidden_states)

    def preferences(params, prompts, first, second):
        rows = [sampling.join(prompts.tokens, c, prompt_mask=prompts.mask) for c in (first, second)]
        return decide(params, *rows[0], *rows[1])

    return init, judging.Judge((), preferences)


def _duels(
    config: reason_config.ReasonConfig, simulation: config_lib.Simulation, devices: Mesh
) -> Program:
    reason_config.check(config)
    tokenizer = pretrained.make_tokenizer(config)
    network = _network(config, simulation, tokenizer.vocab_size)
    model, train, loss = language_config.make_model(network), config.train, config.loss
    options = reason_methods.MethodOptions(
        tau=loss.taus[0],
        eta=loss.eta,
        mixture=loss.mixture,
        average_decay=loss.average_decay,
        iteration_steps=loss.iteration_steps,
    )
    method = reason_methods.make_method(loss.names[0], model, options)
    rows, length = simulation.rows or train.batch_size, simulation.length or config.data.max_length
    new_tokens = length // 2 if simulation.length else train.max_new_tokens
    if new_tokens >= length:
        raise errors.UserError(
            f"config.data.max_length must exceed config.train.max_new_tokens {new_tokens}, got "
            f"{length}."
        )
    generation = {"max_new_tokens": new_tokens, "stop_tokens": (tokenizer.end_id,)}
    agent = reason_stages.make_agent(config, network, method, **generation)
    kind = "bradley_terry" if method.on_rewards else loss.judge
    init_judge, judge = _judge(kind, network, config.model.judge_rank)
    duel = functools.partial(
        reason_stages.duel,
        method=method,
        judge=judge,
        num_opponents=train.num_opponents,
        mesh=devices,
        **generation,
    )

    def start(key: Any) -> reason_stages.State:
        return reason_stages.State(agent.init(key), init_judge(key))

    prompt = length - new_tokens
    batch = PromptBatch(
        tokens=_array(jnp.int32, rows, prompt),
        mask=_array(bool, rows, prompt),
        index=_array(jnp.int32, rows),
        weight=_array(jnp.float32, rows),
    )
    shape = f"{rows} prompts x {train.num_opponents + 1} completions, {prompt} + {new_tokens}"
    return Program(
        _name(config, simulation, f"{shape} tokens, {loss.names[0]}", network),
        jax.eval_shape(start, _key()),
        batch,
        reason_stages.make_step(agent, duel),
    )
