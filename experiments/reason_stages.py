"""The stages of a `reason` run after its warm start: a judge, then one stage a method."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from bellmax.agents import (
    Agent,
    DuelBatch,
    Metrics,
    Params,
    PromptBatch,
    nash,
    networks,
    opponents,
    sampling,
    updates,
)
from bellmax.experiments import (
    arena,
    errors,
    judging,
    language_config,
    language_run,
    reason_config,
    reason_methods,
    resharding,
    runner,
    step_program,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments import mesh as mesh_lib
from bellmax.experiments.data import pipeline
from bellmax.experiments.data import prompts as prompts_lib

ReasonRun = language_run.Run[reason_config.ReasonConfig]


class State(NamedTuple):
    """The agent and the judge of its duels, which does not change.

    Attributes:
      agent: the agent's state.
      judge_params: the judge's parameters, a copy.
    """

    agent: nash.State
    judge_params: Params

    @property
    def step(self) -> Int[Array, ""]:
        """Optimiser steps taken so far."""
        return self.agent.step


def prepare(config: reason_config.ReasonConfig, workdir: pathlib.Path) -> ReasonRun:
    """Finds in a second what would else be found after the warm start, and loads the data.

    Args:
      config: the run.
      workdir: its folder.

    Returns:
      The run, ready to train.

    Raises:
      UserError: data or config are wrong.
    """
    reason_config.check(config)
    train = config.train
    language_run.make_stage_optimizer(config, train.num_steps, config.optimizer.learning_rate)
    language_run.make_stage_optimizer(config, train.judge_steps, train.judge_learning_rate)
    run = language_run.prepare(config, workdir)
    if run.data.embedded is not None:
        longest = run.data.embedded.bench.max_letters + 1
        if train.max_new_tokens != longest:
            raise errors.UserError(
                f"config.train.max_new_tokens must be {longest} on a bench, whose completions are "
                f"listed up to that length, got {train.max_new_tokens}."
            )
    for name, tau in zip(config.loss.names, config.loss.taus, strict=True):
        _method(run, name, tau)
    with config_lib.user_errors("config.train"):
        _evaluation_prompts(run)
    return run


def _method(run: ReasonRun, name: str, tau: float) -> reason_methods.Method:
    loss = run.config.loss
    options = reason_methods.MethodOptions(
        tau=tau,
        eta=loss.eta,
        mixture=loss.mixture,
        average_decay=loss.average_decay,
        iteration_steps=loss.iteration_steps,
    )
    return reason_methods.make_method(name, run.model, options)


def generation(run: ReasonRun) -> dict[str, Any]:
    """Returns the arguments of `sampling.generate` that all samples of a run share.

    Args:
      run: the run.

    Returns:
      Keyword arguments.
    """
    return {
        "max_new_tokens": run.config.train.max_new_tokens,
        "stop_tokens": (run.data.tokenizer.end_id,),
    }


def needs_reward(run: ReasonRun) -> bool:
    """Returns whether a method of the run learns from fitted rewards.

    Args:
      run: the run.
    """
    return any(
        _method(run, name, tau).on_rewards
        for name, tau in zip(run.config.loss.names, run.config.loss.taus, strict=True)
    )


def make_judges(run: ReasonRun, reference: Params) -> tuple[judging.Judge, judging.Judge | None]:
    """Returns the judge of duels, and the one that gives rewards where a method needs it.

    Args:
      run: the run.
      reference: the warm start's parameters.

    Returns:
      Two judges; the second may be None.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    kind = run.config.loss.judge
    if kind == "known":
        assert run.data.embedded is not None
        judge = judging.known(run.data.embedded)
    else:
        judge = judging.fitted(run, kind, reference)
    rewards = None
    if needs_reward(run):
        rewards = judging.fitted(run, "bradley_terry", reference, as_rewards=True)
    return judge, rewards


