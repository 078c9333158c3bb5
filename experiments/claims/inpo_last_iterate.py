r"""INPO's last policy converges; DNO's spirals away while the average of its policies converges.

Both minimise a regression loss on pairs of their own policy. INPO's has a pull to the reference and
its exact step is mirror descent; DNO's has none and its exact step is exponential weights. On a
cycle of three actions with advantages a, b, c the plain game's equilibrium is (b, c, a) / (a + b +
c), so that everything can be checked: one known cycle, and a random one a seed.

- INPO, tau = 0.1, eta_t = tau (t + 2) / 2: KL(equilibrium, policy) below 32 / (tau^2 (T + 1)) at
  every step (the paper's bound with its smallest constant, C = 1), and tiny at the end.
- INPO with a constant eta: no bias.
- DNO, c = 1 / eta = 0.1 from the uniform policy: KL(n, pi_t) never falls (Jensen's inequality; see
  `nash_md_last_iterate`), and the plain gap of the average obeys the regret bound of exponential
  weights, 2 (log A / (c T) + c / 8).
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bellmax import losses
from bellmax.agents import tabular
from bellmax.envs import PreferenceGame, preference_games
from bellmax.experiments import plots, tabular_config, tabular_games
from bellmax.experiments.claims.claim import Claim, Outcome

TAU, NUM_STEPS = 0.1, 20_000
CONSTANT_ETA, CONSTANT_STEPS = 1.0, 500
STEP = 0.1
# The rule's numbers.
INPO_TOLERANCE = 1e-10
CONSTANT_TOLERANCE = 1e-8
ROUNDING = 1e-13
# On the known cycle: DNO's averages after 100 and 1,000 steps, and how much worse its last policy
# is than its average in the end.
KNOWN_AVERAGES = {
    100: (0.35626743, 0.27888351, 0.36484906),
    1000: (0.29938082, 0.30050349, 0.40011569),
}
AVERAGE_TOLERANCE = 1e-7
GAP_RATIO = 5.0
_REFERENCE = (0.5, 0.3, 0.2)
_KNOWN = "asymmetric_cycle"


class Found(NamedTuple):
    """What one cycle gave; arrays are by step.

    Attributes:
      inpo: KL(regularised equilibrium, policy) of INPO. [T + 1].
      constant_error: largest error of INPO's policy with a constant eta.
      rising: KL(plain equilibrium, policy) of DNO. [T + 1].
      last_gap: plain duality gap of DNO's policy. [T + 1].
      average_gap: plain duality gap of the average of DNO's policies before step T. [T].
      averages: those averages. [T, 3].
    """

    inpo: np.ndarray
    constant_error: float
    rising: np.ndarray
    last_gap: np.ndarray
    average_gap: np.ndarray
    averages: np.ndarray


def cycle(seed: int) -> PreferenceGame:
    """Draws advantages between 0.1 and 0.5 of 1 over 2, 2 over 3 and 3 over 1.

    Args:
      seed: of NumPy's generator.

    Returns:
      The game, with an uneven reference.
    """
    a, b, c = np.random.default_rng(seed).uniform(0.1, 0.5, 3)
    advantages = np.array([[0, a, -c], [-a, 0, b], [c, -b, 0]])
    return preference_games.from_win_rates(0.5 + advantages, jnp.array(_REFERENCE))


def plain_equilibrium(game: PreferenceGame) -> np.ndarray:
    """Returns (b, c, a) / (a + b + c) of a cycle. [3]."""
    advantages = np.asarray(game.preference) - 0.5
    weights = np.array([advantages[1, 2], advantages[2, 0], advantages[0, 1]])
    return weights / weights.sum()


@jax.jit
def _gaps(policies, game):
    return jax.vmap(lambda policy: losses.duality_gap(policy, *game, tau=0.0))(policies)


def solve(game: PreferenceGame) -> Found:
    """Runs INPO and DNO on one cycle.

    Args:
      game: the cycle.

    Returns:
      Divergences and gaps.
    """
    target = tabular.regularised_nash(*game, tau=TAU)
    inpo = tabular.inpo_iterates(*game, tau=TAU, num_steps=NUM_STEPS)
    steady = tabular.inpo_iterates(*game, tau=TAU, num_steps=CONSTANT_STEPS, eta=CONSTANT_ETA)
    uniform = jnp.full(3, 1 / 3)
    dno = tabular.dno_iterates(game.preference, uniform, eta=1 / STEP, num_steps=NUM_STEPS)
    steps = jnp.arange(1, NUM_STEPS + 1)[:, None]
    averages = jnp.cumsum(dno[:-1], axis=0) / steps
    plain = jnp.array(plain_equilibrium(game))
    return Found(
        np.asarray(tabular_games.divergence(target, inpo)),
        float(jnp.abs(steady[-1] - target).max()),
        np.asarray(tabular_games.divergence(plain, dno)),
        np.asarray(_gaps(dno, game)),
        np.asarray(_gaps(averages, game)),
        np.asarray(averages),
    )


def inpo_bound(steps: np.ndarray) -> np.ndarray:
    """Returns 32 / (tau^2 (T + 1)). [N]."""
    return 32 / (TAU**2 * (steps + 1))


def average_bound(steps: np.ndarray) -> np.ndarray:
    """Returns the regret bound of exponential weights on the plain gap of the average. [N]."""
    return 2 * (np.log(3) / (STEP * steps) + STEP / 8)


def holds(found: Found) -> bool:
    """Applies the rule for every cycle to one."""
    steps = np.arange(NUM_STEPS + 1)
    return bool(
        np.all(found.inpo <= inpo_bound(steps))
        and found.inpo[-1] <= INPO_TOLERANCE
        and found.constant_error <= CONSTANT_TOLERANCE
        and np.diff(found.rising).min() >= -ROUNDING
        and np.all(found.average_gap <= average_bound(steps[1:]))
    )


def known_holds(found: Found) -> bool:
    """Applies what more is known of the known cycle."""
    errors = [
        np.abs(found.averages[t - 1] - np.array(average)).max()
        for t, average in KNOWN_AVERAGES.items()
    ]
    spiral = found.last_gap[-1] >= GAP_RATIO * found.average_gap[-1]
    return bool(max(errors) <= AVERAGE_TOLERANCE and spiral)


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Solves the known cycle and the random ones."""
    with jax.enable_x64(True):
        known = preference_games.asymmetric_cycle(jnp.array(_REFERENCE))
        cycles = {_KNOWN: known} | {f"seed {seed}": cycle(seed) for seed in range(seeds)}
        results = {name: solve(game) for name, game in cycles.items()}
    picture = directory / "inpo_last_iterate.png"
    _draw(picture, results[_KNOWN])
    known_found = results[_KNOWN]
    worst = max(found.inpo[-1] for found in results.values())
    return Outcome(
        passed=all(holds(found) for found in results.values()) and known_holds(known_found),
        figure=(
            f"INPO's last policy at KL {worst:.1e} or below after {NUM_STEPS:,} steps; on the "
            f"known cycle DNO's last policy has a plain gap of {known_found.last_gap[-1]:.3f}, its "
            f"average {known_found.average_gap[-1]:.4f}"
        ),
        details={
            name: {
                "inpo_kl": float(found.inpo[-1]),
                "inpo_constant_error": found.constant_error,
                "dno_divergence": [float(found.rising[0]), float(found.rising[-1])],
                "dno_gap_last": float(found.last_gap[-1]),
                "dno_gap_average": float(found.average_gap[-1]),
            }
            for name, found in results.items()
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, found: Found) -> None:
    steps = tabular_config.points(NUM_STEPS, 300)
    last = plots.Panel(
        f"INPO's last policy, tau = {TAU:g}",
        "step T",
        "KL(equilibrium, policy), nats",
        [
            plots.Series("INPO", steps, np.maximum(found.inpo[steps], 1e-17)),
            plots.Series("bound, C = 1", steps, inpo_bound(steps), style="--", reference=True),
        ],
        x_scale="log",
        y_scale="log",
    )
    gaps = plots.Panel(
        "DNO: gap of the plain game",
        "step T",
        "duality gap, win-rate",
        [
            plots.Series("last policy", steps, found.last_gap[steps]),
            plots.Series("average policy", steps, found.average_gap[steps - 1]),
            plots.Series("regret bound", steps, average_bound(steps), style="--", reference=True),
        ],
        x_scale="log",
        y_scale="log",
    )
    rising = plots.Panel(
        "DNO: distance from the plain equilibrium",
        "step T",
        "KL(plain equilibrium, policy), nats",
        [plots.Series("last policy", steps, found.rising[steps])],
        x_scale="log",
        y_scale="log",
    )
    plots.save_figure(path, [last, gaps, rising], columns=3)


CLAIM = Claim(
    name="inpo_last_iterate",
    paper="Zhang et al. 2024",
    url="https://arxiv.org/abs/2407.00617",
    statement="INPO's last policy converges where self-play without a pull (DNO) needs averages",
    paper_figure="KL(equilibrium, last policy) at most 32 C^2 / (tau^2 (T + 1)); none for DNO's",
    budget=f"one known cycle and a random one a seed, {NUM_STEPS:,} exact steps in float64, 10 s",
    acceptance=(
        f"in every cycle: INPO below its bound with C = 1 at every step and below "
        f"{INPO_TOLERANCE:g} at the end, constant-eta INPO within {CONSTANT_TOLERANCE:g}, DNO's "
        f"KL from the plain equilibrium never falling, its average's gap below the regret bound; "
        f"on the known cycle its averages as known and a last gap of at least {GAP_RATIO:g} times "
        f"the average's"
    ),
    default_seeds=5,
    run=run,
)
