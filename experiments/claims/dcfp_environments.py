r"""DCFP beside QDP and CDP in four environments: error against samples, and against the clock.

Two states; a corridor of 10; 10 states of nearly certain (low_random) and of nearly uniform moves
(high_random), one draw each. Discounts 0.8, 0.9, 0.95 and 0.99, 100 atoms or quantiles, transitions
estimated from N = 100, 1,000 and 10,000 next states of each state, 30 seeds. The error is the
largest W1 distance over states to 20,000 sampled returns. CDP makes 30 sweeps from point masses at
0, DCFP runs as it does by default, QDP until nothing moves by more than 1e-6.

The environments' names are the paper's; their generators, the number of seeds and this reading of
its figures are ours. The rule, written before the first run; all in every environment and at every
discount unless it says otherwise:

1. bound: the mean error of DCFP is at every N at most 1 / ((1 - gamma) sqrt(K - 1)), the theorem's
   bias, plus (1 - gamma)^(-3/2) N^(-1/2), its rate with 1 for the constant and the logarithms;
2. rate: from N = 100 to 10,000 the mean W1 distance of DCFP's estimate from DCFP's solution of the
   true chain, which has the same bias, falls like N to a power in [-0.65, -0.35];
3. few sweeps: at N = 10,000 the mean error of CDP is at least twice DCFP's at discounts of 0.95 and
   above;
4. sweeps: of 10, 30, 100, 300, 1,000 and 3,000 sweeps of CDP with the true transitions, the first
   whose error is at most 1.1 times DCFP's are at 0.99 at least 10 times as many as at 0.8, while
   DCFP is given no such number;
5. noisy: where returns are noisy (two states, the corridor, high_random) the mean error of DCFP is
   at every N at most 1.25 times QDP's;
6. certain: where they are nearly certain (low_random), at N = 10,000 that of QDP is below DCFP's.

Errors with the true transitions at 30, 100 and 300 atoms are reported and not judged, and so
are seconds.

Parts 5 and 6 fail, and no number was changed. What is left at N = 10,000 is the bias of the atoms,
and whether that is small does not go with the name of the environment:

- noisy fails in high_random alone, at every discount. Moves are uniform there but rewards average
  out: the return's standard deviation is 4.7 gaps of atoms at 0.8 and 1.2 at 0.99, against 18 and 5
  on two states, and projection, which adds variance, takes it from 1.22 to 2.58 at 0.99. QDP is the
  better one there. More atoms leave that so: at 300, DCFP's bias is still 1.4 to 4.6 times QDP's.
- certain fails in low_random at 0.99, where DCFP is the better one. One state keeps to itself but
  for a chance of 0.0007 a step, less than half of a quantile's 1 / K, so that QDP never sees it
  leave: its bias of 2.87 is the same at 30, 100 and 300 quantiles. DCFP keeps means exactly.

With the clock DCFP has no advantage over CDP here: 1,000 compiled sweeps on 10 states take under 3
ms and leave less than a thousandth of its error at 0.99, while DCFP by its default solver, which
iterates in all chains but the first, takes up to 50. What it saves is the choice of a number.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.experiments import plots, progress, tabular_fixed_points, tabular_laws
from bellmax.experiments.claims.claim import Claim, Outcome

NOISY, CERTAIN = ("two_state", "chain", "high_random"), ("low_random",)
ENVIRONMENTS = ("two_state", "chain", "low_random", "high_random")
DISCOUNTS, SAMPLES, NUM_ATOMS = (0.8, 0.9, 0.95, 0.99), (100, 1000, 10_000), 100
SWEEPS, FEW_SWEEPS = (10, 30, 100, 300, 1000, 3000), 30
BIAS_ATOMS = (30, 100, 300)
# The rule's numbers.
SLOPES = (-0.65, -0.35)
HIGH_DISCOUNT, LEAST_RATIO = 0.95, 2.0
AS_GOOD, LEAST_SWEEPS_RATIO = 1.1, 10.0
COMPARABLE = 1.25

# By environment and discount.
Place = tuple[str, float]


class Found(NamedTuple):
    """What a run gave.

    Attributes:
      samples: N. [N].
      num_atoms: K.
      errors: mean errors, by place and method. [N] each.
      standard_errors: theirs, likewise.
      estimation: mean distances of DCFP's estimates from DCFP's own solution, by place. [N] each.
      sweeps: error of CDP by number of sweeps, true transitions, by place.
      biases: errors of DCFP and QDP with the true transitions, by place and method.
      seconds: of every method with the true transitions, by place; CDP's by number of sweeps.
    """

    samples: tuple[int, ...]
    num_atoms: int
    errors: dict[Place, dict[str, np.ndarray]]
    standard_errors: dict[Place, dict[str, np.ndarray]]
    estimation: dict[Place, np.ndarray]
    sweeps: dict[Place, dict[int, float]]
    biases: dict[Place, dict[str, float]]
    seconds: dict[Place, dict[str, float]]


def make_config(seeds: int) -> tabular_fixed_points.Config:
    """Returns the run of `tabular` that the claim is about.

    Args:
      seeds: estimates of the transitions, at least 2.

    Returns:
      The config.
    """
    keys = tabular_fixed_points.FixedPointsConfig(
        environments=ENVIRONMENTS,
        methods=("dcfp", "qdp", "cdp"),
        discounts=DISCOUNTS,
        num_atoms=(NUM_ATOMS,),
        num_samples=SAMPLES,
        num_seeds=seeds,
        num_states=10,
        num_sweeps=SWEEPS,
        estimate_sweeps=FEW_SWEEPS,
        num_returns=20_000,
        num_functions=1,
    )
    return tabular_fixed_points.Config(seed=0, fixed_points=keys)


def measure(config: tabular_fixed_points.Config, workdir: pathlib.Path) -> Found:
    """Solves every estimate with every method, and takes the time.

    Args:
      config: the run, of one number of atoms.
      workdir: folder for the run's own tables and pictures.

    Returns:
      Errors and seconds.
    """
    keys = config.fixed_points
    workdir.mkdir(parents=True, exist_ok=True)
    rows = tabular_fixed_points.solve(config, workdir, progress.say)
    places = [(name, discount) for name in keys.environments for discount in keys.discounts]

    def column(place: Place, key: str) -> dict[str, np.ndarray]:
        mine = [row for row in rows["errors"] if (row["environment"], row["discount"]) == place]
        return {
            method: np.array([row[key] for row in mine if row["method"] == method])
            for method in keys.methods
        }

    def clock(place: Place) -> list[dict[str, Any]]:
        return [r for r in rows["wall_clock"] if (r["environment"], r["discount"]) == place]

    def by_method(place: Place, key: str) -> dict[str, float]:
        return {r["method"]: r[key] for r in clock(place) if r["method"] != "cdp"}

    def by_sweeps(place: Place, key: str) -> dict[int, float]:
        return {r["sweeps"]: r[key] for r in clock(place) if r["method"] == "cdp"}

    with jax.enable_x64(True):
        estimation = {place: _estimation(*place, config) for place in places}
    return Found(
        samples=keys.num_samples,
        num_atoms=keys.num_atoms[0],
        errors={place: column(place, "error") for place in places},
        standard_errors={place: column(place, "standard_error") for place in places},
        estimation=estimation,
        sweeps={place: by_sweeps(place, "error") for place in places},
        biases={place: by_method(place, "error") for place in places},
        seconds={
            place: by_method(place, "seconds")
            | {f"cdp {n}": time for n, time in by_sweeps(place, "seconds").items()}
            for place in places
        },
    )


def _estimation(name: str, discount: float, config: tabular_fixed_points.Config) -> np.ndarray:
    keys = config.fixed_points
    chain = tabular_laws.make_chain(name, config.seed, num_states=keys.num_states)
    grid = tabular_laws.support(discount, keys.num_atoms[0])
    own = tabular_laws.solve_chain("dcfp", chain, discount, grid, 0)
    means = []
    for num_samples in keys.num_samples:
        drawn = tabular_laws.estimates(chain, num_samples, range(keys.num_seeds))
        found = tabular_laws.sup_errors(
            "dcfp", jnp.array(drawn), chain.reward, discount, grid, 0, own
        )
        means.append(float(found.mean()))
    return np.array(means)


def biases_by_atoms(config: tabular_fixed_points.Config) -> dict[str, dict[str, list[float]]]:
    """Returns errors with the true transitions at several numbers of atoms; none is judged.

    Args:
      config: the run.

    Returns:
      Errors at `BIAS_ATOMS`, by place and method.
    """
    keys, found = config.fixed_points, {}
    with jax.enable_x64(True):
        for number, name in enumerate(keys.environments):
            chain = tabular_laws.make_chain(name, config.seed, num_states=keys.num_states)
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            for discount in keys.discounts:
                truth = tabular_laws.true_laws(key, chain, discount, keys.num_returns)
                found[_name((name, discount))] = row = {"dcfp": [], "qdp": []}
                for num_atoms in BIAS_ATOMS:
                    grid = tabular_laws.support(discount, num_atoms)
                    for method, values in row.items():
                        error = tabular_laws.sup_errors(
                            method, chain.transition[None], chain.reward, discount, grid, 0, truth
                        )
                        values.append(float(error[0]))
    return found


def slope(found: Found, place: Place) -> float:
    """Returns the exponent of N of the error of estimation, NaN where there is no error."""
    first, last = found.estimation[place][[0, -1]]
    if min(first, last) <= 0:
        return float("nan")
    return float(np.log(last / first) / np.log(found.samples[-1] / found.samples[0]))


def sweeps_needed(found: Found, place: Place) -> float:
    """Returns the first number of sweeps after which CDP is as good as DCFP; infinity if none is.

    Args:
      found: the errors.
      place: environment and discount.

    Returns:
      The number.
    """
    limit = AS_GOOD * found.biases[place]["dcfp"]
    return min((n for n, error in found.sweeps[place].items() if error <= limit), default=np.inf)


def broken(found: Found) -> dict[str, list[str]]:
    """Applies the rule, part by part.

    Args:
      found: the errors.

    Returns:
      For each part the places where it does not hold, none where it holds.
    """
    failures: dict[str, list[str]] = {
        part: [] for part in ("bound", "rate", "few sweeps", "sweeps", "noisy", "certain")
    }
    for place, errors in found.errors.items():
        name, discount = place
        gap = 1 - discount
        bound = 1 / (gap * np.sqrt(found.num_atoms - 1))
        bounds = bound + gap**-1.5 / np.sqrt(np.array(found.samples))
        dcfp, qdp, cdp = errors["dcfp"], errors["qdp"], errors["cdp"]
        verdicts = {
            "bound": np.all(dcfp <= bounds),
            "rate": SLOPES[0] <= slope(found, place) <= SLOPES[1],
            "few sweeps": discount < HIGH_DISCOUNT or cdp[-1] >= LEAST_RATIO * dcfp[-1],
            "noisy": name not in NOISY or np.all(dcfp <= COMPARABLE * qdp),
            "certain": name not in CERTAIN or qdp[-1] < dcfp[-1],
        }
        for part, held in verdicts.items():
            if not held:
                failures[part].append(_name(place))
    for name in dict.fromkeys(name for name, _ in found.errors):
        discounts = [discount for other, discount in found.errors if other == name]
        low = sweeps_needed(found, (name, min(discounts)))
        high = sweeps_needed(found, (name, max(discounts)))
        # Two infinities, or one at the low discount, show nothing.
        if not (np.isfinite(low) and high >= LEAST_SWEEPS_RATIO * low):
            failures["sweeps"].append(name)
    return failures


def _name(place: Place) -> str:
    return f"{place[0]} {place[1]:g}"


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Measures and decides."""
    config = make_config(seeds)
    found = measure(config, directory / "dcfp_environments")
    by_atoms = biases_by_atoms(config)
    failures = broken(found)
    picture = directory / "dcfp_environments.png"
    plots.save_figure(picture, panels(found), columns=len(DISCOUNTS))
    exponents = [slope(found, place) for place in found.errors]
    last = {
        name: max(
            found.errors[name, discount]["dcfp"][-1] / found.errors[name, discount]["qdp"][-1]
            for discount in DISCOUNTS
        )
        for name in ENVIRONMENTS
    }
    behind = [
        found.errors[name, discount]["cdp"][-1] / found.errors[name, discount]["dcfp"][-1]
        for name in ENVIRONMENTS
        for discount in DISCOUNTS
        if discount >= HIGH_DISCOUNT
    ]
    wrong = "; ".join(f"{part} in {', '.join(where)}" for part, where in failures.items() if where)
    return Outcome(
        passed=not any(failures.values()),
        figure=(
            f"{len(found.errors)} places, {seeds} seeds: exponents of N {min(exponents):.2f} to "
            f"{max(exponents):.2f}; CDP after {FEW_SWEEPS} sweeps at least {min(behind):.1f} times "
            f"as far off as DCFP at 0.95 and 0.99; DCFP's error over QDP's at N = 10,000, the "
            f"greatest over discounts: "
            + ", ".join(f"{name} {ratio:.2f}" for name, ratio in last.items())
            + f"; fails: {wrong or 'nothing'}"
        ),
        details={
            "parts": {part: not where for part, where in failures.items()},
            "failures": failures,
            "places": [
                {
                    "environment": place[0],
                    "discount": place[1],
                    "samples": list(found.samples),
                    "errors": {key: row.tolist() for key, row in found.errors[place].items()},
                    "standard_errors": {
                        key: row.tolist() for key, row in found.standard_errors[place].items()
                    },
                    "estimation": found.estimation[place].tolist(),
                    "exponent": slope(found, place),
                    "cdp_errors": {str(n): error for n, error in found.sweeps[place].items()},
                    "biases": found.biases[place],
                    "seconds": found.seconds[place],
                }
                for place in found.errors
            ],
            "biases_by_atoms": {"atoms": list(BIAS_ATOMS), **by_atoms},
        },
        picture=picture,
    )


