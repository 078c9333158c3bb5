"""Adan's first steps on a quadratic, against the trajectories of its authors' code.

The trajectories are those of the update in the authors' `adan.py`, in float64, on
f(x) = x'Ax/2 - b'x with A = [[3, 1], [1, 2]], b = (1, -1), from x = (1.5, -2), learning rate 0.1.
"""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax.agents import optimizers
from bellmax.experiments import plots
from bellmax.experiments.claims.claim import Claim, Outcome

# Digits that the official trajectories were written down with.
TOLERANCE = 6e-8
# How far another algorithm must be, for the comparison to mean anything.
CONTROL_DISTANCE = 1e-3
RATE = 0.1

OFFICIAL = {
    "plain": [
        (1.4000000, -1.9000000),
        (1.3013554, -1.8003710),
        (1.2038338, -1.7009972),
        (1.1078493, -1.6019325),
        (1.0140724, -1.5032794),
    ],
    "decay, proximal": [
        (1.3972056, -1.8962076),
        (1.2960324, -1.7930240),
        (1.1962400, -1.6903246),
        (1.0982629, -1.5881685),
        (1.0028036, -1.4866681),
    ],
    "decay, no_prox": [
        (1.3970000, -1.8960000),
        (1.2956306, -1.7926119),
        (1.1956509, -1.6897104),
        (1.0974990, -1.5873554),
        (1.0018831, -1.4856600),
    ],
    "clipped at norm 1": [
        (1.4000000, -1.9000000),
        (1.3001463, -1.7999887),
        (1.2004577, -1.6999787),
        (1.1010832, -1.5999846),
        (1.0023607, -1.5000256),
    ],
    # Restarted before the fourth step; the first three are those of "plain".
    "restarted": [
        (1.4000000, -1.9000000),
        (1.3013554, -1.8003710),
        (1.2038338, -1.7009972),
        (1.1038338, -1.6009972),
        (1.0077545, -1.5015500),
        (0.9156131, -1.4025345),
    ],
}


def trajectory(
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    before_step: Callable[[int, optax.OptState], optax.OptState] = lambda step, state: state,
) -> np.ndarray:
    """Returns the iterates of an optimiser on the quadratic, in float64.

    Args:
      optimizer: any optax transformation.
      num_steps: steps.
      before_step: may change the state before a step, counted from 1.

    Returns:
      Iterates after each step. [num_steps, 2].
    """
    with jax.enable_x64(True):
        matrix, offset = jnp.array([[3.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        point = jnp.array([1.5, -2.0])
        state, points = optimizer.init(point), []
        for step in range(1, num_steps + 1):
            state = before_step(step, state)
            updates, state = optimizer.update(matrix @ point - offset, state, point)
            point = optax.apply_updates(point, updates)
            points.append(np.asarray(point))
    return np.stack(points)


def _restart_before_four(step: int, state: optax.OptState) -> optax.OptState:
    return optimizers.restart_adan(state) if step == 4 else state


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Runs our Adan and optax's over the same steps; nothing is random, so seeds are not used."""
    del seeds
    ours = {
        "plain": trajectory(optimizers.adan(RATE), 5),
        "decay, proximal": trajectory(optimizers.adan(RATE, weight_decay=0.02), 5),
        "decay, no_prox": trajectory(optimizers.adan(RATE, weight_decay=0.02, proximal=False), 5),
        "clipped at norm 1": trajectory(
            optax.chain(optax.clip_by_global_norm(1.0), optimizers.adan(RATE)), 5
        ),
        "restarted": trajectory(optimizers.adan(RATE), 6, before_step=_restart_before_four),
    }
    distances = {
        name: np.abs(points - np.array(OFFICIAL[name])).max(axis=1) for name, points in ours.items()
    }
    control = np.abs(trajectory(optax.adan(RATE), 5) - np.array(OFFICIAL["plain"])).max(axis=1)
    worst = float(max(distance.max() for distance in distances.values()))
    passed = worst < TOLERANCE and float(control[-1]) > CONTROL_DISTANCE
    picture = directory / "adan_trajectory.png"
    panel = plots.Panel(
        "Distance to the authors' trajectory",
        "step",
        "largest coordinate",
        [
            *(
                plots.Series(name, np.arange(1, d.size + 1), np.maximum(d, 1e-12), marker=True)
                for name, d in distances.items()
            ),
            plots.Series("optax.adan", np.arange(1, 6), np.maximum(control, 1e-12), style="--"),
        ],
        y_scale="log",
        horizontal_lines=[("digits known", TOLERANCE)],
    )
    plots.save_figure(picture, [panel])
    return Outcome(
        passed=passed,
        figure=f"largest distance {worst:.1e}; optax.adan is {control[-1]:.1e} away after 5 steps",
        details={
            "distances": {name: d.tolist() for name, d in distances.items()},
            "optax_distance": control.tolist(),
        },
        picture=picture,
    )


CLAIM = Claim(
    name="adan_trajectory",
    paper="Xie et al. 2022",
    url="https://arxiv.org/abs/2208.06677",
    statement="our Adan takes the steps of its authors' code: plain, decayed, clipped, restarted",
    paper_figure="five trajectories of the official code, written down to 7 decimals",
    budget="31 steps on a quadratic in float64, 2 s",
    acceptance=f"all within {TOLERANCE:g}, and `optax.adan` beyond {CONTROL_DISTANCE:g}",
    default_seeds=1,
    run=run,
)
