r"""On two states DCFP learns the law of the return at the rate of its samples, down to its bias.

One chain, of two states, at one discount, 0.9, with 101 atoms (`dcfp_environments` has others);
transitions estimated from N next states drawn from each state, 30 seeds of NumPy's generator. The
error is the largest W1 distance over the two states to the categorical fixed point of the true
chain on 4,001 atoms, itself off by about 0.0006.

The rule, written before the first run:

1. rate: between N = 100 and N = 1,000 and between 1,000 and 10,000 the mean error of DCFP falls
   like N to a power in [-0.65, -0.35];
2. floor: at N = 1,000,000 its mean error is between 0.9 and 1.25 times the bias, which is the
   error with the true transitions, and the bias is within the bound 1 / ((1 - gamma) sqrt(K - 1));
3. the mean error of DCFP is no higher than that of quantile dynamic programming at any N;
4. the mean errors at N = 100, 1,000 and 10,000 are those known (0.428, 0.134, 0.045), computed
   apart from this library, within 3 standard errors and the last digit.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.experiments import plots, tabular_laws
from bellmax.experiments.claims.claim import Claim, Outcome

DISCOUNT, NUM_ATOMS, NUM_TRUTH_ATOMS = 0.9, 101, 4001
SAMPLES = (100, 1000, 10_000, 1_000_000)
METHODS = ("dcfp", "qdp")
# The rule's numbers.
SLOPES = (-0.65, -0.35)
FLOOR = (0.9, 1.25)
KNOWN = (0.428, 0.134, 0.045)
STANDARD_ERRORS, DIGIT = 3.0, 0.0005


class Found(NamedTuple):
    """What the seeds gave.

    Attributes:
      errors: by method. [N, R] each.
      biases: errors with the true transitions, by method.
    """

    errors: dict[str, np.ndarray]
    biases: dict[str, float]


def measure(seeds: int) -> Found:
    """Solves every estimate.

    Args:
      seeds: R.

    Returns:
      Errors and biases.
    """
    chain = tabular_laws.make_chain("two_state", 0, num_states=2)
    fine = tabular_laws.support(DISCOUNT, NUM_TRUTH_ATOMS)
    truth = tabular_laws.solve_chain("dcfp", chain, DISCOUNT, fine, 0)
    grid = tabular_laws.support(DISCOUNT, NUM_ATOMS)

    def errors(method: str, transitions) -> np.ndarray:
        found = tabular_laws.sup_errors(
            method, jnp.array(transitions), chain.reward, DISCOUNT, grid, 0, truth
        )
        return np.asarray(found)

    estimates = [tabular_laws.estimates(chain, count, range(seeds)) for count in SAMPLES]
    return Found(
        {method: np.stack([errors(method, drawn) for drawn in estimates]) for method in METHODS},
        {method: float(errors(method, chain.transition[None])[0]) for method in METHODS},
    )


def slopes(found: Found) -> np.ndarray:
    """Returns the exponents of N of DCFP's mean error, between the first three numbers of samples.

    Args:
      found: the errors.

    Returns:
      Exponents. [2].
    """
    means = np.log(found.errors["dcfp"].mean(axis=1)[:3])
    return np.diff(means) / np.diff(np.log(SAMPLES[:3]))


def parts(found: Found) -> dict[str, bool]:
    """Applies the rule, part by part."""
    means = {method: values.mean(axis=1) for method, values in found.errors.items()}
    dcfp = found.errors["dcfp"]
    spread = dcfp.std(axis=1, ddof=1) / np.sqrt(dcfp.shape[1])
    share = means["dcfp"][-1] / found.biases["dcfp"]
    off = np.abs(means["dcfp"][:3] - np.array(KNOWN))
    bound = 1 / ((1 - DISCOUNT) * np.sqrt(NUM_ATOMS - 1))
    return {
        "rate": bool(np.all((slopes(found) >= SLOPES[0]) & (slopes(found) <= SLOPES[1]))),
        "floor": bool(FLOOR[0] <= share <= FLOOR[1] and found.biases["dcfp"] <= bound),
        "quantiles": bool(np.all(means["dcfp"] <= means["qdp"])),
        "known": bool(np.all(off <= STANDARD_ERRORS * spread[:3] + DIGIT)),
    }


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Measures and decides."""
    with jax.enable_x64(True):
        found = measure(seeds)
    verdicts = parts(found)
    picture = directory / "dcfp_sample_efficiency.png"
    _draw(picture, found)
    means = {method: values.mean(axis=1) for method, values in found.errors.items()}
    listed = {key: " / ".join(f"{value:.3f}" for value in values) for key, values in means.items()}
    return Outcome(
        passed=all(verdicts.values()),
        figure=(
            f"DCFP {listed['dcfp']} and QDP {listed['qdp']} at N = 10^2, 10^3, 10^4, 10^6 over "
            f"{seeds} seeds; exponents {', '.join(f'{slope:.2f}' for slope in slopes(found))}; "
            f"bias of DCFP {found.biases['dcfp']:.4f}, of QDP {found.biases['qdp']:.4f}"
        ),
        details={
            "parts": verdicts,
            "biases": found.biases,
            "errors": {
                method: [
                    {
                        "samples": count,
                        "mean": float(row.mean()),
                        "standard_error": float(row.std(ddof=1) / np.sqrt(row.size)),
                    }
                    for count, row in zip(SAMPLES, values, strict=True)
                ]
                for method, values in found.errors.items()
            },
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, found: Found) -> None:
    series = []
    for method, values in found.errors.items():
        mean = values.mean(axis=1)
        spread = 2 * values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        series.append(
            plots.Series(method.upper(), SAMPLES, mean, mean - spread, mean + spread, marker=True)
        )
    first = found.errors["dcfp"].mean(axis=1)[0]
    slope = first * np.sqrt(SAMPLES[0] / np.array(SAMPLES))
    series.append(plots.Series("N^(-1/2)", SAMPLES, slope, style="--", reference=True))
    panel = plots.Panel(
        f"Two states, discount {DISCOUNT:g}, {NUM_ATOMS} atoms",
        "next states drawn from each state, N",
        "largest W1 error (mean and 2 standard errors)",
        series,
        x_scale="log",
        y_scale="log",
        horizontal_lines=[(f"bias of {m.upper()}", bias) for m, bias in found.biases.items()],
    )
    plots.save_figure(path, [panel])


CLAIM = Claim(
    name="dcfp_sample_efficiency",
    paper="Rowland et al. 2024",
    url="https://arxiv.org/abs/2402.07598",
    statement=(
        f"on two states at discount {DISCOUNT:g} DCFP's error falls like 1 / sqrt(N) down to the "
        "bias of its atoms, below QDP's"
    ),
    paper_figure="near-minimax-optimal: W1 error of order N^(-1/2) (1 - gamma)^(-3/2)",
    budget=f"{len(SAMPLES)} numbers of samples, 30 seeds, 2 methods, 30 s",
    acceptance=(
        f"exponents of N in [{SLOPES[0]:g}, {SLOPES[1]:g}]; at a million samples {FLOOR[0]:g} to "
        f"{FLOOR[1]:g} times the bias, which is within the theorem's bound; mean errors no higher "
        f"than QDP's, and as known within {STANDARD_ERRORS:g} standard errors"
    ),
    default_seeds=30,
    run=run,
)
