r"""While the policies are near, a larger lambda makes distributional Q(lambda) contract faster.

Garnets of 10 states and 4 actions (Dirichlet(0.3) moves, normal rewards), one a seed, discount 0.9,
31 atoms on [-15, 15]. The behaviour is uniform; the policy is (1 - alpha) uniform + alpha times one
random action of each state. The operator is exact, a matrix on differences of laws.

The rule, written before the first run, in every seed:

1. lambda: at alpha = 0.1 the largest Cramer distance to the fixed point after 10 applications falls
   strictly from each lambda of {0, 0.25, 0.5, 0.75, 0.9, 1} to the next;
2. linear: at lambda = 1 the spectral radius over alpha is the same for all alpha within 1e-6;
3. bound: whatever lambda and alpha, where the predicted modulus beta_2 is below 1, no application
   shrinks the distance by less than it, but for rounding.

Two further parts, about the order in alpha below lambda = 1 and the radius at lambda = 0, are the
claim `q_lambda_policy_distance`: the two were one at first, whose first run failed by those parts
alone; they were then given a module, and no number was changed.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.agents import tabular
from bellmax.experiments import plots, tabular_q_lambda
from bellmax.experiments.claims.claim import Claim, Outcome

NUM_STATES, NUM_ACTIONS, CONCENTRATION, DISCOUNT, REACH = 10, 4, 0.3, 0.9, 15.0
TRACE_DECAYS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
MIXTURES = (0.1, 0.25, 0.5, 1.0)
NUM_ATOMS, NUM_ITERATIONS = 31, 20
# The rule's numbers.
AT = 10
RADIUS_TOLERANCE = 1e-6
ROUNDING = 1e-9


class Found(NamedTuple):
    """What one Garnet gave.

    Attributes:
      distances: by alpha, lambda and application. [A, L, T + 1].
      moduli: beta_2. [A, L].
      radii: at lambda = 1. [A].
      plain_radius: at lambda = 0.
      mismatches: epsilon. [A].
    """

    distances: np.ndarray
    moduli: np.ndarray
    radii: np.ndarray
    plain_radius: float
    mismatches: np.ndarray


def measure(seed: int, *, num_atoms: int = NUM_ATOMS) -> Found:
    """Draws a Garnet and iterates its operators.

    Args:
      seed: of the Garnet.
      num_atoms: K.

    Returns:
      Distances, moduli and radii.
    """
    make = tabular_q_lambda.garnet(
        jax.random.key(seed),
        num_states=NUM_STATES,
        num_actions=NUM_ACTIONS,
        concentration=CONCENTRATION,
        discount=DISCOUNT,
        support=jnp.linspace(-REACH, REACH, num_atoms),
    )
    distances, moduli, radii, plain_radius = [], [], [], 0.0
    for mixture in MIXTURES:
        problem = make(mixture)
        curves, row = [], []
        for trace_decay in TRACE_DECAYS:
            matrix = tabular_q_lambda.operator(problem, trace_decay)
            curve = tabular_q_lambda.distances(problem, matrix, NUM_ITERATIONS)
            curves.append(np.asarray(curve))
            row.append(tabular_q_lambda.modulus(problem, trace_decay, 2))
            if trace_decay == 1:
                radii.append(float(tabular.spectral_radius(matrix)))
            if trace_decay == 0 and mixture == MIXTURES[0]:
                plain_radius = float(tabular.spectral_radius(matrix))
        distances.append(curves)
        moduli.append(row)
    mismatches = [make(mixture).mismatch for mixture in MIXTURES]
    return Found(
        np.array(distances), np.array(moduli), np.array(radii), plain_radius, np.array(mismatches)
    )


def parts(found: Found) -> dict[str, bool]:
    """Applies the rule to one Garnet, part by part."""
    after = found.distances[:, :, AT]
    slopes = found.radii / np.array(MIXTURES)
    before, following = found.distances[..., :-1], found.distances[..., 1:]
    within = following <= found.moduli[..., None] * before + ROUNDING
    return {
        "lambda": bool(np.all(np.diff(after[0]) < 0)),
        "linear": bool(np.ptp(slopes) <= RADIUS_TOLERANCE),
        "bound": bool(np.all(within | (found.moduli[..., None] >= 1))),
    }


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Measures every Garnet and decides."""
    with jax.enable_x64(True):
        runs = [measure(seed) for seed in range(seeds)]
    verdicts = [parts(found) for found in runs]
    picture = directory / "q_lambda_contraction.png"
    _draw(picture, runs[0])
    slopes = [found.radii[-1] / MIXTURES[-1] for found in runs]
    after = runs[0].distances[0, :, AT]
    return Outcome(
        passed=all(all(row.values()) for row in verdicts),
        figure=(
            f"radius at lambda = 1 is alpha times {', '.join(f'{slope:.4f}' for slope in slopes)} "
            f"by seed, {runs[0].plain_radius:.4f} at lambda = 0; seed 0, alpha = 0.1: distances "
            f"after {AT} applications {', '.join(f'{value:.1e}' for value in after)}"
        ),
        details={
            "parts": verdicts,
            "seeds": [
                {
                    "distances": found.distances[:, :, AT].tolist(),
                    "beta_2": found.moduli.tolist(),
                    "radii": found.radii.tolist(),
                    "epsilon": found.mismatches.tolist(),
                }
                for found in runs
            ],
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, found: Found) -> None:
    panels = [
        tabular_q_lambda.contraction_panel(
            mixture, mismatch, dict(zip(TRACE_DECAYS, curves, strict=True))
        )
        for mixture, mismatch, curves in zip(
            MIXTURES, found.mismatches, found.distances, strict=True
        )
    ]
    plots.save_figure(path, panels)


CLAIM = Claim(
    name="q_lambda_contraction",
    paper="Tang et al. 2024",
    url="https://arxiv.org/abs/2402.05766",
    statement="near the behaviour a larger lambda contracts faster; lambda = 1 linearly in alpha",
    paper_figure="a contraction whose rate depends on discount, lambda and policy distance",
    budget=f"a Garnet of 10 states a seed, {NUM_ATOMS} atoms, 24 operators each, 3 minutes",
    acceptance=(
        f"in every Garnet: after {AT} applications the distance falls in lambda at alpha = 0.1; "
        f"radius at lambda = 1 linear in alpha within {RADIUS_TOLERANCE:g}; no application worse "
        f"than beta_2"
    ),
    default_seeds=3,
    run=run,
    slow=True,
)
