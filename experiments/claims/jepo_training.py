r"""JEPO beside supervised learning of answers, where answers are only likely or not.

A question asks for a state after three operations that do not commute; its answer is six words
whose wording is drawn, given that state. A small transformer imitates chains of thought with
answers, of which four in ten belong to another question, so that it writes chains well and often
wrongly. From there, questions and answers are all that is left, new ones at every step:

- `jepo` samples chains and learns from how likely the known answer is after each;
- `answers` learns the answers' likelihood without chains, the supervised learning that Tang et al.
  compare with.

The rules, written before the runs, are on means over seeds of the log-likelihood of held-out
answers after the last step, in nats an answer:

1. beats answers alone: after one chain of JEPO's policy answers are likelier than at once after
   supervised learning;
2. learns to think: likelier, too, than after one chain of the start.

All is measured against two numbers that are known: no policy exceeds -3.71, and none that cannot
tell the state exceeds -5.65.

Earlier runs of one other seed (100) fixed the task's difficulty and the length of the imitation.
"""

import pathlib
from typing import Any

from bellmax.configs.reason import jepo
from bellmax.experiments import plots, task_report, task_training
from bellmax.experiments.claims.claim import Claim, Outcome

METHODS = ("jepo", "answers")
NUM_STEPS = 150
MEASURES = {"after a chain": "answers/bound@1", "at once": "answers/at_once"}


def make_config(seed: int) -> Any:
    """Returns the config of a seed.

    Args:
      seed: of data, start and samples.
    """
    # Typed as Any: a ConfigDict's groups are read by name.
    config: Any = jepo.get_config()
    config.update(
        {
            "seed": seed,
            "loss": {
                "names": METHODS,
                "betas": (config.loss.betas[0], 0.0),
                "learning_rates": (0.0, 0.0),
            },
            "train": {"num_steps": NUM_STEPS, "evaluate_every": 50},
        }
    )
    return config


def verdicts(means: dict[str, dict[str, float]]) -> dict[str, bool]:
    """Returns what the rules say.

    Args:
      means: over seeds after the last step: a key of `MEASURES` by method, the warm start among
        them.

    Returns:
      Whether each rule holds, by name.
    """
    after = means["jepo"]["after a chain"]
    return {
        "beats answers alone": after > means["answers"]["at once"],
        "learns to think": after > means["warm_start"]["after a chain"],
    }


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Trains both from each seed; a run that was stopped goes on."""
    folder = directory / "jepo_training"
    workdirs = [folder / f"seed{seed}" for seed in range(seeds)]
    tables = [
        task_training.run_config(make_config(seed), workdir)
        for seed, workdir in enumerate(workdirs)
    ]
    measures = {**MEASURES, "chains right": "chains/right"}
    found = {
        name: {
            label: task_report.over_seeds(tables, name, measure)
            for label, measure in measures.items()
        }
        for name in ("warm_start", *METHODS)
    }
    means = {
        name: {label: float(values.mean()) for label, values in row.items()}
        for name, row in found.items()
    }
    rules = verdicts(means)
    best = float(tables[0][0]["answers/best"])
    title = f"Long answers: mean and range of {seeds} seeds"
    picture = directory / "jepo_training.png"
    plots.save_figure(
        picture,
        [
            plots.Panel(
                f"{title}, {label}",
                "step",
                measure,
                task_report.mean_curves(workdirs, METHODS, measure),
            )
            for label, measure in measures.items()
        ],
        columns=3,
    )
    start, jepo_row, answers = (means[name] for name in ("warm_start", *METHODS))
    return Outcome(
        passed=all(rules.values()),
        figure=(
            f"nats an answer: start {start['after a chain']:.2f} after a chain, JEPO "
            f"{jepo_row['after a chain']:.2f}, answers alone {answers['at once']:.2f} at once, "
            f"best possible {best:.2f}; chains right {start['chains right']:.2f} before JEPO, "
            f"{jepo_row['chains right']:.2f} after"
        ),
        details={
            "rules": rules,
            "best": best,
            "seeds": {
                name: {label: values.tolist() for label, values in row.items()}
                for name, row in found.items()
            },
        },
        picture=picture,
    )


CLAIM = Claim(
    name="jepo_training",
    paper="Tang et al. 2025",
    url="https://arxiv.org/abs/2503.19618",
    statement=(
        "where answers cannot be checked, chains trained by JEPO make them likelier than "
        "supervised learning of the answers does"
    ),
    paper_figure="proofs, long answers: JEPO's likelihood above that of supervised learning",
    budget="3 seeds of two methods, 150 steps of 256 chains, 84,032 parameters, 8 min",
    acceptance=(
        "mean log-likelihood of held-out answers over seeds: after one chain of JEPO's policy "
        "above that at once after supervised learning, and above that after one of the start's"
    ),
    default_seeds=3,
    run=run,
    slow=True,
)
