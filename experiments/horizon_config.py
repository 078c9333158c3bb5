"""The keys of a `horizon` run as frozen dataclasses."""

import dataclasses

from bellmax.experiments import checks, errors
from bellmax.experiments.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The keys of `config.model`; see `agents.networks.flow.FlowNetworkConfig`, and below.

    Attributes:
      baseline_sizes: hidden layers of the autoencoder's and the adversarial networks.
      baseline_residual: make every layer but the first of the adversarial networks a block of two
        with a skip.
      policy_sizes: hidden layers of a policy that is trained, and of its critics.
    """

    hidden_sizes: tuple[int, ...]
    u_shaped: bool
    time_features: int
    min_frequency: float
    max_frequency: float
    time_sizes: tuple[int, ...]
    condition_sizes: tuple[int, ...]
    baseline_sizes: tuple[int, ...]
    baseline_residual: bool
    policy_sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The keys of `config.data`.

    Attributes:
      source: a key of `horizon_sources.SOURCES`.
      task: whose policy is evaluated, and whose reward is valued, such as loop (maze) or
        walker_walk (dm_control); empty elsewhere.
      policy: scripted (maze), or td3, which is trained first, on the same transitions (maze,
        dm_control).
      path: a file or folder of transitions to learn from, see `data.transition_files.read`; empty
        for collecting them (maze, dm_control; elsewhere they are drawn always).
      cache_dir: where such a file is prepared, and what was collected of dm_control is kept; empty
        for the folder of the run.
      num_transitions: transitions that are collected, once.
      noise: standard deviation of the actions that collect them, before they are clipped to [-1, 1]
        (maze, dm_control).
      correlation: of that noise from step to step, in [0, 1) (maze, dm_control).
      standardise: learn states less their mean and over their deviation; reports are in the
        source's own units always.
    """

    source: str
    task: str
    policy: str
    path: str
    cache_dir: str
    num_transitions: int
    noise: float
    correlation: float
    standardise: bool


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The keys of `config.loss`.

    Attributes:
      names: keys of `horizon_methods.METHODS`, each trained at each discount.
      discounts: gammas in [0, 1).
      path: a key of `horizon_methods.PATHS`.
      flow_steps: midpoint steps of a flow's bootstrap.
      diffusion_steps: DDIM steps of a diffusion's bootstrap.
      num_levels: levels of noise of a diffusion.
      clip_to_data: whether what a diffusion denoises to is kept within the range of the states that
        it learns from; False for the paper's.
      target_decay: of the target's average of the parameters, an update.
      beta: weight of the autoencoder's KL divergence.
      penalty_start: weight of the adversarial penalties at the first update.
      penalty_end: at the last.
    """

    names: tuple[str, ...]
    discounts: tuple[float, ...]
    path: str
    flow_steps: int
    diffusion_steps: int
    num_levels: int
    clip_to_data: bool
    target_decay: float
    beta: float
    penalty_start: float
    penalty_end: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The keys of `config.train`; steps of the loop are windows of `updates_per_step` updates.

    Attributes:
      num_updates: updates of each model, a multiple of `updates_per_step`.
      updates_per_step: updates in one step of the loop, which is one program.
      policy_updates: updates of a policy that is trained, a multiple likewise.
      policy_learning_rate: of Adam, for it and its critics.
      policy_target_decay: of their targets, an update.
      batch_size: transitions of an update, over all devices.
      accumulate_steps: parts of a batch that are learnt from one after another; the update is that
        of the whole, in the memory of a part.
      evaluation_states: states whose futures are compared with the truth.
      evaluation_samples: samples of each, of the model and of the truth.
      likelihood_samples: true samples of each whose likelihood is taken.
      evaluation_flow_steps: midpoint steps when a flow is sampled.
      evaluation_diffusion_steps: DDIM steps when a diffusion is.
      likelihood_steps: steps of the change of variables.
      log_every: steps of the loop whose metrics are averaged into one row.
      evaluate_every: steps of the loop between evaluations.
      checkpoint_every: steps of the loop between checkpoints.
      keep_checkpoints: checkpoints that are kept.
      mesh_data: devices that rows are spread over; -1 for all that are left.
      mesh_fsdp: likewise.
      mesh_tensor: likewise; rows are not spread over it.
    """

    num_updates: int
    updates_per_step: int
    policy_updates: int
    policy_learning_rate: float
    policy_target_decay: float
    batch_size: int
    accumulate_steps: int
    evaluation_states: int
    evaluation_samples: int
    likelihood_samples: int
    evaluation_flow_steps: int
    evaluation_diffusion_steps: int
    likelihood_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    mesh_data: int
    mesh_fsdp: int
    mesh_tensor: int


@dataclasses.dataclass(frozen=True)
class HorizonConfig:
    """A whole run."""

    seed: int
    model: ModelConfig
    optimizer: OptimizerConfig
    data: DataConfig
    loss: LossConfig
    train: TrainConfig


def check(config: HorizonConfig) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a count is below 1, a number is out of range, or names are not distinct.
    """
    checks.seed(config.seed)
    for group in ("data", "loss", "train"):
        checks.at_least_one(group, getattr(config, group))
    loss, train = config.loss, config.train
    checks.parts("train.batch_size", train.batch_size, train.accumulate_steps)
    for key in ("num_updates", "policy_updates"):
        if getattr(train, key) % train.updates_per_step:
            raise errors.UserError(
                f"config.train.{key} must be a multiple of config.train.updates_per_step "
                f"({train.updates_per_step}), got {getattr(train, key)}."
            )
    if not train.policy_learning_rate > 0:
        raise errors.UserError(
            f"config.train.policy_learning_rate must be positive, got {train.policy_learning_rate}."
        )
    if train.evaluation_samples < 2:
        raise errors.UserError(
            "config.train.evaluation_samples must be at least 2, for distances among samples, got "
            f"{train.evaluation_samples}."
        )
    if train.likelihood_samples > train.evaluation_samples:
        raise errors.UserError(
            "config.train.likelihood_samples must be at most config.train.evaluation_samples "
            f"({train.evaluation_samples}), got {train.likelihood_samples}."
        )
    for key in ("names", "discounts"):
        values = getattr(loss, key)
        if not values or len(set(values)) != len(values):
            raise errors.UserError(
                f"config.loss.{key} must hold distinct values, at least one, got {list(values)}."
            )
    for discount in loss.discounts:
        if not 0 <= discount < 1:
            raise errors.UserError(f"config.loss.discounts must be in [0, 1), got {discount}.")
    for key in ("beta", "penalty_start", "penalty_end"):
        if not getattr(loss, key) >= 0:
            raise errors.UserError(
                f"config.loss.{key} must be at least 0, got {getattr(loss, key)}."
            )
    for name, decay in (
        ("loss.target_decay", loss.target_decay),
        ("train.policy_target_decay", train.policy_target_decay),
    ):
        if not 0 <= decay <= 1:
            raise errors.UserError(f"config.{name} must be in [0, 1], got {decay}.")


def stages(config: HorizonConfig) -> list[tuple[str, str, float]]:
    """Returns the models that a run trains, in order.

    Args:
      config: the run.

    Returns:
      Name of the stage, the method and the discount of each.
    """
    return [
        (f"{name}_{discount:g}", name, discount)
        for discount in config.loss.discounts
        for name in config.loss.names
    ]
