r"""Seven models of future states in the point-mass maze, at two horizons.

The policy goes round the maze (task `loop`, which the paper's study of horizons uses). From one set
of 200,000 random transitions a seed every method learns where the policy will be, in networks of
one size, and is compared with rollouts from 32 states.

The rules are orderings of the paper's table for this domain, fixed before these runs, on means over
seeds: which of two methods is ahead, where the paper's gap is wide. TD2-CFM and TD-CFM(C), TD2-DD
are next to each other there and are not ordered here.

Nineteen of the twenty orderings hold. At 0.9 the earth mover's distance of TD2-DD, 0.039, is not
below TD-DD's 0.037; it is ahead in energy distance (which this rule does not ask for), likelihood
and values. All models are far from the truth at 0.98: the paper's have hundreds of times as many
parameters and 750 times as many updates.

This is the second run of these seeds. In the first both diffusions threw samples out of the maze,
distances of 0.5 to 11, since a denoiser's error at the first of the levels is multiplied by
157; that of TD2-DD was not below TD-DD's at 0.98, and all else held. Since then what they denoise
is clipped to the range of the data, which was decided on seed 10, and the adversarial network has
the paper's residual blocks.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bellmax.configs.horizon import td_flow
from bellmax.experiments import horizon, horizon_report, plots
from bellmax.experiments.claims.claim import Claim, Outcome

TASK = "maze_loop"
# Measure, the method ahead, the one behind.
ORDER = (
    ("emd", "td2_cfm", "td_cfm"),
    ("emd", "coupled_td_cfm", "td_cfm"),
    ("emd", "td2_dd", "td_dd"),
    ("nll", "td2_cfm", "td_cfm"),
    ("nll", "td2_cfm", "td2_dd"),
    ("nll", "td2_dd", "td_dd"),
    ("value_mse", "td2_cfm", "td_cfm"),
    ("value_mse", "td2_dd", "td_dd"),
    ("value_mse", "td2_cfm", "vae"),
    ("value_mse", "td2_cfm", "gan"),
)


def train(seed: int, directory: pathlib.Path) -> list[dict[str, Any]]:
    """Trains all methods at all horizons from a seed; a run that was stopped goes on.

    Args:
      seed: its number.
      directory: gets a folder for the run.

    Returns:
      The rows of the final table.
    """
    config = td_flow.get_config(TASK)
    config.update({"seed": seed})
    workdir = directory / f"seed{seed}"
    return horizon.run(config, workdir)


def violations(means: Mapping[tuple[str, float], Mapping[str, float]]) -> list[str]:
    """Returns which orderings do not hold.

    Args:
      means: measures by method and discount.
    """
    discounts = dict.fromkeys(discount for _, discount in means)
    return [
        f"{measure} of {ahead} below {behind} at {discount:g}"
        for discount in discounts
        for measure, ahead, behind in ORDER
        if not means[ahead, discount][measure] < means[behind, discount][measure]
    ]


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Trains all methods from each seed and compares their order with the paper's."""
    tables = [train(seed, directory / "td_flow_maze") for seed in range(seeds)]
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in (row for rows in tables for row in rows):
        found.setdefault((row["method"], row["discount"]), []).append(row)
    means = {
        place: {
            key: float(np.mean([row[key] for row in rows]))
            for key in horizon_report.MEASURES
            if rows[0][key] is not None
        }
        for place, rows in found.items()
    }
    failed = violations(means)
    averaged = [
        {"method": method, "discount": discount}
        | {key: measured.get(key) for key in horizon_report.MEASURES}
        for (method, discount), measured in means.items()
    ]
    picture = directory / "td_flow_maze.png"
    plots.save_figure(picture, horizon_report.by_horizon(averaged), columns=2)
    longest = max(discount for _, discount in means)
    shown = "; ".join(
        f"{method} {measured['emd']:.3f} / "
        + (f"{measured['nll']:.2f}" if "nll" in measured else "-")
        + f" / {measured['value_mse']:.3g}"
        for (method, discount), measured in means.items()
        if discount == longest
    )
    return Outcome(
        passed=not failed,
        figure=f"EMD / NLL / MSE(V) at {longest:g}: {shown}"
        + (f"; fails: {', '.join(failed)}" if failed else ""),
        details={"seeds": tables, "failed": failed},
        picture=picture,
    )


CLAIM = Claim(
    name="td_flow_maze",
    paper="Farebrother et al. 2025",
    url="https://arxiv.org/abs/2503.09817",
    statement=(
        "following the target's flow beats fresh paths, in flows and in diffusion, and flows beat "
        "the autoencoder and the adversarial network, in the maze"
    ),
    paper_figure=(
        "Pointmass at .99, EMD / NLL / MSE(V): TD-CFM .062 / .554 / 356; TD-CFM(C) .022 / -.696 / "
        "11.9; TD2-CFM .021 / -.843 / 8.74; TD-DD .149 / 2.97 / 1245; TD2-DD .027 / .761 / 11.1; "
        "MSE(V) of VAE 1822, GAN 1257"
    ),
    budget="3 seeds of seven models at two discounts, 4,000 updates each, 40 min",
    acceptance="means over seeds, at both discounts: "
    + ", ".join(f"{measure} of {ahead} below {behind}" for measure, ahead, behind in ORDER),
    default_seeds=3,
    run=run,
    slow=True,
)
