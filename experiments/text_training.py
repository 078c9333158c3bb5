"""Training on questions in words whose answers are numbers: GSM8K, from scratch or a checkpoint.

    rows = train(TextConfig(...), workdir)

The stages are those of `task_training`. Questions are encoded once and come in epochs, each
question once an epoch; completions are sampled inside the step, which has them checked on the host,
or come from a file of another policy's (`text_completions`).
"""

import json
import pathlib
from typing import Any

import jax
import safetensors

from bellmax.agents import Params, networks
from bellmax.experiments import config as config_lib
from bellmax.experiments import (
    errors,
    language_config,
    mesh,
    task_run,
    task_training,
    text_completions,
    text_config,
    text_data,
)
from bellmax.experiments.data import tokenizers
from bellmax.experiments.text_tasks import TextTask


def train(config: text_config.TextConfig, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains every method, or what is left of it, and writes table and figures.

    Args:
      config: the run.
      workdir: its folder, which exists; receives what `task_training.train` writes.

    Returns:
      The final table, one row a policy, the warm start first.

    Raises:
      UserError: the config or a file is wrong, training has diverged, or a checkpoint does not fit.
    """
    return task_training.train_run(prepare(config, workdir))


def prepare(config: text_config.TextConfig, workdir: pathlib.Path) -> task_run.TaskRun:
    """Reads data and checkpoint, and finds at once what would else be found after the warm start.

    Args:
      config: the run.
      workdir: its folder.

    Returns:
      The run, ready to train.

    Raises:
      UserError: the config or a file is wrong.
    """
    text_config.check(config)
    _check_host()
    tokenizer = text_data.make_tokenizer(config)
    network, start = _load_network(config.model, tokenizer)
    devices = mesh.of_config(config.train)
    data = text_data.load(config.data, tokenizer, workdir)
    task = TextTask(
        tokenizer=tokenizer,
        numbers=data.numbers,
        max_new_tokens=config.data.max_new_tokens,
        mesh=devices,
    )
    stored, about = None, data.about
    if config.data.completions:
        stored, more = text_completions.load(config, tokenizer, data.questions, data.kept_back)
        about = f"{about}\n{more}"
    task_run.check_methods(config, task)
    return task_run.TaskRun(
        config=config,
        workdir=workdir,
        task=task,
        network=network,
        model=language_config.make_model(network),
        mesh=devices,
        held_out=data.held_out,
        train=data.train,
        stored=stored,
        start=start,
        about=about,
    )


def _check_host() -> None:
    """Finds out whether programs can call the host, which needs a device of its own."""
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise errors.UserError(
            "JAX_PLATFORMS must name cpu too, such as cuda,cpu: completions are checked on the "
            f"host ({error})."
        ) from None


def _load_network(
    keys: text_config.ModelConfig, tokenizer: tokenizers.Tokenizer
) -> tuple[networks.TransformerConfig, Params | None]:
    """Returns the network's shape, and the checkpoint's parameters where there is one."""
    if not keys.checkpoint:
        return language_config.make_network(keys, tokenizer.vocab_size), None
    place = f"config.model.checkpoint {keys.checkpoint!r}"
    try:
        with config_lib.user_errors(place):
            network, params = networks.load_pretrained(
                keys.checkpoint,
                compute_dtype=keys.compute_dtype,
                remat=keys.remat,
                scan_layers=keys.scan_layers,
            )
    except (OSError, KeyError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise errors.UserError(f"{place} cannot be read: {error}") from None
    if tokenizer.vocab_size > network.vocab_size:
        raise errors.UserError(
            f"{place} has a vocabulary of {network.vocab_size} tokens, and the tokenizer of "
            f"config.data.tokenizer one of {tokenizer.vocab_size}: they do not belong together."
        )
    return network, params
