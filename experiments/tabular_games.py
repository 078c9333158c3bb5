"""The games of a `tabular` run: names to matrices, methods to policies, policies to numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax import losses
from bellmax.agents import tabular
from bellmax.envs import PreferenceGame, preference_games
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors, numbered, plots, tabular_config
from bellmax.experiments.data import meta_games
from bellmax.experiments.tabular_config import GamesConfig, TabularConfig

_NAMED: dict[str, Callable[[], PreferenceGame]] = {
    "dice": preference_games.dice,
    "rock_paper_scissors": preference_games.rock_paper_scissors,
    "asymmetric_cycle": preference_games.asymmetric_cycle,
    "four_actions": preference_games.four_actions,
}
_NAME_KEY = "config.games.names"


def make_game(name: str, config: TabularConfig) -> PreferenceGame:
    """Returns the game of a name, with the run's reference.

    Args:
      name: one of the names that `configs/tabular/base.py` lists.
      config: the run; a random game depends on the seed and its own name alone.

    Returns:
      The game.

    Raises:
      UserError: there is no such game, or the reference has another number of actions.
    """
    kind, _, text = name.partition(":")
    if name in _NAMED:
        game = _NAMED[name]()
    elif name in meta_games.NAMES:
        if not config.games.meta_games:
            raise errors.UserError(
                f"config.games.meta_games is empty: it must name the folder of {name!r}."
            )
        game = meta_games.load(name, config.games.meta_games).game
    elif kind == "random":
        num_actions = tabular_config.count(_NAME_KEY, name, text, 2)
        key = numbered.named_key(config.seed, name)
        game = preference_games.random_antisymmetric(key, num_actions=num_actions)
    elif kind == "rater_types":
        with config_lib.user_errors(_NAME_KEY):
            game = preference_games.rater_types(float(text))
    else:
        options = [*_NAMED, "random:A", "rater_types:E", *meta_games.NAMES]
        raise config_lib.unknown(_NAME_KEY, name, options)
    reference = config.games.reference
    if not reference:
        return game
    if len(reference) != game.num_actions:
        raise errors.UserError(
            f"config.games.reference holds {len(reference)} probabilities, and the game {name!r} "
            f"has {game.num_actions} actions."
        )
    return game._replace(reference=jnp.array(reference, game.preference.dtype))


Iterates = Float[Array, "T+1 A"]


def _sppo(game: PreferenceGame, games: GamesConfig, num_steps: int) -> Iterates:
    """The exact minimisers of SPPO's regression, one after the other."""

    def step(policy, _):
        following = tabular.sppo_regression_step(policy, game.preference, eta=games.self_play_step)
        return following, following

    _, later = jax.lax.scan(step, game.reference, length=num_steps)
    return jnp.concatenate([game.reference[None], later])


METHODS: dict[str, Callable[[PreferenceGame, GamesConfig, int], Iterates]] = {
    "nash_md": lambda game, games, n: tabular.nash_md_iterates(*game, tau=games.tau, num_steps=n),
    "nash_md_constant": lambda game, games, n: tabular.nash_md_iterates(
        *game, tau=games.tau, num_steps=n, learning_rate=games.constant_step
    ),
    "mirror_descent": lambda game, games, n: tabular.mirror_descent_iterates(
        *game, tau=games.tau, num_steps=n
    ),
    "mirror_descent_constant": lambda game, games, n: tabular.mirror_descent_iterates(
        *game, tau=games.tau, num_steps=n, learning_rate=games.constant_step
    ),
    "inpo": lambda game, games, n: tabular.inpo_iterates(*game, tau=games.tau, num_steps=n),
    "dno": lambda game, games, n: tabular.dno_iterates(
        *game, eta=1 / games.self_play_step, num_steps=n
    ),
    "sppo": _sppo,
    "online_ipo": lambda game, games, n: tabular.online_ipo_iterates(
        *game, tau=games.tau, num_steps=n, learning_rate=games.gradient_step
    ),
    "ipo_md": lambda game, games, n: tabular.online_ipo_iterates(
        *game,
        tau=games.tau,
        num_steps=n,
        learning_rate=games.gradient_step,
        mixture=games.mixture,
    ),
}


