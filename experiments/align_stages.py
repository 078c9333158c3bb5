"""The stages of an `align` run: data and network once, a warm start, then one stage a loss."""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bellmax.agents import Params, language, networks, preference, supervised
from bellmax.experiments import (
    align_config,
    errors,
    evaluation,
    gold,
    mesh,
    optimizers,
    preference_losses,
    runner,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.data import pipeline, sources
from bellmax.experiments.data import supervised as supervised_data

_WARM_START = "warm_start"


class Run(NamedTuple):
    """What every stage of a run shares.

    Attributes:
      config: the run's keys.
      workdir: folder of the run.
      data: encoded pairs.
      network: the network's shape.
      model: the network as functions.
      mesh: the devices.
      held_out: one ordered pass over the held-out pairs.
      score_pairs: from `evaluation.make_pair_evaluation`.
      gold: the exact evaluation, or None where there is no gold reward.
    """

    config: align_config.AlignConfig
    workdir: pathlib.Path
    data: sources.PreferenceData
    network: networks.TransformerConfig
    model: language.LanguageModel
    mesh: Mesh
    held_out: Sequence[Any]
    score_pairs: Any
    gold: gold.GoldEvaluator | None

    @property
    def chunk_size(self) -> int | None:
        """Tokens per chunk of the head, or None."""
        return self.config.model.chunk_size or None

    @property
    def batching(self) -> dict[str, Any]:
        """Arguments that all iterators share."""
        return {
            "batch_size": self.config.train.batch_size,
            "bucket_lengths": self.config.data.bucket_lengths,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    def schedule(self, num_steps: int) -> runner.Schedule:
        """Returns how often things happen in a stage of so many steps."""
        train = self.config.train
        return runner.Schedule(
            num_steps=num_steps,
            log_every=train.log_every,
            evaluate_every=train.evaluate_every,
            checkpoint_every=train.checkpoint_every,
            keep_checkpoints=train.keep_checkpoints,
        )

    def key(self, stage: str) -> jax.Array:
        """Returns a stage's root key, by its name: a loss trains alike alone and among others."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(stage.encode()))


def prepare(config: align_config.AlignConfig, workdir: pathlib.Path) -> Run:
    """Loads the data and builds what the stages share.

    Args:
      config: the run.
      workdir: its folder.

    Returns:
      The run, ready to train.

    Raises:
      UserError: data or config are wrong.
    """
    align_config.check(config)
    _check_early(config)
    devices = mesh.make_mesh(
        data=config.train.mesh_data, fsdp=config.train.mesh_fsdp, tensor=config.train.mesh_tensor
    )
    data = sources.load(config.data, seed=config.seed, workdir=workdir)
    network = align_config.make_network(config.model, data.tokenizer.vocab_size)
    model = align_config.make_model(network)
    bench = data.embedded
    evaluator = None
    if bench is not None:
        evaluator = gold.make(bench.bench, bench.evaluation_prompts, model.apply)
    run = Run(
        config=config,
        workdir=workdir,
        data=data,
        network=network,
        model=model,
        mesh=devices,
        held_out=(),
        score_pairs=evaluation.make_pair_evaluation(
            model, mesh=devices, chunk_size=config.model.chunk_size or None
        ),
        gold=evaluator,
    )
    with config_lib.user_errors("config.train"):
        return run._replace(held_out=pipeline.evaluation_batches(data.held_out, **run.batching))


def _check_early(config: align_config.AlignConfig) -> None:
    """Finds in a second what would else be found after the warm start."""
    train = config.train
    if train.warm_start_on not in supervised_data.SIDES:
        options = list(supervised_data.SIDES)
        raise errors.UserError(
            f"config.train.warm_start_on must be one of {options}, got {train.warm_start_on!r}."
            f"{config_lib.did_you_mean(train.warm_start_on, options)}"
        )
    _warm_start_optimizer(config)
    _optimizer(config, train.num_steps, config.optimizer.learning_rate)
    pair = preference.PairLogProbs(*[jnp.ones(1)] * len(preference.PairLogProbs._fields))
    for name, beta in zip(config.loss.names, config.loss.betas, strict=True):
        with config_lib.user_errors("config.loss"):
            jax.eval_shape(
                preference_losses.make_pair_loss(name, _loss_options(config, beta)), pair
            )


def _warm_start_optimizer(config: align_config.AlignConfig) -> optax.GradientTransformation:
    train = config.train
    if train.warm_start_learning_rate <= 0:
        raise errors.UserError(
            "config.train.warm_start_learning_rate must be positive, got "
            f"{train.warm_start_learning_rate}."
        )
    return _optimizer(config, train.warm_start_steps, train.warm_start_learning_rate)


def _optimizer(
    config: align_config.AlignConfig, num_steps: int, learning_rate: float
) -> optax.GradientTransformation:
    """Returns the optimiser of a stage; its warm-up is no longer than the stage."""
    keys = config.optimizer
    warmup_steps = min(keys.warmup_steps, num_steps)
    return optimizers.make_optimizer(
        dataclasses.replace(keys, learning_rate=learning_rate, warmup_steps=warmup_steps), num_steps
    )


def _loss_options(config: align_config.AlignConfig, beta: float) -> preference_losses.LossOptions:
    return preference_losses.LossOptions(
        beta=beta, label_smoothing=config.loss.label_smoothing, sft_weight=config.loss.sft_weight
    )


def _compiled_init(network: networks.TransformerConfig) -> Callable[[jax.Array], Params]:
    # One program instead of one for each kind of array.
    return jax.jit(functools.partial(networks.init, network))


def warm_start(run: Run) -> Params:
    """Trains the reference: maximum likelihood of the pairs' completions.

    Args:
      run: the run.

    Returns:
      Its parameters, on the mesh.

    Raises:
      UserError: a key is wrong, or training has diverged.
    """
    config, train = run.config, run.config.train
    agent = supervised.make(
        run.model,
        _warm_start_optimizer(config),
        init_params=_compiled_init(run.network),
        chunk_size=run.chunk_size,
    )
    key = run.key(_WARM_START)
    batches = supervised_data.make_supervised_iterator(
        run.data.train,
        sides=supervised_data.SIDES[train.warm_start_on],
        seed=config.seed,
        num_steps=train.warm_start_steps,
        **run.batching,
    )

    def evaluate(state: supervised.State, step: int) -> Mapping[str, float]:
        del step
        score = run.score_pairs(state.params, state.params, run.held_out, 1.0)
        return {
            "held_out/nll_per_token": score.nll_per_token,
            "held_out/log_prob_accuracy": score.log_prob_accuracy,
            "held_out/token_log_prob_accuracy": score.token_log_prob_accuracy,
        }

    state = runner.run_stage(
        name=_WARM_START,
        workdir=run.workdir,
        state=agent.init(key),
        train_step=agent.update,
        batches=batches,
        schedule=run.schedule(train.warm_start_steps),
        run_key=key,
        mesh=run.mesh,
        evaluate=evaluate,
    )
    return state.params


def optimise(run: Run, name: str, beta: float, reference: Params, cached: Any) -> Params:
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
    agent = preference.make(
        run.model,
        _optimizer(run.config, train.num_steps, run.config.optimizer.learning_rate),
        loss_fn=preference_losses.make_pair_loss(name, _loss_options(run.config, beta)),
        init_params=_compiled_init(run.network),
        live_reference=train.live_reference,
        reward_scale=beta,
        chunk_size=run.chunk_size,
    )
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


def cached_reference(run: Run, reference: Params) -> pipeline.ReferenceLogProbs:
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
