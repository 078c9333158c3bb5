"""The keys of a `reason` run on a token task as frozen dataclasses."""

import dataclasses

from bellmax.experiments import checks, errors, language_config, optimizers

SOURCE = "token_task"
TIES = ("lowest", "uniform")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The keys of `config.data`.

    Attributes:
      source: "token_task", which tells this flow of data from the others of `reason`.
      task: a key of `task_data.TASKS`.
      difficulty: of the problems, in the task's own measure (digits, numbers, length).
      num_held_out: problems of the evaluation, none of which is ever trained on.
    """

    source: str
    task: str
    difficulty: int
    num_held_out: int


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The keys of `config.loss`; see `task_methods.METHODS`, and below.

    Attributes:
      names: methods, each trained in turn from the same warm start.
      betas: one for each name: weight of the divergence from the reference, in units of reward a
        nat.
      learning_rates: one for each name: peak of the optimiser's; 0 for `config.optimizer`'s.
      staleness: steps for which one policy's samples are trained on: 1 for the current policy's, k
        for those of a policy that is replaced every k steps, 0 for the reference's for ever (fully
        off-policy).
      updates_per_batch: passes over the samples of a step.
      minibatches: parts of the samples, an update each, in a pass.
      clip_epsilon: of clipped surrogates, downwards, and upwards unless the next key is positive.
      clip_epsilon_high: upwards; 0 for the same as downwards.
      dual_clip: of clipped surrogates; 0 for none.
      importance_clip: largest importance weight of `reinforce_is` and `rloo_is`.
      trace_decay: lambda of PPO's advantages.
      value_coefficient: weight of PPO's value loss.
      k: pass_at_k: samples of the objective, at most `config.train.group_size`.
      ties: rule of `majority`, see `losses.majority_advantages`.
      beta_supervised: jepo: weight of the answers' likelihood.
    """

    names: tuple[str, ...]
    betas: tuple[float, ...]
    learning_rates: tuple[float, ...]
    staleness: int
    updates_per_batch: int
    minibatches: int
    clip_epsilon: float
    clip_epsilon_high: float
    dual_clip: float
    importance_clip: float
    trace_decay: float
    value_coefficient: float
    k: int
    ties: str
    beta_supervised: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The keys of `config.train`; see `language_config.StagesConfig`, and below.

    Attributes:
      warm_start_steps: steps of imitation of worked solutions, which give the reference.
      warm_start_learning_rate: its peak.
      warm_start_batch_size: solutions of such a step, over all devices.
      warm_start_noise: share of the solutions, in [0, 1], that are another problem's: what is
        imitated is well written, and wrong.
      num_steps: steps of each method, each on fresh problems.
      batch_size: problems of a step, over all devices.
      group_size: completions of each problem.
      accumulate_steps: as there, of an update's problems.
      temperature: that completions are sampled at, in training and evaluation.
      evaluation_samples: completions of each held-out problem.
    """

    warm_start_steps: int
    warm_start_learning_rate: float
    warm_start_batch_size: int
    warm_start_noise: float
    num_steps: int
    batch_size: int
    group_size: int
    accumulate_steps: int
    temperature: float
    evaluation_samples: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    mesh_data: int
    mesh_fsdp: int
    mesh_tensor: int


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A whole run."""

    seed: int
    model: language_config.ModelConfig
    optimizer: optimizers.OptimizerConfig
    data: DataConfig
    loss: LossConfig
    train: TrainConfig


def check(config: TaskConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a count is out of range, or methods and their numbers do not pair up.
    """
    checks.at_least_one("data", config.data, ("difficulty", "num_held_out"))
    check_learning(config.seed, config.model, config.loss, config.train)
    if config.model.chunk_size:
        raise errors.UserError(
            f"config.model.chunk_size must be 0 in reason, got {config.model.chunk_size}: the "
            "sampler needs all logits of a token."
        )


def check_learning(
    seed: int, model: language_config.ModelConfig, loss: LossConfig, train: TrainConfig
) -> None:
    """Refuses what is wrong about methods and their steps, whatever they learn.

    Args:
      seed: of the run.
      model: the model group.
      loss: the loss group.
      train: the train group.

    Raises:
      UserError: a count is out of range, or methods and their numbers do not pair up.
    """
    checks.seed(seed)
    language_config.check_warm_start(model, train.warm_start_steps)
    checks.at_least_one("loss", loss, ("updates_per_batch", "minibatches", "k"))
    counts = (
        "warm_start_batch_size",
        "num_steps",
        "batch_size",
        "group_size",
        "accumulate_steps",
        "evaluation_samples",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
    )
    checks.at_least_one("train", train, counts)
    if not loss.names or len(set(loss.names)) != len(loss.names):
        raise errors.UserError(
            f"config.loss.names must hold distinct methods, got {list(loss.names)}."
        )
    for key in ("betas", "learning_rates"):
        values = getattr(loss, key)
        if len(values) != len(loss.names):
            raise errors.UserError(
                f"config.loss.{key} must hold one value for each of config.loss.names; got "
                f"{len(values)} for {list(loss.names)}."
            )
        if any(not value >= 0 for value in values):
            raise errors.UserError(f"config.loss.{key} must be at least 0, got {list(values)}.")
    if loss.staleness < 0:
        raise errors.UserError(f"config.loss.staleness must be at least 0, got {loss.staleness}.")
    if train.batch_size % loss.minibatches:
        raise errors.UserError(
            f"config.loss.minibatches must divide config.train.batch_size {train.batch_size}, got "
            f"{loss.minibatches}."
        )
    checks.parts(
        "train.batch_size / config.loss.minibatches",
        train.batch_size // loss.minibatches,
        train.accumulate_steps,
    )
    checks.parts("train.warm_start_batch_size", train.warm_start_batch_size, train.accumulate_steps)
    if "pass_at_k" in loss.names and loss.k > train.group_size:
        raise errors.UserError(
            f"config.loss.k must be at most config.train.group_size {train.group_size}, got "
            f"{loss.k}."
        )
    if loss.ties not in TIES:
        raise errors.UserError(
            f"config.loss.ties must be one of {', '.join(TIES)}, got {loss.ties!r}."
        )
    if not train.temperature > 0:
        raise errors.UserError(
            f"config.train.temperature must be positive, got {train.temperature}."
        )
    if not 0 <= train.warm_start_noise <= 1:
        raise errors.UserError(
            f"config.train.warm_start_noise must be in [0, 1], got {train.warm_start_noise}."
        )
    if not train.warm_start_learning_rate > 0:
        raise errors.UserError(
            "config.train.warm_start_learning_rate must be positive, got "
            f"{train.warm_start_learning_rate}."
        )
