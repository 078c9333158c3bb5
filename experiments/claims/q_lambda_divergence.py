r"""Distributional Q(lambda) diverges where lambda exceeds (1 - gamma) / (gamma epsilon).

Two states; action 0 stays, 1 swaps. The policy always swaps and the behaviour always stays, which
is epsilon = 2, as far as policies can be. There the W1 modulus is attained: the operator on means,
which the categorical projection keeps, has gamma (1 + lambda) / (1 - gamma lambda) as its spectral
radius. The modulus and the threshold are derived here; of the paper we have that the operator
contracts where the policies are near each other.

The rule, written before the first run, at discounts 0.5, 0.7 and 0.9 and 31 atoms:

1. radius: at 21 values of lambda in [0, 1] the spectral radius is the predicted modulus to 1e-6;
2. threshold: the lambda at which the radius crosses 1, by bisection, is the predicted one (0.5,
   0.2143, 0.0556) within 1e-6;
3. iterates: from uniform laws, 200 applications at 0.9 times the threshold bring the Cramer
   distance to the fixed point below its first value, and at 1.1 times above, and the mass of all
   iterates is 1.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.agents import tabular
from bellmax.experiments import plots, tabular_q_lambda
from bellmax.experiments.claims.claim import Claim, Outcome

DISCOUNTS, NUM_ATOMS, NUM_POINTS = (0.5, 0.7, 0.9), 31, 21
# The rule's numbers.
TOLERANCE = 1e-6
FACTORS, NUM_ITERATIONS = (0.9, 1.1), 200
_HALVINGS = 40


def crossing(problem: tabular_q_lambda.Problem) -> float:
    """Returns the lambda at which the spectral radius is 1, by bisection.

    Args:
      problem: a problem that converges at lambda 0 and diverges at 1.

    Returns:
      The lambda.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        grows = float(tabular.spectral_radius(tabular_q_lambda.operator(problem, middle))) > 1
        low, high = (low, middle) if grows else (middle, high)
    return (low + high) / 2


def iterate(problem: tabular_q_lambda.Problem, trace_decay: float) -> tuple[float, float]:
    """Applies Q(lambda) to uniform laws, matrix-free.

    Args:
      problem: the problem.
      trace_decay: lambda.

    Returns:
      The last distance to the fixed point over the first, and the largest error of a mass over the
      largest weight.
    """
    transition, reward, policy, behaviour, discount, support = problem
    fixed = tabular.categorical_action_fixed_point(transition, reward, policy, discount, support)

    @jax.jit
    def step(probs, _):
        following = tabular.q_lambda_dp_step(
            probs,
            transition,
            reward,
            policy,
            behaviour,
            discount,
            support,
            trace_decay=trace_decay,
        )
        mass = jnp.max(jnp.abs(jnp.sum(following, axis=-1) - 1))
        return following, mass / jnp.maximum(jnp.max(jnp.abs(following)), 1)

    start = jnp.full((*reward.shape, support.size), 1 / support.size)
    last, masses = jax.lax.scan(step, start, length=NUM_ITERATIONS)
    ends = [jnp.max(tabular.categorical_cramer(probs, fixed, support)) for probs in (start, last)]
    return float(ends[1] / ends[0]), float(jnp.max(masses))


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Computes radii, crossings and iterates; nothing is random."""
    del seeds
    trace_decays = np.linspace(0, 1, NUM_POINTS)
    details, panels, held = {}, [], []
    with jax.enable_x64(True):
        for discount in DISCOUNTS:
            problem = tabular_q_lambda.stay_and_swap(discount, NUM_ATOMS)
            found = tabular_q_lambda.radii(problem, trace_decays)
            predicted = [tabular_q_lambda.modulus(problem, value, 1) for value in trace_decays]
            limit = tabular_q_lambda.threshold(problem)
            at = crossing(problem)
            ratios, masses = zip(
                *(iterate(problem, factor * limit) for factor in FACTORS), strict=True
            )
            row = {
                "radius_error": float(np.abs(found - predicted).max()),
                "threshold": limit,
                "crossing": at,
                "ratios": dict(zip(map(str, FACTORS), ratios, strict=True)),
                "mass_error": max(masses),
            }
            held.append(
                row["radius_error"] <= TOLERANCE
                and abs(at - limit) <= TOLERANCE
                and ratios[0] < 1 < ratios[1]
                and max(masses) <= TOLERANCE
            )
            details[f"{discount:g}"] = row
            panels += tabular_q_lambda.divergence_panels(problem, trace_decays, found)
    picture = directory / "q_lambda_divergence.png"
    plots.save_figure(picture, panels)
    crossings = ", ".join(f"{row['crossing']:.6f}" for row in details.values())
    worst = max(row["radius_error"] for row in details.values())
    return Outcome(
        passed=all(held),
        figure=(
            f"radius crosses 1 at lambda {crossings} for discounts "
            f"{', '.join(f'{discount:g}' for discount in DISCOUNTS)}, off the predicted modulus by "
            f"at most {worst:.0e}"
        ),
        details=details,
        picture=picture,
    )


CLAIM = Claim(
    name="q_lambda_divergence",
    paper="Tang et al. 2024",
    url="https://arxiv.org/abs/2402.05766",
    statement=(
        "Q(lambda) of policies far apart diverges, from lambda = (1 - gamma) / (gamma epsilon) on, "
        "a limit that is derived here and tight"
    ),
    paper_figure=(
        "derived here: thresholds 0.5, 0.2143 and 0.0556 at discounts 0.5, 0.7, 0.9 and epsilon 2"
    ),
    budget=f"3 discounts, {NUM_POINTS} operators and a bisection each, 40 s",
    acceptance=(
        f"at every discount: radii as predicted, crossing at the threshold within {TOLERANCE:g}; "
        f"{NUM_ITERATIONS} applications shrink the distance at {FACTORS[0]:g} times the threshold "
        f"and raise it at {FACTORS[1]:g}"
    ),
    default_seeds=1,
    run=run,
)
