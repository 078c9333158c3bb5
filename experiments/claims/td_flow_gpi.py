r"""Planning with a model of the future over a family of policies: generalised policy improvement.

In the point-mass maze, from transitions without rewards, forward-backward representations give a
policy for every task w. For a reward, with w_r its task, all ways choose among the same 16
policies, w_r and 15 near it, and begin from the same starts; a TD2-CFM model that is conditioned on
w has learnt where each of the 64 candidates for four rewards leads. The ways:

- the policy of w_r throughout;
- the best candidate throughout, by what the candidates really get from other starts;
- FB-GPI: the policy of greatest F(s, pi_w(s), w)^T w_r, chosen anew at every step;
- model-GPI: the one whose sampled future pays most, likewise.

Beside them stand pushes at random, and a scripted controller whose return is the unit of all; it
reacts within a step. The score of a seed is the mean over the four reaching tasks of discounted
returns in that unit.

The paper has 255 others, 128 samples, a new choice at each step of a fiftieth of a second, networks
of width 1,024, millions of updates, and a model of all tasks, so that a reward that comes later
needs no training. Here a push is held for half a second, the discount is .9 a push, B sees places
alone, and the model has learnt the candidates and nothing else.

This is the second form of the claim; its rule is that of the first, which failed on seeds 0 to 2,
with .274 for model-GPI, .326 for the best candidate and .223 for the policy of w_r. What is
different was chosen on seeds 0, 1 and 10 to 12, as was the number of seeds; no result of seeds 3 to
7 was seen before:

- networks see waves of places (`horizon_family`). Futures used to leak through walls; true values
  nearly double where states have noise of 9 mm, and the model's were twice the true ones.
- The discount was .95, which asks for more than so small a model can learn.
- The model had width 128 and learnt all tasks. On seed 10, of the candidates alone, widths of 128,
  256 and 512 came to .60, .65 and .81 after 10,000 to 20,000 updates.
- Half of the candidates were drawn from anywhere on the sphere, and few of those pay. With that
  still so, model-GPI came to .713 and .680 on seeds 0 and 1, the best candidate to .678 and .688.

With the maze's own values GPI over these candidates comes to about .95 and 1.0 (seeds 11 and 10):
what is missing is the model's.
"""

import json
import pathlib
from typing import Any

import numpy as np

from bellmax.experiments import horizon_family, horizon_planning, metrics, plots, statistics
from bellmax.experiments.claims.claim import Claim, Outcome
from bellmax.experiments.errors import UserError
from bellmax.experiments.horizon_family import Settings
from bellmax.experiments.horizon_planning import WAYS, Plan

SETTINGS, PLAN = Settings(), Plan()
FIRST_SEED, NUM_SEEDS = 3, 5
OURS = "model-GPI"
RIVALS = ("policy of the reward", "best candidate", "FB-GPI")


def learn(
    seed: int, directory: pathlib.Path, *, settings: Settings = SETTINGS, plan: Plan = PLAN
) -> dict[str, Any]:
    """Trains and compares from a seed, or reads what an earlier run found.

    Args:
      seed: its number.
      directory: holds a file a seed.
      settings: of the family.
      plan: of the comparison.

    Returns:
      `discounted` and `total` [K, M], and `kept` [K, 2], as lists; see `Scores`.

    Raises:
      UserError: the file is one of other settings.
    """
    # As JSON has it, lists for tuples.
    keys = json.loads(json.dumps({"family": settings._asdict(), "plan": plan._asdict()}))
    path = directory / f"seed{seed}.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found["settings"] != keys:
            raise UserError(f"{path} was made with other settings; choose another --workdir.")
        return found
    data = horizon_family.make_data(settings, seed)
    family = horizon_family.train_policies(settings, data, seed)
    candidates = horizon_planning.choose_candidates(settings, plan, family, seed)
    tasks = candidates.reshape(-1, settings.task_size)
    model = horizon_family.train_model(settings, data, family.policies, tasks, seed)
    scores = horizon_planning.compare(settings, plan, family, model, candidates, seed)
    found = {name: value.tolist() for name, value in scores._asdict().items()}
    found["settings"] = keys
    directory.mkdir(parents=True, exist_ok=True)
    metrics.write_json(path, found)
    return found


