r"""Nash-MD's last policy converges to the regularised equilibrium; plain self-play's does not.

Four small games with cycles and one random game of 20 actions a seed, at tau = 0.1, with the
paper's schedule eta_t = 2 / (tau (t + 2)). Three things are checked at every one of 10,000 steps:
the theorem's bound 8 / (tau^2 (T + 1)), the inequality that it rests on,

    KL(pi*, pi_{t+1}) <= (1 - eta_t tau) KL(pi*, pi_t) + 2 eta_t^2,

and that the divergence from the equilibrium falls at least like 1 / T over the last tenfold.

Beside it, on the same games: mirror descent with a constant step, which converges too, and
exponential weights without the reference. Of these the divergence KL(n, pi_t) from an inner
equilibrium n of the plain game can only rise: its increment is log sum pi_t exp(c w) - c / 2 >= 0
by Jensen, with w the win-rates against pi_t, which average to 1/2 under pi_t and under n.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.agents import tabular
from bellmax.envs import PreferenceGame, preference_games
from bellmax.experiments import plots, tabular_config, tabular_games
from bellmax.experiments.claims.claim import Claim, Outcome

TAU, NUM_STEPS, NUM_ACTIONS = 0.1, 10_000, 20
CONSTANT_STEP, SELF_PLAY_STEP = 1.0, 0.1
# The rule's numbers.
LARGEST_SLOPE = -1.0
EQUILIBRIUM_TOLERANCE = 1e-9
MIRROR_DESCENT_TOLERANCE = 1e-12
ROUNDING = 1e-13

_SKEWED = {3: (0.5, 0.3, 0.2), 4: (0.4, 0.3, 0.2, 0.1)}
# Computed apart from the library, by damped fixed points with residuals below 1e-15.
KNOWN = {
    "dice": (0.5103476847, 0.2583318787, 0.2313204366),
    "rock_paper_scissors": (0.3753269575, 0.2774326283, 0.3472404143),
    "asymmetric_cycle": (0.4008888504, 0.2118222568, 0.3872888928),
    "four_actions": (0.4686650771, 0.2542486561, 0.0978985014, 0.1791877654),
}
# Equilibria of the plain games in which every action is played.
INNER = {
    "dice": (1 / 3, 1 / 3, 1 / 3),
    "rock_paper_scissors": (1 / 3, 1 / 3, 1 / 3),
    "asymmetric_cycle": (0.3, 0.3, 0.4),
}


class Found(NamedTuple):
    """What one game gave.

    Attributes:
      kls: KL(equilibrium, policy) by method and step, [T + 1] each.
      within_bound: largest ratio of Nash-MD's divergence to its bound.
      least_slack: least slack of the one-step inequality.
      slope: exponent of T over the last tenfold of steps.
      known_error: distance of the equilibrium from the one known, 0 where none is.
      largest_fall: largest fall of KL(n, pi_t) in self-play, 0 where no inner equilibrium is known.
    """

    kls: dict[str, np.ndarray]
    within_bound: float
    least_slack: float
    slope: float
    known_error: float
    largest_fall: float


def games(seeds: int) -> dict[str, PreferenceGame]:
    """Returns the games by name.

    Args:
      seeds: number of random games.

    Returns:
      The four named games with uneven references, and the random ones with the uniform reference.
    """
    found = {}
    for name in KNOWN:
        game = getattr(preference_games, name)()
        found[name] = game._replace(reference=jnp.array(_SKEWED[game.num_actions]))
    for seed in range(seeds):
        found[f"random, seed {seed}"] = preference_games.random_antisymmetric(
            jax.random.key(seed), num_actions=NUM_ACTIONS
        )
    return found


def solve(name: str, game: PreferenceGame) -> Found:
    """Runs the three methods on one game.

    Args:
      name: of the game; says what is known of it.
      game: the game.

    Returns:
      Divergences and checks.
    """
    target = tabular.regularised_nash(*game, tau=TAU)
    runs = {
        "Nash-MD": tabular.nash_md_iterates(*game, tau=TAU, num_steps=NUM_STEPS),
        "mirror descent, constant step": tabular.mirror_descent_iterates(
            *game, tau=TAU, num_steps=NUM_STEPS, learning_rate=CONSTANT_STEP
        ),
        "self-play without reference": tabular.dno_iterates(
            *game, eta=1 / SELF_PLAY_STEP, num_steps=NUM_STEPS
        ),
    }
    kls = {key: np.asarray(tabular_games.divergence(target, run)) for key, run in runs.items()}
    steps = np.arange(NUM_STEPS + 1)
    nash = kls["Nash-MD"]
    rates = 2 / (TAU * (steps[:-1] + 2))
    slack = (1 - rates * TAU) * nash[:-1] + 2 * rates**2 - nash[1:]
    known_error, largest_fall = 0.0, 0.0
    if name in KNOWN:
        known_error = float(np.abs(np.asarray(target) - np.array(KNOWN[name])).max())
    if name in INNER:
        inner = jnp.array(INNER[name])
        rising = tabular_games.divergence(inner, runs["self-play without reference"])
        largest_fall = float(np.maximum(-np.diff(np.asarray(rising)), 0).max())
    return Found(
        kls,
        float((nash / tabular_games.bound(steps, TAU)).max()),
        float(slack.min()),
        tabular_games.slope(steps[1:], nash[1:], floor=1e-26),
        known_error,
        largest_fall,
    )


def holds(found: Found) -> bool:
    """Applies the rule to one game."""
    return (
        found.within_bound <= 1
        and found.least_slack >= 0
        and found.slope <= LARGEST_SLOPE
        and found.known_error <= EQUILIBRIUM_TOLERANCE
        and found.kls["mirror descent, constant step"][-1] <= MIRROR_DESCENT_TOLERANCE
        and found.largest_fall <= ROUNDING
    )


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Solves all games."""
    with jax.enable_x64(True):
        results = {name: solve(name, game) for name, game in games(seeds).items()}
    picture = directory / "nash_md_last_iterate.png"
    _draw(picture, results)
    nash = [found.kls["Nash-MD"][-1] for found in results.values()]
    slopes = [found.slope for found in results.values()]
    play = [results[name].kls["self-play without reference"][-1] for name in INNER]
    return Outcome(
        passed=all(holds(found) for found in results.values()),
        figure=(
            f"KL at most {max(nash):.1e} after {NUM_STEPS:,} steps (bound "
            f"{8 / (TAU**2 * (NUM_STEPS + 1)):.2f}), at any step at most "
            f"{max(found.within_bound for found in results.values()):.1e} of the bound; slopes "
            f"{min(slopes):.2f} to {max(slopes):.2f}; self-play without reference ends at KL "
            f"{min(play):.2f} to {max(play):.2f}"
        ),
        details={
            name: {
                "kl": {key: float(values[-1]) for key, values in found.kls.items()},
                **{key: value for key, value in found._asdict().items() if key != "kls"},
            }
            for name, found in results.items()
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, results: dict[str, Found]) -> None:
    steps = tabular_config.points(NUM_STEPS, 200)
    panels = []
    for name, found in results.items():
        if name.startswith("random") and not name.endswith(" 0"):
            continue
        series = [
            plots.Series(key, steps, np.maximum(values[steps], 1e-17))
            for key, values in found.kls.items()
        ]
        bound = tabular_games.bound(steps, TAU)
        series.append(plots.Series("bound of theorem 1", steps, bound, style="--", reference=True))
        panels.append(
            plots.Panel(
                f"{name}, tau = {TAU:g}",
                "step T",
                "KL(equilibrium, policy), nats",
                series,
                x_scale="log",
                y_scale="log",
            )
        )
    plots.save_figure(path, panels, columns=3)


CLAIM = Claim(
    name="nash_md_last_iterate",
    paper="Munos et al. 2023",
    url="https://arxiv.org/abs/2312.00886",
    statement="Nash-MD's last policy converges to the regularised equilibrium at rate 1/T",
    paper_figure="theorem 1: KL(equilibrium, policy) at most 8 / (tau^2 (T + 1))",
    budget=f"4 named games and a random one a seed, {NUM_STEPS:,} exact steps in float64, 15 s",
    acceptance=(
        f"in every game: below the bound and the one-step inequality at every step, slope at most "
        f"{LARGEST_SLOPE:g} over the last tenfold, equilibria as known within "
        f"{EQUILIBRIUM_TOLERANCE:g}, constant-step mirror descent below "
        f"{MIRROR_DESCENT_TOLERANCE:g}, self-play never nearer to an inner equilibrium"
    ),
    default_seeds=3,
    run=run,
)