def panels(found: Found) -> list[plots.Panel]:
    """Returns panels: of each environment a row against samples and a row against the clock.

    Args:
      found: the errors.

    Returns:
      Two panels for each place.
    """
    drawn = []
    for name in dict.fromkeys(name for name, _ in found.errors):
        places = [place for place in found.errors if place[0] == name]
        drawn += [_samples_panel(found, place) for place in places]
        drawn += [_clock_panel(found, place) for place in places]
    return drawn


def _samples_panel(found: Found, place: Place) -> plots.Panel:
    series = []
    for method, mean in found.errors[place].items():
        spread = 2 * found.standard_errors[place][method]
        low = np.maximum(mean - spread, mean / 10)
        label = f"CDP, {FEW_SWEEPS} sweeps" if method == "cdp" else method.upper()
        series.append(plots.Series(label, found.samples, mean, low, mean + spread, marker=True))
    own = found.estimation[place]
    series.append(
        plots.Series("DCFP from its own solution", found.samples, own, style="--", reference=True)
    )
    return plots.Panel(
        f"{place[0]}, discount {place[1]:g}",
        "next states drawn from each state, N",
        "largest W1 error (mean, 2 standard errors)",
        series,
        x_scale="log",
        y_scale="log",
    )


def _clock_panel(found: Found, place: Place) -> plots.Panel:
    seconds = found.seconds[place]
    series = [
        plots.Series(method.upper(), [seconds[method]], [error], style="", marker=True)
        for method, error in found.biases[place].items()
    ]
    counts = list(found.sweeps[place])
    series.append(
        plots.Series(
            f"CDP, {min(counts)} to {max(counts):,} sweeps",
            [seconds[f"cdp {count}"] for count in counts],
            list(found.sweeps[place].values()),
            marker=True,
        )
    )
    return plots.Panel(
        f"{place[0]}, discount {place[1]:g}, transitions known",
        "seconds",
        "largest W1 error over states",
        series,
        x_scale="log",
        y_scale="log",
    )


