r"""Token tasks whose answers are checked: every key, and any methods side by side.

Papers: Ahmadian et al., Back to Basics, 2024 (RLOO), https://arxiv.org/abs/2402.14740, and those of
the configs of single methods in this folder, which start here.
Command (RLOO, GRPO, PPO, ReMax and AGRO on sums of two numbers from one start; another task):
  python -m bellmax.experiments.reason --config=tasks --workdir=runs/tasks
  python -m bellmax.experiments.reason --config=tasks:countdown --workdir=runs/countdown
Expected on addition (claim `reasoning_methods`, 3 seeds, 60 steps): pass@1 from 0.094 to 0.157
(RLOO), 0.157 (GRPO), 0.171 (PPO), 0.102 (ReMax) and 0.158 (AGRO), where seeds differ more than
methods do. With `--config.train.warm_start_steps=300` (claim `reasoning_strong_start`) from 0.537
to 0.812, 0.798, 0.810, 0.786 and 0.786 (0.751 to 0.817 over all).
Expected on the others, 150 steps: pass@1 on held-out problems (standard error over them 0.01 to
0.06; of the lock there are only 29), and minutes of CPU time:
  task            seed  start   RLOO    GRPO    PPO     ReMax   AGRO    cost
  lock            0     0.086   0.625   0.642   0.728   0.388   0.625   3
                  1     0.082   0.582   0.552   0.565   0.284   0.539   3
  countdown       0     0.124   0.304   0.257   0.332   0.245   0.298   6
  programs        0     0.232   0.333   0.315   0.313   0.310   0.340   5
                  1     0.296   0.409   0.403   0.415   0.407   0.422   6
  multiplication  0     0.075   0.154   0.144   0.162   0.124   0.125   10
                  1     0.278   0.500   0.473   0.477   0.444   0.450   9
On programs pass@8 falls meanwhile, from 0.52 to 0.42 to 0.50 and from 0.61 to 0.51 to 0.54. The
lock's warm start ends at 50 steps, chosen on its curve for these seeds, because 100 steps open 0.96
and 0.93 of the locks.
`long_form` has no answers that these methods can check: see `jepo`.
Cost on addition: six minutes of CPU time for the five on 2 cores, half of it compilation.
"""

import ml_collections

from bellmax.configs.align import base

COMPARED = ("rloo", "grpo", "ppo", "remax", "agro")
# The likelihood-ratio term of on-policy AGRO is (reward - value) / (2 beta) times the other: at
# small beta it makes rewards equal by making all of them 0.
BETAS = {"agro_on_policy": 0.5}
# Difficulty, steps of imitation and share of wrong solutions, which leave something to be learnt,
# by task.
STARTS = {
    "addition": (3, 200, 0.0),
    "multiplication": (2, 600, 0.0),
    "programs": (3, 600, 0.0),
    "countdown": (2, 600, 0.0),
    "lock": (4, 50, 0.0),
    "long_form": (3, 2500, 0.4),
}
TASKS = tuple(STARTS)


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns every key that may be overridden.

    Args:
      variant: a task, one of `TASKS`; None for addition.

    Raises:
      ValueError: there is no such task.
    """
    return of_methods(COMPARED, variant)


def of_methods(
    names: tuple[str, ...], task: str | None = None, *, beta: float = 0.01
) -> ml_collections.ConfigDict:
    """Returns the config of some methods on a task.

    Args:
      names: keys of `task_methods.METHODS`.
      task: one of `TASKS`; None for addition.
      beta: weight of the divergence from the reference, of all but those in `BETAS`.

    Raises:
      ValueError: there is no such task.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"{names[0]} has no variant {task!r}; there are: {', '.join(TASKS)}")
    task = task or "addition"
    difficulty, warm_start_steps, warm_start_noise = STARTS[task]
    shared = base.get_config().to_dict()
    model = shared["model"] | {
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 16,
        "embed_dim": 64,
        "mlp_dim": 128,
    }
    optimizer = shared["optimizer"] | {
        "name": "adam",
        "learning_rate": 3e-4,
        "schedule": "constant",
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "b1": 0.9,
        "b2": 0.99,
    }
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "model": model,
            "optimizer": optimizer,
            "data": {
                "source": "token_task",
                "task": task,
                "difficulty": difficulty,  # Digits, operations, instructions or letters.
                "num_held_out": 128,  # Problems of the evaluation; nobody trains on them.
            },
            "loss": {
                "names": names,  # Each is trained in turn from the same warm start.
                "betas": tuple(
                    BETAS.get(name, beta) for name in names
                ),  # Weight of the KL to the reference, reward a nat.
                "learning_rates": (0.0,) * len(names),  # 0: the optimiser's.
                "staleness": 1,  # 1 on-policy; k: samples up to k steps old; 0: the reference's.
                "updates_per_batch": 1,
                "minibatches": 1,
                "clip_epsilon": 0.2,
                "clip_epsilon_high": 0.0,  # 0: as downwards.
                "dual_clip": 0.0,  # 0: none.
                "importance_clip": 2.0,  # rloo_is: largest weight of a completion.
                "trace_decay": 1.0,  # ppo: lambda.
                "value_coefficient": 0.5,  # ppo.
                "k": 4,  # pass_at_k: samples of the objective.
                "ties": "uniform",  # majority: uniform, lowest.
                "beta_supervised": 1.0,  # jepo: weight of the answers' likelihood.
            },
            "train": {
                "warm_start_steps": warm_start_steps,
                "warm_start_learning_rate": 3e-3,
                "warm_start_batch_size": 64,
                "warm_start_noise": warm_start_noise,  # Share of solutions of other problems.
                "num_steps": 150,  # Of each method.
                "batch_size": 32,  # Problems of a step, over all devices.
                "group_size": 8,  # Completions of each.
                "accumulate_steps": 1,  # Parts of a batch, one after another, to save memory.
                "temperature": 1.0,
                "evaluation_samples": 8,
                "log_every": 5,
                "evaluate_every": 25,
                "checkpoint_every": 50,
                "keep_checkpoints": 1,
                "mesh_data": -1,
                "mesh_fsdp": 1,
                "mesh_tensor": 1,
            },
        }
    )
