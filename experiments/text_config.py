"""The keys of a `reason` run on questions in words as frozen dataclasses."""

import dataclasses

from bellmax.experiments import checks, errors, language_config, optimizers, task_config

SOURCE = "gsm8k"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The keys of `config.data`.

    Attributes:
      source: "gsm8k", which tells this flow of data from the others of `reason`.
      path: questions to learn from, a .jsonl or .jsonl.gz file in GSM8K's layout.
      held_out_path: questions of the evaluation, likewise; none of them is ever trained on.
      cache_dir: where TFDS prepares files; empty for a folder inside the workdir.
      tokenizer: byte, characters:LETTERS or the path of a tokenizer.json; empty for the
        checkpoint's, or for byte without a checkpoint.
      end_token: of a tokenizer.json, the token that ends a completion; empty for the one that the
        checkpoint says, or else the first that the file has of `tokenizers.END_TOKENS`.
      prompt: what the policy reads, with {question} in the question's place. No token is added:
        one that a model wants at the start is spelt out here.
      solution: what a warm start imitates, with {steps} and {number}; the end token follows.
      completions: completions of another policy, see `text_completions`, which the methods learn
        from instead of sampling (fully off-policy); empty to sample.
      max_prompt_tokens: longer prompts are left out, and counted.
      max_new_tokens: most tokens of a completion, the end token included.
      num_held_out: questions of the evaluation, the first of their file.
    """

    source: str
    path: str
    held_out_path: str
    cache_dir: str
    tokenizer: str
    end_token: str
    prompt: str
    solution: str
    completions: str
    max_prompt_tokens: int
    max_new_tokens: int
    num_held_out: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A whole run."""

    seed: int
    model: language_config.ModelConfig
    optimizer: optimizers.OptimizerConfig
    data: DataConfig
    loss: task_config.LossConfig
    train: task_config.TrainConfig


def check(config: TextConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a path is missing, a template lacks its field, a count is out of range, or methods
        and their numbers do not pair up.
    """
    data, model, train = config.data, config.model, config.train
    for key in ("path", "held_out_path"):
        if not getattr(data, key):
            raise errors.UserError(
                f"config.data.{key} is empty: give a file in GSM8K's layout with "
                f"--config.data.{key}=..."
            )
    for key, field in (("prompt", "{question}"), ("solution", "{number}")):
        if field not in getattr(data, key):
            raise errors.UserError(
                f"config.data.{key} must hold {field}, got {getattr(data, key)!r}."
            )
    checks.at_least_one("data", data, ("max_prompt_tokens", "max_new_tokens"))
    if data.num_held_out < 2:
        raise errors.UserError(
            f"config.data.num_held_out must be at least 2, got {data.num_held_out}."
        )
    if model.chunk_size < 0:
        raise errors.UserError(
            f"config.model.chunk_size must be at least 0, got {model.chunk_size}."
        )
    if data.completions:
        _check_stored(config.loss)
    task_config.check_learning(config.seed, model, config.loss, train)


def _check_stored(loss: task_config.LossConfig) -> None:
    if loss.staleness != 0:
        raise errors.UserError(
            "config.loss.staleness must be 0 with config.data.completions, which no policy of the "
            f"run has written; got {loss.staleness}."
        )
    if "remax" in loss.names:
        raise errors.UserError(
            "config.loss.names holds 'remax', whose baseline is a completion of its own: with "
            "config.data.completions nothing is sampled."
        )
