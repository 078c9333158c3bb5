"""The stages of an `align` run after its warm start: one a loss."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.agents import Agent, Params, networks, preference
from bellmax.experiments import (
    align_config,
    errors,
    evaluation,
    gold,
    language_config,
    language_run,
    preference_losses,
    runner,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.data import pipeline

AlignRun = language_run.Run[align_config.AlignConfig]


def prepare(config: align_config.AlignConfig, workdir: pathlib.Path) -> AlignRun:
    """Finds in a second what would else be found after the warm start, and loads the data.

    Args:
      config: the run.
      workdir: its folder.

    Returns:
      The run, ready to train.

    Raises:
      UserError: data or config are wrong.
    """
    align_config.check(config)
    train = config.train
    language_run.make_stage_optimizer(config, train.num_steps, config.optimizer.learning_rate)
    pair = preference.PairLogProbs(*[jnp.ones(1)] * len(preference.PairLogProbs._fields))
    for name, beta in zip(config.loss.names, config.loss.betas, strict=True):
        with config_lib.user_errors("config.loss"):
            jax.eval_shape(
                preference_losses.make_pair_loss(name, _loss_options(config, beta)), pair
            )
    return language_run.prepare(config, workdir)


def _loss_options(config: align_config.AlignConfig, beta: float) -> preference_losses.LossOptions:
    return preference_losses.LossOptions(
        beta=beta, label_smoothing=config.loss.label_smoothing, sft_weight=config.loss.sft_weight
    )


def make_agent(
    config: align_config.AlignConfig,
    network: networks.TransformerConfig,
    name: str,
    beta: float,
) -> Agent:
    """Returns the agent of one loss.

    Args:
      config: the run.
      network: the network's shape.
      name: the loss's name.
      beta: its beta.

    Returns:
      The agent.

    Raises:
      UserError: a key is wrong.
    """
    train = config.train
    return preference.make(
        language_config.make_model(network),
        language_run.make_stage_optimizer(config, train.num_steps, config.optimizer.learning_rate),
        loss_fn=preference_losses.make_pair_loss(name, _loss_options(config, beta)),
        init_params=language_run.compiled_init(network),
        live_reference=train.live_reference,
        reward_scale=beta,
        chunk_size=config.model.chunk_size or None,
        accumulate_steps=train.accumulate_steps,
    )


def optimise(run: AlignRun, name: str, beta: float, reference: Params, cached: Any) -> Params:
    """Trains one loss from the warm start.

    Args:
      run: the run.
      name: the loss's name.
      beta: its beta.
      reference: parameters of the warm start, which are also the reference.
      cached: reference log-probabilities of the training pairs, or None for a live reference.

    Returns:
      The policy's parameters, on the mesh.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    train = run.config.train
    agent = make_agent(run.config, run.network, name, beta)
    key = run.key(name)
    batches = pipeline.make_iterator(
        run.data.train,
        seed=run.config.seed + 1,
        num_steps=train.num_steps,
        reference_log_probs=cached,
        **run.batching,
    )
    reference_completions = None if run.gold is None else run.gold.completion_log_probs(reference)

    def evaluate(state: preference.State, step: int) -> Mapping[str, float]:
        del step
        score = run.score_pairs(state.params, reference, run.held_out, beta)
        row = {f"held_out/{field}": value for field, value in score._asdict().items()}
        row["kl/reference"] = row.pop("held_out/kl_per_completion")
        if run.gold is not None and reference_completions is not None:
            policy_completions = run.gold.completion_log_probs(state.params)
            exact = gold.score(run.gold, policy_completions, reference_completions)
            row |= {f"gold/{field}": value for field, value in exact._asdict().items()}
            row["kl/data_prefixes"] = row["kl/reference"]
            row["kl/reference"] = row.pop("gold/kl")
        return row

    return runner.run_stage(
        name=name,
        workdir=run.workdir,
        state=agent.init(key, params=reference),
        train_step=agent.update,
        batches=batches,
        schedule=run.schedule(train.num_steps),
        run_key=key,
        mesh=run.mesh,
        evaluate=evaluate,
    ).params


def cached_reference(run: AlignRun, reference: Params) -> pipeline.ReferenceLogProbs:
    """Returns reference log-probabilities of the training pairs, computed once a run.

    Args:
      run: the run.
      reference: the reference's parameters.

    Returns:
      Log-probabilities of chosen and of rejected completions, nats, by row; later calls read the
      workdir.

    Raises:
      UserError: the workdir holds those of another number of pairs.
    """
    path = run.workdir / "reference_log_probs.npz"
    if path.exists():
        with np.load(path) as stored:
            chosen, rejected = stored["chosen"], stored["rejected"]
        if len(chosen) != len(run.data.train):
            raise errors.UserError(
                f"{path} holds {len(chosen)} pairs and the data {len(run.data.train)}: the data "
                "file has changed since this run began. Give another --workdir."
            )
        return chosen, rejected
    chosen, rejected = evaluation.reference_log_probs(
        run.model,
        reference,
        pipeline.evaluation_batches(run.data.train, **run.batching),
        len(run.data.train),
        mesh=run.mesh,
        chunk_size=run.chunk_size,
    )
    if jax.process_index() == 0:
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, chosen=chosen, rejected=rejected)
        partial.replace(path)
    return chosen, rejected
