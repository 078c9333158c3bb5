"""The laws of returns of a `tabular` run: DCFP, QDP and CDP against samples and the clock."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.agents import tabular
from bellmax.experiments import checks, errors, metrics, plots, tabular_laws
from bellmax.experiments import config as config_lib


@dataclasses.dataclass(frozen=True)
class FixedPointsConfig:
    """The keys of `config.fixed_points`; each is described in `configs/tabular/dcfp.py`."""

    environments: tuple[str, ...]
    methods: tuple[str, ...]
    discounts: tuple[float, ...]
    num_atoms: tuple[int, ...]
    num_samples: tuple[int, ...]
    num_seeds: int
    num_states: int
    num_sweeps: tuple[int, ...]
    estimate_sweeps: int
    num_returns: int
    num_functions: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int
    fixed_points: FixedPointsConfig


def check(config: Config) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a name is unknown, a list is empty, or a number is out of range.
    """
    keys = config.fixed_points
    for name in ("environments", "methods", "discounts", "num_atoms", "num_samples", "num_sweeps"):
        values = getattr(keys, name)
        if not values or len(set(values)) != len(values):
            raise errors.UserError(
                f"config.fixed_points.{name} must hold at least one value, none twice; got "
                f"{list(values)}."
            )
    for name, options in (
        ("environments", tabular_laws.ENVIRONMENTS),
        ("methods", tabular_laws.METHODS),
    ):
        for value in getattr(keys, name):
            if value not in options:
                raise config_lib.unknown(f"config.fixed_points.{name}", value, options)
    at_least = {
        "num_atoms": (min(keys.num_atoms), 2),
        "num_samples": (min(keys.num_samples), 1),
        "num_sweeps": (min(keys.num_sweeps), 1),
        "estimate_sweeps": (keys.estimate_sweeps, 1),
        "num_seeds": (keys.num_seeds, 2),
        "num_states": (keys.num_states, 2),
        "num_returns": (keys.num_returns, 100),
        "num_functions": (keys.num_functions, 1),
    }
    for name, (value, least) in at_least.items():
        if value < least:
            raise errors.UserError(
                f"config.fixed_points.{name} must be at least {least}, got {value}."
            )
    if not all(0 < discount < 1 for discount in keys.discounts):
        raise errors.UserError(
            f"config.fixed_points.discounts must lie in (0, 1), got {list(keys.discounts)}."
        )
    checks.seed(config.seed)


def solve(config: Config, workdir: pathlib.Path, announce: Callable[[str], None]) -> dict[str, Any]:
    """Solves every chain at every discount and writes tables and figures.

    What a chain gives at a discount is kept in the folder: a run that was stopped goes on with the
    next one.

    Args:
      config: the run.
      workdir: its folder, which exists.
      announce: says what is done next.

    Returns:
      What `result.json` holds: rows of errors against samples, and of errors against the clock.

    Raises:
      UserError: the config is wrong, or a solution is not exact.
    """
    check(config)
    keys = config.fixed_points
    # As JSON has it, lists for tuples.
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    places = workdir / "places"
    places.mkdir(parents=True, exist_ok=True)
    solved_before = _read_places(places, settings)
    if not solved_before:
        (workdir / "metrics.jsonl").unlink(missing_ok=True)
    rows, clock, error_panels, clock_panels = [], [], [], []
    with jax.enable_x64(True):
        made = {
            name: tabular_laws.make_chain(name, config.seed, num_states=keys.num_states)
            for name in keys.environments
        }
        for place, (name, chain) in enumerate(made.items()):
            for discount in keys.discounts:
                about = f"{name}: {chain.reward.size} states, discount {discount:g}"
                kept = f"{name}_{discount!r}"
                solved = solved_before.get(kept)
                if solved is None:
                    announce(about)
                    key = jax.random.fold_in(jax.random.key(config.seed), place)
                    truth = tabular_laws.true_laws(key, chain, discount, keys.num_returns)
                    solved = {
                        "errors": _errors(name, chain, discount, keys, truth, workdir),
                        "wall_clock": _clock(name, chain, discount, keys, truth),
                    }
                    record = {"settings": settings, "solved": solved}
                    metrics.write_json(places / f"{kept}.json", record)
                else:
                    announce(f"{about}: solved before")
                found, timed = solved["errors"], solved["wall_clock"]
                rows += found
                clock += timed
                error_panels.append(_error_panel(name, discount, found, max(keys.num_atoms)))
                clock_panels.append(_clock_panel(name, discount, timed))
        panels = [
            panel
            for discount in keys.discounts[:2]
            for panel in function_panels(
                jax.random.key(config.seed), discount, min(keys.num_atoms), keys.num_functions
            )
        ]
    columns = min(4, len(keys.discounts))
    plots.save_figure(workdir / "fixed_points.png", panels)
    plots.save_figure(workdir / "errors.png", error_panels, columns=columns)
    plots.save_figure(workdir / "wall_clock.png", clock_panels, columns=columns)
    result = {"errors": rows, "wall_clock": clock}
    metrics.write_json(workdir / "result.json", result)
    metrics.print_table("Largest W1 error over states, against samples", rows)
    metrics.print_table("Known transitions: W1 error and seconds", clock)
    return result


