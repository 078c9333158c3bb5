"""What every run of language policies begins with: data, network, mesh, and a warm start."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import optax
from jax.sharding import Mesh

from bellmax.agents import Params, language, networks, supervised
from bellmax.experiments import config as config_lib
from bellmax.experiments import (
    errors,
    evaluation,
    gold,
    language_config,
    mesh,
    numbered,
    optimizers,
    pretrained,
    runner,
)
from bellmax.experiments.data import pipeline, sources
from bellmax.experiments.data import supervised as supervised_data

_WARM_START = "warm_start"


class WithOptimizer(Protocol):
    """What a config has that names an optimiser."""

    @property
    def optimizer(self) -> optimizers.OptimizerConfig:
        """The optimiser of every stage."""
        ...


class LanguageRunConfig(WithOptimizer, Protocol):
    """What a config of any binary of language policies has; see `align_config`."""

    @property
    def seed(self) -> int:
        """Decides data, starts and order."""
        ...

    @property
    def model(self) -> language_config.ModelConfig:
        """The network."""
        ...

    @property
    def data(self) -> sources.DataConfig:
        """The pairs."""
        ...

    @property
    def train(self) -> language_config.StagesConfig:
        """The stages."""
        ...


ConfigT = TypeVar("ConfigT", bound=LanguageRunConfig, covariant=True)


class Run(NamedTuple, Generic[ConfigT]):
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

    config: ConfigT
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
        return runner.make_schedule(self.config.train, num_steps)

    def key(self, stage: str) -> jax.Array:
        """Returns a stage's root key, by its name: a loss trains alike alone and among others."""
        return numbered.named_key(self.config.seed, stage)

    def save_policy(self, name: str, params: Params) -> None:
        """Writes a stage's policy where the run began from a checkpoint, see `pretrained.save`."""
        folder = self.workdir / "policies" / name
        tokenizer = self.data.tokenizer
        pretrained.save(self.config.model, self.network, params, folder, tokenizer=tokenizer)


def prepare(config: ConfigT, workdir: pathlib.Path) -> Run[ConfigT]:
    """Loads the data and builds what the stages share.

    Args:
      config: the run.
      workdir: its folder.

    Returns:
      The run, ready to train.

    Raises:
      UserError: data or config are wrong.
    """
    _check_warm_start(config)
    devices = mesh.of_config(config.train)
    tokenizer = pretrained.make_tokenizer(config)
    network = pretrained.network_shape(config.model, tokenizer.vocab_size)
    data = sources.load(config.data, tokenizer, seed=config.seed, workdir=workdir)
    model = language_config.make_model(network)
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


def _check_warm_start(config: LanguageRunConfig) -> None:
    """Finds in a second what would else be found after the warm start."""
    train = config.train
    if train.warm_start_on not in supervised_data.SIDES:
        options = list(supervised_data.SIDES)
        raise errors.UserError(
            f"config.train.warm_start_on must be one of {options}, got {train.warm_start_on!r}."
            f"{config_lib.did_you_mean(train.warm_start_on, options)}"
        )
    _warm_start_optimizer(config)


def _warm_start_optimizer(config: LanguageRunConfig) -> optax.GradientTransformation:
    train = config.train
    if train.warm_start_learning_rate <= 0:
        raise errors.UserError(
            "config.train.warm_start_learning_rate must be positive, got "
            f"{train.warm_start_learning_rate}."
        )
    # Of no steps it is never used, but its keys are looked at.
    steps = max(1, train.warm_start_steps)
    return make_stage_optimizer(config, steps, train.warm_start_learning_rate)


def make_stage_optimizer(
    config: WithOptimizer, num_steps: int, learning_rate: float
) -> optax.GradientTransformation:
    """Returns the optimiser of a stage; its warm-up is no longer than the stage.

    Args:
      config: the run.
      num_steps: steps of the stage.
      learning_rate: its peak.

    Returns:
      The optax chain.

    Raises:
      UserError: a key of `config.optimizer` is wrong.
    """
    keys = config.optimizer
    warmup_steps = min(keys.warmup_steps, num_steps)
    return optimizers.make_optimizer(
        dataclasses.replace(keys, learning_rate=learning_rate, warmup_steps=warmup_steps), num_steps
    )


def compiled_init(network: networks.TransformerConfig) -> Callable[[jax.Array], Params]:
    """Returns a function from a key to fresh parameters, compiled as one program.

    Args:
      network: the network's shape.

    Returns:
      The function.
    """
    return jax.jit(functools.partial(networks.init, network))


def warm_start(run: Run) -> Params:
    """Trains the reference: maximum likelihood of the pairs' completions.

    Of no steps at all, it is what the run starts from.

    Args:
      run: the run.

    Returns:
      Its parameters, on the mesh.

    Raises:
      UserError: a key is wrong, or training has diverged.
    """
    config, train = run.config, run.config.train
    start = pretrained.load(config.model, run.mesh)
    if start is not None and not train.warm_start_steps:
        return start
    agent = supervised.make(
        run.model,
        _warm_start_optimizer(config),
        init_params=compiled_init(run.network),
        chunk_size=run.chunk_size,
        accumulate_steps=train.accumulate_steps,
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

    state = agent.init(key, params=start)
    # The state has copies.
    del start
    state = runner.run_stage(
        name=_WARM_START,
        workdir=run.workdir,
        state=state,
        train_step=agent.update,
        batches=batches,
        schedule=run.schedule(train.warm_start_steps),
        run_key=key,
        mesh=run.mesh,
        evaluate=evaluate,
    )
    return state.params
