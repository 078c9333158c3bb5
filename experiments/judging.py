"""Judges of a run: the bench's own law, or one that is fitted to the pairs of the data."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.agents import Params, PromptBatch, judges, networks, sampling, updates
from bellmax.envs import cyclic_bench, gold_bench
from bellmax.experiments import language_run, reason_config, runner, step_program
from bellmax.experiments import mesh as mesh_lib
from bellmax.experiments.data import embedded, pipeline


class Judge(NamedTuple):
    """Who decides a duel.

    Attributes:
      params: what it has learnt, or `()`.
      preferences: `(params, prompts, first, second) -> [B]`, P(first beats second), or 1/2 plus a
        difference of rewards.
    """

    params: Params
    preferences: Callable[
        [Params, PromptBatch, sampling.Completion, sampling.Completion], Float[Array, " B"]
    ]


def known(bench: embedded.EmbeddedData) -> Judge:
    """Returns the law that labelled the pairs of a bench.

    Args:
      bench: the bench; its prompts have no padding.

    Returns:
      The judge.
    """

    def preferences(params, prompts, first, second):
        del params
        sides = (first.tokens, first.mask, second.tokens, second.mask)
        if bench.cyclic is not None:
            return cyclic_bench.preference_probs(bench.cyclic, prompts.tokens, *sides)
        rewards = [
            gold_bench.gold_reward(bench.bench, prompts.tokens, tokens, mask)
            for tokens, mask in (sides[:2], sides[2:])
        ]
        return gold_bench.preference_probs(*rewards)

    return Judge((), preferences)


def _fit(run: language_run.Run[reason_config.ReasonConfig], name: str, agent, judge_fn) -> Params:
    """Fits a judge and watches its held-out accuracy."""
    config, train = run.config, run.config.train
    key = run.key(f"judge_{name}")

    @functools.partial(step_program.jit_rows, mesh=run.mesh)
    def correct(params, batch):
        chosen = judge_fn(
            params,
            batch.chosen_tokens,
            batch.chosen_mask,
            batch.rejected_tokens,
            batch.rejected_mask,
        )
        right = jnp.where(chosen == 0.5, 0.5, chosen > 0.5)
        return updates.weighted_sum(right, batch.weight), batch.weight.sum()

    def evaluate(state: judges.State, step: int) -> Mapping[str, float]:
        del step
        sums = [
            jax.device_get(correct(state.params, mesh_lib.place_batch(run.mesh, batch)))
            for batch in run.held_out
        ]
        right, count = (float(sum(column)) for column in zip(*sums, strict=True))
        accuracy = right / count
        return {
            "held_out/accuracy": accuracy,
            "held_out/accuracy_stderr": (accuracy * (1 - accuracy) / count) ** 0.5,
        }

    state = runner.run_stage(
        name=f"judge_{name}",
        workdir=run.workdir,
        state=agent.init(key),
        train_step=agent.update,
        batches=pipeline.make_iterator(
            run.data.train, seed=config.seed + 2, num_steps=train.judge_steps, **run.batching
        ),
        schedule=run.schedule(train.judge_steps),
        run_key=key,
        mesh=run.mesh,
        evaluate=evaluate,
    )
    return state.params


def fitted(
    run: language_run.Run[reason_config.ReasonConfig],
    kind: str,
    reference: Params,
    *,
    as_rewards: bool = False,
) -> Judge:
    """Fits a judge to the training pairs, or restores it where a run has done so before.

    Args:
      run: the run.
      kind: "pairwise" or "bradley_terry".
      reference: the warm start's parameters, from which the judge's network starts.
      as_rewards: whether it returns 1/2 plus the difference of rewards (bradley_terry alone)
        instead of the sigmoid of that difference.

    Returns:
      The judge.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    config = run.config
    hidden_states = functools.partial(networks.hidden_states, run.network)
    optimizer = language_run.make_stage_optimizer(
        config, config.train.judge_steps, config.train.judge_learning_rate
    )
    common: dict[str, Any] = {
        "init_network": lambda key: updates.copy_tree(reference),
        "embed_dim": run.network.embed_dim,
        "accumulate_steps": config.train.accumulate_steps,
    }
    if kind == "pairwise":
        agent = judges.pairwise.make(
            hidden_states, optimizer, rank=config.model.judge_rank, **common
        )
        judge_fn = functools.partial(judges.pairwise_preferences, hidden_states=hidden_states)
    else:
        agent = judges.bradley_terry.make(hidden_states, optimizer, **common)
        judge_fn = functools.partial(judges.bradley_terry_preferences, hidden_states=hidden_states)
    params = _fit(run, kind, agent, judge_fn)

    def preferences(params, prompts, first, second):
        rows = [sampling.join(prompts.tokens, c, prompt_mask=prompts.mask) for c in (first, second)]
        if as_rewards:
            values = [judges.rewards(params, *row, hidden_states=hidden_states) for row in rows]
            return 0.5 + values[0] - values[1]
        return judge_fn(params, *rows[0], *rows[1])

    return Judge(params, preferences)