CLAIM = Claim(
    name="dcfp_environments",
    paper="Rowland et al. 2024",
    url="https://arxiv.org/abs/2402.07598",
    statement=(
        "in four environments DCFP's error falls like 1 / sqrt(N) and needs no number of sweeps; "
        "QDP is better only where returns are nearly certain"
    ),
    paper_figure=(
        "curves of W1 error against samples and wall-clock by environment and discount; no number "
        "carries over"
    ),
    budget=(
        f"{len(ENVIRONMENTS)} environments, {len(DISCOUNTS)} discounts, {len(SAMPLES)} numbers of "
        f"samples, 3 methods, 30 seeds, {NUM_ATOMS} atoms, 10 minutes"
    ),
    acceptance=(
        f"everywhere: DCFP below the theorem's bias plus (1 - gamma)^(-3/2) N^(-1/2), exponents of "
        f"N in [{SLOPES[0]:g}, {SLOPES[1]:g}], sweeps that CDP needs at least "
        f"{LEAST_SWEEPS_RATIO:g} times as many at 0.99 as at 0.8, and with {FEW_SWEEPS} at least "
        f"{LEAST_RATIO:g} times DCFP's error from {HIGH_DISCOUNT:g} on; DCFP's error at most "
        f"{COMPARABLE:g} times QDP's in {', '.join(NOISY)}, and above it in {', '.join(CERTAIN)}"
    ),
    default_seeds=30,
    run=run,
    slow=True,
)