def check_methods(config: TabularConfig) -> None:
    """Finds wrong methods and steps before anything is solved.

    Args:
      config: the run.

    Raises:
      UserError: a method is unknown, or a constant step is above 1 / tau.
    """
    games = config.games
    for method in games.methods:
        if method not in METHODS:
            raise config_lib.unknown("config.games.methods", method, METHODS)
        if method.endswith("_constant") and games.constant_step * games.tau > 1:
            raise errors.UserError(
                f"config.games.constant_step must be at most 1 / tau = {1 / games.tau:g}, got "
                f"{games.constant_step}."
            )


METRICS = (
    "kl/equilibrium",
    "kl/reference",
    "gap",
    "gap_unregularised",
    "gap_unregularised/average",
)


@jax.jit
def divergence(target: Float[Array, "... A"], policy: Float[Array, "... A"]) -> Float[Array, "..."]:
    """Returns KL(target, policy), exact to its own rounding where the two are nearly equal.

    A probability that has underflowed to 0 counts as the smallest there is, so that all is finite.

    Args:
      target: laws. [..., A].
      policy: laws. [..., A].

    Returns:
      Divergences, nats, at least 0. [...].
    """
    taken = target > 0
    policy = jnp.maximum(policy, jnp.finfo(policy.dtype).tiny)
    # p log(p / q) = p (x - log(1 + x)) + p - q with x = q / p - 1; the differences sum to what the
    # policy has where the target has nothing.
    safe = jnp.where(taken, target, 1)
    x = jnp.where(taken, policy / safe - 1, 0)
    # Near -1 all that is left of x is its rounding error.
    near = x > -0.5
    logs = jnp.where(near, jnp.log1p(jnp.where(near, x, 0)), jnp.log(policy) - jnp.log(safe))
    outside = jnp.where(taken, 0, policy)
    return jnp.sum(target * (x - logs) + outside, axis=-1)


def evaluate(
    game: PreferenceGame, equilibrium: Float[Array, " A"], policies: Iterates, tau: float
) -> dict[str, np.ndarray]:
    """Returns what is known of each policy of a run.

    Args:
      game: the game.
      equilibrium: its regularised equilibrium. [A].
      policies: policies by step. [T + 1, A].
      tau: temperature.

    Returns:
      Arrays [T + 1] by metric name: divergence from the equilibrium and from the reference, gap of
      the regularised game, and gaps of the plain game, of the policy and of the average so far.
    """
    found = _evaluate(game, equilibrium, policies, tau)
    return {name: np.asarray(values) for name, values in zip(METRICS, found, strict=True)}


@jax.jit
def _evaluate(game, equilibrium, policies, tau):
    steps = jnp.arange(1, policies.shape[0] + 1)[:, None]
    averages = jnp.cumsum(policies, axis=0) / steps

    def gaps(policies, temperature):
        return jax.vmap(lambda policy: losses.duality_gap(policy, *game, tau=temperature))(policies)

    return (
        divergence(equilibrium, policies),
        divergence(policies, game.reference),
        gaps(policies, tau),
        gaps(policies, 0.0),
        gaps(averages, 0.0),
    )


def bound(steps: np.ndarray, tau: float) -> np.ndarray:
    """Returns the bound of Nash-MD's theorem 1: 8 / (tau^2 (T + 1)).

    Args:
      steps: T. [N].
      tau: temperature.

    Returns:
      Bounds on KL(equilibrium, policy), nats. [N].
    """
    return 8 / (tau**2 * (steps + 1))


def slope(steps: np.ndarray, values: np.ndarray, *, floor: float) -> float:
    """Returns the exponent of T over the last tenfold of steps.

    Args:
      steps: increasing. [N].
      values: what falls or rises with T. [N].
      floor: rounding error of the values; what is not above it is left out.

    Returns:
      The slope of log(value) in log(step), by least squares; NaN where too little is left.
    """
    late = (steps >= steps[-1] / 10) & (values > floor)
    if late.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.log(steps[late]), np.log(values[late]), 1)[0])


def panel(name: str, tau: float, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """Returns the figure's panel of a game.

    Args:
      name: the game.
      tau: temperature.
      curves: steps and divergences by method.

    Returns:
      A log-log panel with the bound.
    """
    series = [
        plots.Series(method, steps, np.maximum(values, 1e-17))
        for method, (steps, values) in curves.items()
    ]
    if "nash_md" in curves:
        steps = curves["nash_md"][0]
        series.append(
            plots.Series("bound of Nash-MD", steps, bound(steps, tau), style="--", reference=True)
        )
    return plots.Panel(
        f"{name}, tau = {tau:g}",
        "step T",
        "KL(equilibrium, policy), nats",
        series,
        x_scale="log",
        y_scale="log",
    )