def make_arena(run: ReasonRun, reference: Params, judge: judging.Judge) -> arena.Arena:
    """Returns where policies meet: exact on a bench, sampled and judged elsewhere.

    Args:
      run: the run.
      reference: the warm start's parameters.
      judge: decides where completions are sampled.

    Returns:
      The arena.
    """
    if run.gold is not None and run.data.embedded is not None:
        return arena.ExactArena(run.data.embedded, run.gold, reference)
    law = opponents.policy(run.model)

    @functools.partial(step_program.jit_rows, mesh=run.mesh)
    def generate(params: Params, prompts: PromptBatch, key: Array) -> sampling.Completion:
        zero = jnp.zeros((), jnp.int32)
        state = nash.State(resharding.to_generation(run.mesh, params), (), (), (), zero)
        return opponents.sample(law, state, prompts, key, **generation(run))

    batches = [mesh_lib.place_batch(run.mesh, batch) for batch in _evaluation_prompts(run)]
    return arena.SampledArena(
        run.model, batches, judge, reference, generate, run.key("arena"), run.mesh
    )


def _evaluation_prompts(run: ReasonRun) -> list[PromptBatch]:
    """The first held-out prompts, in order; the last batch is filled with rows of weight 0."""
    held_out = run.data.held_out
    batching = {**run.batching}
    plan = pipeline.BatchPlan(
        held_out.prompt_lengths[: run.config.train.num_evaluation_prompts],
        batch_size=batching["batch_size"],
        bucket_lengths=prompts_lib.bucket_lengths(held_out, batching["bucket_lengths"]),
        shuffle=False,
    )
    return [
        prompts_lib.prompt_batch(
            held_out,
            pipeline.local_rows(
                rows,
                process_index=batching["process_index"],
                process_count=batching["process_count"],
            ),
        )
        for rows in plan.epoch(0)
    ]


def _repeat(prompts: PromptBatch, times: int) -> PromptBatch:
    """Every prompt several times in a row; each copy has an index, so randomness, of its own."""
    tokens, mask = (jnp.repeat(x, times, axis=0) for x in (prompts.tokens, prompts.mask))
    assert prompts.index is not None
    index = (prompts.index[:, None] * times + jnp.arange(times)).reshape(-1)
    return PromptBatch(tokens, mask, index)