def normalised(returns: np.ndarray) -> np.ndarray:
    """Returns mean returns over tasks, in units of the controller's.

    Args:
      returns: by seed, task and way. [S, K, M].

    Returns:
      Scores. [S, M].
    """
    return (returns / returns[..., WAYS.index("controller"), None]).mean(axis=1)


def gains(scores: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Returns by how much planning with the model is ahead of each rival.

    Args:
      scores: of seeds and ways. [S, M].

    Returns:
      Mean difference over seeds, and the ends of its 95% t-interval, by rival.
    """
    found = {}
    for rival in RIVALS:
        difference = scores[:, WAYS.index(OURS)] - scores[:, WAYS.index(rival)]
        low, high = statistics.mean_interval(difference)
        found[rival] = (float(difference.mean()), float(low), float(high))
    return found


def holds(found: dict[str, tuple[float, float, float]]) -> bool:
    """Returns whether planning with the model is ahead of all rivals beyond chance.

    Args:
      found: of `gains`.
    """
    return all(low > 0 for _, low, _ in found.values())


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Trains each seed and compares all ways; a run that was stopped goes on seed by seed."""
    rows = [
        learn(seed, directory / "td_flow_gpi") for seed in range(FIRST_SEED, FIRST_SEED + seeds)
    ]
    discounted, total = (np.array([row[key] for row in rows]) for key in ("discounted", "total"))
    scores, totals = normalised(discounted), normalised(total)
    found = gains(scores)
    picture = directory / "td_flow_gpi.png"
    _draw(picture, scores, discounted)
    means = ", ".join(
        f"{name} {mean:.3f}" for name, mean in zip(WAYS[:-1], scores.mean(axis=0), strict=False)
    )
    ahead = "; ".join(
        f"over {name} {mean:+.3f} ({low:+.3f} to {high:+.3f})"
        for name, (mean, low, high) in found.items()
    )
    return Outcome(
        passed=holds(found),
        figure=f"{means}; model-GPI {ahead}",
        details={
            "ways": WAYS,
            "tasks": PLAN.tasks,
            "scores": scores.tolist(),
            "undiscounted_scores": totals.tolist(),
            "gains": found,
            "undiscounted_gains": gains(totals),
            "discounted": discounted.tolist(),
            "total": total.tolist(),
            "kept": [row["kept"] for row in rows],
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, scores: np.ndarray, discounted: np.ndarray) -> None:
    by_task = discounted / discounted[..., -1:]
    shown = [WAYS.index(name) for name in (*RIVALS, OURS, "random")]

    def series(first, values):
        return [
            plots.Series(
                WAYS[way], first + np.arange(len(values)), values[:, way], style="", marker=True
            )
            for way in shown
        ]

    tasks = "task: " + ", ".join(f"{place} {name}" for place, name in enumerate(PLAN.tasks))
    panels = [
        plots.Panel("Mean over tasks", "seed", "return / controller's", series(FIRST_SEED, scores)),
        plots.Panel(
            "Mean over seeds",
            tasks.replace("reach_", "").replace("_", " "),
            "return / controller's",
            series(0, by_task.mean(axis=0)),
        ),
    ]
    plots.save_figure(path, panels)


CLAIM = Claim(
    name="td_flow_gpi",
    paper="Farebrother et al. 2025",
    url="https://arxiv.org/abs/2503.09817",
    statement=(
        "GPI with a learned model of the candidate policies improves on the best single policy in "
        "the maze, and on forward-backward GPI"
    ),
    paper_figure="an ordering: planning over policies with the model beats FB and FB-GPI",
    budget=(
        f"{NUM_SEEDS} seeds of {SETTINGS.policy_updates:,} updates of the representations and "
        f"{SETTINGS.model_updates:,} of the model, batches of {SETTINGS.batch_size}; 85 minutes of "
        "one core"
    ),
    acceptance=(
        "lower end of the 95% t-interval over seeds of model-GPI's score, mean discounted return "
        "of the reaching tasks in units of a scripted controller's, above that of the reward's "
        "policy, of the candidate that did best on other starts, and of FB-GPI, each by more than 0"
    ),
    default_seeds=NUM_SEEDS,
    run=run,
    slow=True,
)