def _read_places(folder: pathlib.Path, settings: dict[str, Any]) -> dict[str, dict]:
    """Returns what is kept of chains and discounts, less what other settings have given."""
    files = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {name: file["solved"] for name, file in files.items() if file["settings"] == settings}


def _errors(
    name, chain: tabular_laws.Chain, discount, keys: FixedPointsConfig, truth, workdir
) -> list[dict]:
    rows = []
    for num_atoms in keys.num_atoms:
        grid = tabular_laws.support(discount, num_atoms)
        for method in keys.methods:
            stage = f"{name}.{discount:g}.{num_atoms}.{method}"
            writer = metrics.MetricsWriter(workdir, stage)
            for num_samples in keys.num_samples:
                transitions = jnp.array(
                    tabular_laws.estimates(chain, num_samples, range(keys.num_seeds))
                )
                found = np.asarray(
                    tabular_laws.sup_errors(
                        method,
                        transitions,
                        chain.reward,
                        discount,
                        grid,
                        keys.estimate_sweeps,
                        truth,
                    )
                )
                if not np.all(np.isfinite(found)):
                    raise errors.UserError(f"{method} on {name} at discount {discount} is no law.")
                numbers = {
                    "error": float(found.mean()),
                    "standard_error": float(found.std(ddof=1) / np.sqrt(found.size)),
                }
                writer.write(num_samples, numbers)
                rows.append(
                    {
                        "environment": name,
                        "discount": discount,
                        "atoms": num_atoms,
                        "samples": num_samples,
                        "method": method,
                        **numbers,
                    }
                )
            writer.close()
    return rows


def _clock(name, chain, discount, keys: FixedPointsConfig, truth) -> list[dict]:
    num_atoms = max(keys.num_atoms)
    grid = tabular_laws.support(discount, num_atoms)
    rows = []
    for method in keys.methods:
        for num_sweeps in keys.num_sweeps if method == "cdp" else (0,):
            laws = tabular_laws.solve_chain(method, chain, discount, grid, num_sweeps)
            error = float(jnp.max(tabular.wasserstein_distance(*laws, *truth)))
            rows.append(
                {
                    "environment": name,
                    "discount": discount,
                    "atoms": num_atoms,
                    "method": method,
                    "sweeps": num_sweeps or "",
                    "error": error,
                    "seconds": tabular_laws.seconds(method, chain, discount, grid, num_sweeps),
                }
            )
    return rows


def _error_panel(name: str, discount: float, rows: list[dict], num_atoms: int) -> plots.Panel:
    series = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method and row["atoms"] == num_atoms]
        mean, spread = (np.array([row[key] for row in mine]) for key in ("error", "standard_error"))
        samples = [row["samples"] for row in mine]
        low, high = np.maximum(mean - 2 * spread, 1e-9), mean + 2 * spread
        series.append(plots.Series(method, samples, mean, low, high, marker=True))
    return plots.Panel(
        f"{name}, discount {discount:g}, {num_atoms} atoms",
        "next states drawn from each state",
        "largest W1 error over states",
        series,
        x_scale="log",
        y_scale="log",
    )


def _clock_panel(name: str, discount: float, rows: list[dict]) -> plots.Panel:
    series = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        series.append(
            plots.Series(
                method,
                [row["seconds"] for row in mine],
                [row["error"] for row in mine],
                style="-" if method == "cdp" else "",
                marker=True,
            )
        )
    return plots.Panel(
        f"{name}, discount {discount:g}, transitions known",
        "seconds",
        "largest W1 error over states",
        series,
        x_scale="log",
        y_scale="log",
    )


def function_panels(
    key: jax.Array, discount: float, num_atoms: int, num_functions: int
) -> list[plots.Panel]:
    """Returns panels of the two states' cumulative functions, random ones overlaid.

    Args:
      key: randomness.
      discount: gamma.
      num_atoms: K.
      num_functions: solutions of the stochastic CDF equation to draw.

    Returns:
      One panel for each of the two states.
    """
    chain = tabular_laws.make_chain("two_state", 0, num_states=2)
    grid = tabular_laws.support(discount, num_atoms)
    fixed = np.cumsum(tabular.categorical_fixed_point(*chain, discount, grid), axis=1)
    num_steps = int(np.ceil(np.log(1e-6) / np.log(discount)))
    drawn = np.asarray(
        tabular.sample_categorical_cdfs(
            key, *chain, discount, grid, num_samples=num_functions, num_steps=num_steps
        )
    )
    atoms, panels = np.asarray(grid), []
    for state in range(2):
        series = [
            plots.Series("random solution" if i == 0 else "", atoms, one, reference=True)
            for i, one in enumerate(drawn[:, state])
        ]
        series.append(plots.Series("fixed point", atoms, fixed[state]))
        panels.append(
            plots.Panel(
                f"state {state}, discount {discount:g}", "return", "cumulative probability", series
            )
        )
    return panels