def _column(completions: sampling.Completion, times: int, place: int) -> sampling.Completion:
    """The completion at one place among those of each prompt."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, times, *leaf.shape[1:])[:, place], completions
    )


def duel(
    state: State,
    prompts: PromptBatch,
    key: Array,
    *,
    method: reason_methods.Method,
    judge: judging.Judge,
    num_opponents: int,
    mesh: Mesh,
    **generation: Any,
) -> DuelBatch:
    """Samples and judges the duels of a step.

    Where both sides follow one law, every completion of a prompt meets all others, and the win
    rates of the pair are over those.

    Args:
      state: agent and judge.
      prompts: the prompts.
      key: randomness; consumed.
      method: who sends completions.
      judge: decides.
      num_opponents: completions K that the first one meets.
      mesh: the devices; parameters sample in the generation layout of `resharding`.
      **generation: arguments of `sampling.generate`.

    Returns:
      The duels.
    """
    count = num_opponents
    # Whoever sends completions; the optimiser does not.
    agent = resharding.to_generation(mesh, state.agent._replace(opt_state=()))
    first_key, second_key = jax.random.split(key)
    if method.first is method.second:
        sampled = opponents.sample(
            method.first, agent, _repeat(prompts, count + 1), first_key, **generation
        )
        everyone = [_column(sampled, count + 1, place) for place in range(count + 1)]
        first, rivals = everyone[0], everyone[1:]
    else:
        first = opponents.sample(method.first, agent, prompts, first_key, **generation)
        sampled = opponents.sample(
            method.second, agent, _repeat(prompts, count), second_key, **generation
        )
        rivals = [_column(sampled, count, place) for place in range(count)]

    def wins(one: sampling.Completion, others: list[sampling.Completion]) -> list[Array]:
        decide = functools.partial(judge.preferences, state.judge_params, prompts, one)
        return [decide(other) for other in others]

    second = rivals[0]
    of_first = wins(first, rivals)
    of_second = [1 - of_first[0], *wins(second, rivals[1:])]
    (first_tokens, first_mask), (second_tokens, second_mask) = (
        sampling.join(prompts.tokens, one, prompt_mask=prompts.mask) for one in (first, second)
    )
    return DuelBatch(
        first_tokens=first_tokens,
        second_tokens=second_tokens,
        first_mask=first_mask,
        second_mask=second_mask,
        preferences=of_first[0],
        first_win_rates=jnp.mean(jnp.stack(of_first), axis=0),
        second_win_rates=jnp.mean(jnp.stack(of_second), axis=0),
        index=prompts.index,
        weight=prompts.weight,
    )


def make_step(
    agent: Agent, duel_fn: Callable[[State, PromptBatch, Array], DuelBatch]
) -> Callable[[State, PromptBatch, Array], tuple[State, Metrics]]:
    """Returns sample, judge and update as one function, which the loop compiles as one program.

    Args:
      agent: the agent.
      duel_fn: `duel` with all but its first three arguments bound.

    Returns:
      `(state, prompts, key) -> (state, metrics)`.
    """

    def step(state: State, prompts: PromptBatch, key: Array):
        batch = duel_fn(state, prompts, key)
        learnt, metrics = agent.update(state.agent, batch)
        return State(learnt, state.judge_params), metrics

    return step


def make_agent(
    config: reason_config.ReasonConfig,
    network: networks.TransformerConfig,
    method: reason_methods.Method,
    **generation: Any,
) -> Agent:
    """Returns the agent of a method.

    Args:
      config: the run.
      network: the network's shape.
      method: what is learnt.
      **generation: arguments of `sampling.generate`.

    Returns:
      The agent.

    Raises:
      UserError: a key of `config.optimizer` is wrong.
    """
    train = config.train
    return nash.make(
        language_config.make_model(network),
        language_run.make_stage_optimizer(config, train.num_steps, config.optimizer.learning_rate),
        loss_fn=method.loss_fn,
        init_params=language_run.compiled_init(network),
        opponent_rule=method.opponent_rule,
        accumulate_steps=train.accumulate_steps,
        **generation,
    )


def optimise(
    run: ReasonRun,
    name: str,
    tau: float,
    reference: Params,
    judge: judging.Judge,
    rewards: judging.Judge | None,
    meeting: arena.Arena,
) -> Params:
    """Trains one method from the warm start.

    Args:
      run: the run.
      name: the method's name.
      tau: its tau.
      reference: parameters of the warm start, which are also the reference.
      judge: decides its duels.
      rewards: decides them for a method that learns from rewards.
      meeting: where it is evaluated.

    Returns:
      The policy's parameters, on the mesh.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    config, train = run.config, run.config.train
    method = _method(run, name, tau)
    decides = judge
    if method.on_rewards:
        assert rewards is not None
        decides = rewards
    agent = make_agent(config, run.network, method, **generation(run))
    duel_fn = functools.partial(
        duel,
        method=method,
        judge=decides,
        num_opponents=train.num_opponents,
        mesh=run.mesh,
        **generation(run),
    )
    key = run.key(name)
    batching = {
        **run.batching,
        "bucket_lengths": prompts_lib.bucket_lengths(
            run.data.train, run.config.data.bucket_lengths
        ),
    }
    state = runner.run_stage(
        name=name,
        workdir=run.workdir,
        state=State(agent.init(key, params=reference), updates.copy_tree(decides.params)),
        train_step=make_step(agent, duel_fn),
        batches=prompts_lib.make_prompt_iterator(
            run.data.train, seed=config.seed + 1, num_steps=train.num_steps, **batching
        ),
        schedule=run.schedule(train.num_steps),
        run_key=key,
        mesh=run.mesh,
        evaluate=lambda state, step: meeting.against_reference(state.agent.params),
    )
    return state.agent.params
