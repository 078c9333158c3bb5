r"""A population of raters: a fitted reward's policy jumps where the equilibrium moves with it.

Three types of raters with shares (1/3 - e, 1/3 + e/2, 1/3 + e/2); the first prefers action 2 to 1,
the second 1 to 3, the third 3 to 2, and all other pairs are ties. Bradley-Terry rewards fitted to
uniform pairs have r_1 > r_2 iff e > 0 (and r_3 between them), so that a policy which maximises the
reward goes from action 2 to action 1 at e = 0, however small the change of the population. The
equilibrium of the preferences is (1/3 + e/2, 1/3 + e/2, 1/3 - e) throughout.

e is swept from -0.3 to 0.3. Both policies are the regularised ones at a low temperature: RLHF's,
proportional to exp(r / tau), in closed form, the equilibrium by the exact solver.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.agents import tabular
from bellmax.envs import preference_games
from bellmax.experiments import plots
from bellmax.experiments.claims.claim import Claim, Outcome

TAU, LIMIT, NUM_POINTS = 1e-3, 0.3, 121
# The rule's numbers.
KNOWN_REWARDS = {0.1: (0.100251, -0.100251, 0.0), -0.01: (-0.010000, 0.010000, 0.0)}
REWARD_TOLERANCE = 1e-6
EQUILIBRIUM_TOLERANCE = 0.02
# Between e = -0.01 and e = 0.01: the most that any probability moves; 0.02 in the closed form.
JUMP_ACROSS = 0.01
LEAST_JUMP = 0.99
LARGEST_MOVE = 0.025


@jax.jit
def policies(imbalance: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Solves one population both ways.

    Args:
      imbalance: e.

    Returns:
      Fitted rewards, RLHF's policy and the equilibrium, [3] each.
    """
    game = preference_games.rater_types(imbalance)
    rewards = tabular.bradley_terry_rewards(game.preference, game.reference)
    rlhf = jax.nn.softmax(jnp.log(game.reference) + rewards / TAU)
    return rewards, rlhf, tabular.regularised_nash(*game, tau=TAU)


def closed_form(imbalance: np.ndarray) -> np.ndarray:
    """Returns the plain game's equilibrium. [..., 3]."""
    e = np.asarray(imbalance)
    return np.stack([1 / 3 + e / 2, 1 / 3 + e / 2, 1 / 3 - e], axis=-1)


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Sweeps the population; nothing is random, so seeds are not used."""
    del seeds
    sweep = np.linspace(-LIMIT, LIMIT, NUM_POINTS)
    known = np.array(list(KNOWN_REWARDS))
    across = np.array([-JUMP_ACROSS, JUMP_ACROSS])
    with jax.enable_x64(True):
        solve = jax.vmap(policies)
        rewards, rlhf, nash = (np.asarray(values) for values in solve(jnp.array(sweep)))
        known_rewards = np.asarray(solve(jnp.array(known))[0])
        _, rlhf_across, nash_across = (np.asarray(values) for values in solve(jnp.array(across)))
    reward_error = float(np.abs(known_rewards - np.array(list(KNOWN_REWARDS.values()))).max())
    inner = np.abs(sweep) > 1e-9
    signs = bool(np.all(np.sign(rewards[inner, 0] - rewards[inner, 1]) == np.sign(sweep[inner])))
    nash_error = float(np.abs(nash - closed_form(sweep)).max())
    jump = float(np.abs(rlhf_across[1] - rlhf_across[0]).max())
    move = float(np.abs(nash_across[1] - nash_across[0]).max())
    picture = directory / "nlhf_rater_types.png"
    _draw(picture, sweep, rlhf, nash)
    return Outcome(
        passed=(
            reward_error <= REWARD_TOLERANCE
            and signs
            and nash_error <= EQUILIBRIUM_TOLERANCE
            and jump >= LEAST_JUMP
            and move <= LARGEST_MOVE
        ),
        figure=(
            f"from e = -{JUMP_ACROSS:g} to {JUMP_ACROSS:g} RLHF moves {jump:.4f} of probability, "
            f"the equilibrium {move:.4f}; equilibrium within {nash_error:.4f} of the closed form "
            f"at tau = {TAU:g}"
        ),
        details={
            "reward_error": reward_error,
            "signs_agree": signs,
            "equilibrium_error": nash_error,
            "jump": jump,
            "move": move,
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, sweep: np.ndarray, rlhf: np.ndarray, nash: np.ndarray) -> None:
    panels = [
        plots.Panel(
            title,
            "imbalance e of the population",
            "probability",
            [
                # Two of the equilibrium's curves coincide.
                plots.Series(f"action {i + 1}", sweep, values[:, i], style="--" if i == 1 else "-")
                for i in range(3)
            ],
        )
        for title, values in (
            ("RLHF: maximises a fitted reward", rlhf),
            ("equilibrium of the preferences", nash),
        )
    ]
    plots.save_figure(path, panels)


CLAIM = Claim(
    name="nlhf_rater_types",
    paper="Munos et al. 2023",
    url="https://arxiv.org/abs/2312.00886",
    statement="as a population of raters changes, RLHF's policy jumps and the equilibrium moves",
    paper_figure="equilibrium (1/3 + e/2, 1/3 + e/2, 1/3 - e); RLHF's best action is 2, then 1",
    budget=f"{NUM_POINTS} populations solved exactly in float64, 5 s",
    acceptance=(
        f"rewards as known within {REWARD_TOLERANCE:g} and r_1 - r_2 of the sign of e; equilibrium "
        f"within {EQUILIBRIUM_TOLERANCE:g} of the closed form; from e = -{JUMP_ACROSS:g} to "
        f"{JUMP_ACROSS:g} RLHF moves at least {LEAST_JUMP:g}, the equilibrium at most "
        f"{LARGEST_MOVE:g}"
    ),
    default_seeds=1,
    run=run,
)
