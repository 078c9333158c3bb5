"""Training on questions in words whose answers are numbers: GSM8K, from scratch or a checkpoint.

    rows = train(TextConfig(...), workdir)

The stages are those of `task_training`. Questions are encoded once and come in epochs, each
question once an epoch; completions are sampled inside the step, which has them checked on the host,
or come from a file of another policy's (`text_completions`).
"""

import pathlib
from typing import Any

import jax

from bellmax.experiments import (
    errors,
    language_config,
    mesh,
    pretrained,
    task_run,
    task_training,
    text_completions,
    text_config,
    text_data,
)
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
    tokenizer = pretrained.make_tokenizer(config)
    network = pretrained.network_shape(config.model, tokenizer.vocab_size)
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
