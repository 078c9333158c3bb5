r"""MTPO converges to the equilibrium of whole conversations, which nobody who sees less can beat.

Exact trees, alpha = 0.1:

1. Rates. On two small trees of two turns and on random trees of three turns, one a seed, the KL_p
   of MTPO's policies from the equilibrium stays below 32 H Q^2 / (alpha^2 (T + 1)), and that of
   MTPO-tau's below 8 H Q^2 / (alpha^2 (T + 1)), with Q = max(4 alpha H log(1 / mu_min), 1).
2. One turn or many. Where the other side is deterministic, the equilibrium's law of final states is
   the one-turn equilibrium over whole sequences; where it is not, it is another.
3. What is lost by seeing less. On random trees of three turns with cyclic preferences, MTPO's last
   policy meets the single-turn baseline (each turn judged alone, with the reference to follow) and
   multi-turn RLHF (Bradley-Terry rewards fitted to pairs of the reference's conversations) at the
   same alpha. An equilibrium cannot score below 1/2; the mean shows that the difference is there.
   RLHF at an alpha of its own is the claim `mtpo_tuned_rlhf`: the two were one at first, whose
   first run failed by that part alone; it was then given a module, and no number was changed.
4. What is not lost. Where preferences are Bradley-Terry of a reward, the equilibrium's expected
   reward, as a gain over the reference, is nearly that of the best policy of the same KL.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bellmax.agents import tabular
from bellmax.envs import PreferenceMDP, preference_games, preference_mdp
from bellmax.experiments import plots, tabular_config, tabular_trees
from bellmax.experiments.claims.claim import Claim, Outcome

ALPHA, NUM_STEPS, HORIZON, TREES_PER_SEED = 0.1, 3000, 3, 20
# The rule's numbers.
LAW_TOLERANCE = 1e-10
LEAST_LAW_DIFFERENCE = 0.01
LEAST_SCORE = 0.5 - 1e-6
LEAST_MEAN_SCORE = 0.501
LEAST_REWARD_SHARE = 0.95

_BASELINES = ("single_turn", "multi_turn_rlhf")


def random_tree(key: jax.Array) -> PreferenceMDP:
    """Draws a tree of three turns and two actions, whose eight final states are in cycles."""
    return preference_mdp.random_tree(key, horizon=HORIZON, num_actions=2)


def rates(tree: PreferenceMDP) -> dict[str, np.ndarray]:
    """Returns KL_p(equilibrium, policy) by method and step, [T + 1] each."""
    equilibrium = tabular.multi_turn_equilibrium(*tree, alpha=ALPHA)
    return {
        name: tabular_trees.divergences(
            tree, equilibrium, method(*tree, alpha=ALPHA, num_steps=NUM_STEPS)
        )
        for name, method in tabular_trees.METHODS.items()
    }


def bounds(tree: PreferenceMDP, steps: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the bounds of part 1, by method. [N] each."""
    bound = tabular_trees.bound(tree, steps, ALPHA)
    return {"mtpo": bound, "mtpo_mixture": bound / 4}


def sequence_law(tree: PreferenceMDP) -> jax.Array:
    """Returns the one-turn equilibrium over the sequences of a tree of two turns. [X]."""
    first, second = tree.reference[0, 0], tree.reference[1, :2]
    law = (first[:, None] * second).ravel()
    return tabular.regularised_nash(tree.final_preference, law, tau=ALPHA)


@functools.partial(jax.jit, static_argnames="names")
def meet(key: jax.Array, names: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Draws a tree and lets MTPO's last policy meet baselines.

    Args:
      key: randomness.
      names: keys of `tabular_trees.baselines`.

    Returns:
      Regularised win-rates, one a name, and whether the preferences have a cycle of three.
    """
    tree = random_tree(key)
    champion = tabular.mtpo(*tree, alpha=ALPHA, num_steps=NUM_STEPS)
    others = tabular_trees.baselines(tree, champion, ALPHA)
    scores = [
        tabular.regularised_win_rate(champion, others[name], *tree, alpha=ALPHA) for name in names
    ]
    wins = (tree.final_preference > 0.5).astype(tree.final_preference.dtype)
    return jnp.stack(scores), jnp.trace(wins @ wins @ wins) > 0


def tree_keys(seeds: int) -> jax.Array:
    """Returns the keys of part 3's and part 4's trees, `TREES_PER_SEED` for each seed."""
    split = jax.vmap(lambda seed: jax.random.split(jax.random.key(1000 + seed), TREES_PER_SEED))
    return split(jnp.arange(seeds)).ravel()


@jax.jit
def reward_share(key: jax.Array) -> jax.Array:
    """Draws a tree with Bradley-Terry preferences, and compares expected rewards at one KL.

    Args:
      key: randomness.

    Returns:
      The equilibrium's gain of expected reward over the reference, divided by that of the RLHF
      policy of the same KL_p to the reference, the highest gain that this KL allows.
    """
    tree_key, reward_key = jax.random.split(key)
    tree = random_tree(tree_key)
    rewards = jax.random.normal(reward_key, (tree.num_states,))
    tree = tree._replace(final_preference=preference_games.bradley_terry(rewards).preference)

    def expected(policy):
        return tabular.final_law(policy, tree.transition) @ rewards

    def kl(policy):
        return tabular.trajectory_kl(policy, tree.reference, tree.transition)

    def rlhf(log_alpha):
        alpha = jnp.exp(log_alpha)
        return tabular.multi_turn_rlhf(tree.transition, rewards, tree.reference, alpha=alpha)

    equilibrium = tabular.multi_turn_equilibrium(*tree, alpha=ALPHA)
    spent = kl(equilibrium)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        # A larger alpha spends less.
        spends_more = kl(rlhf(middle)) > spent
        return jnp.where(spends_more, middle, low), jnp.where(spends_more, high, middle)

    ends = jnp.log(jnp.array([1e-4, 1e4]))
    _, high = jax.lax.fori_loop(0, 60, halve, (ends[0], ends[1]))
    base = expected(tree.reference)
    return (expected(equilibrium) - base) / (expected(rlhf(high)) - base)


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Runs the four parts."""
    steps = np.arange(NUM_STEPS + 1)
    with jax.enable_x64(True):
        small = {
            "deterministic": preference_mdp.deterministic_tree(),
            "stochastic": preference_mdp.stochastic_tree(),
        }
        drawn = {f"random, seed {s}": random_tree(jax.random.key(s)) for s in range(seeds)}
        trees = small | drawn
        curves = {name: rates(tree) for name, tree in trees.items()}
        limits = {name: bounds(tree, steps) for name, tree in trees.items()}
        law_errors = {}
        for name, tree in small.items():
            policy = tabular.multi_turn_equilibrium(*tree, alpha=ALPHA)
            law = tabular.final_law(policy, tree.transition)
            law_errors[name] = float(jnp.abs(law - sequence_law(tree)).max())
        keys = tree_keys(seeds)
        meetings = jax.lax.map(functools.partial(meet, names=_BASELINES), keys)
        scores, cyclic = (np.asarray(values) for values in meetings)
        shares = np.asarray(jax.lax.map(reward_share, keys))
        picture = directory / "mtpo_tabular.png"
        _draw(picture, trees, curves, scores)
    within = {
        name: max(float((kls[key] / limits[name][key]).max()) for key in kls)
        for name, kls in curves.items()
    }
    means = dict(zip(_BASELINES, scores.mean(axis=0).tolist(), strict=True))
    passed = bool(
        max(within.values()) <= 1
        and law_errors["deterministic"] <= LAW_TOLERANCE
        and law_errors["stochastic"] >= LEAST_LAW_DIFFERENCE
        and scores.min() >= LEAST_SCORE
        and min(means.values()) >= LEAST_MEAN_SCORE
        and shares.mean() >= LEAST_REWARD_SHARE
    )
    parts = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    return Outcome(
        passed=passed,
        figure=(
            f"at most {max(within.values()):.1e} of the bounds; law of the deterministic tree to "
            f"{law_errors['deterministic']:.1e}, of the stochastic one off by "
            f"{law_errors['stochastic']:.3f}; mean regularised win-rates over {len(scores)} trees: "
            f"{parts} at the same alpha (tuned: `mtpo_tuned_rlhf`), least {scores.min():.4f}; "
            f"share of the reward {shares.mean():.4f}"
        ),
        details={
            "within_bound": within,
            "kl_at_end": {
                name: {key: float(values[-1]) for key, values in kls.items()}
                for name, kls in curves.items()
            },
            "law_errors": law_errors,
            "mean_scores": means,
            "least_scores": dict(zip(_BASELINES, scores.min(axis=0).tolist(), strict=True)),
            "cyclic_trees": float(cyclic.mean()),
            "reward_share": {"mean": float(shares.mean()), "least": float(shares.min())},
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, trees, curves, scores: np.ndarray) -> None:
    steps = tabular_config.points(NUM_STEPS, 100)
    panels = []
    for name in ("deterministic", "stochastic"):
        found = {method: (steps, kls[steps]) for method, kls in curves[name].items()}
        panels.append(tabular_trees.panel(name, trees[name], ALPHA, found))
    ranks = (np.arange(len(scores)) + 0.5) / len(scores)
    series = [plots.Series(name, np.sort(scores[:, i]), ranks) for i, name in enumerate(_BASELINES)]
    panels.append(
        plots.Panel(
            "MTPO against those who see less",
            "regularised win-rate of MTPO",
            "share of random trees below",
            series,
        )
    )
    plots.save_figure(path, panels, columns=3)


CLAIM = Claim(
    name="mtpo_tabular",
    paper="Shani et al. 2024",
    url="https://arxiv.org/abs/2405.14655",
    statement=(
        "MTPO reaches the equilibrium of conversations, unbeaten by single turns and by RLHF at "
        "the same alpha"
    ),
    paper_figure=(
        "KL_p at most 32 H Q^2 / (alpha^2 (T + 1)); with language models MTPO beats single-turn "
        "RLHF 0.951 and multi-turn RLHF 0.861 of the time"
    ),
    budget=(
        f"2 small trees, a random one a seed and {TREES_PER_SEED} more a seed, {NUM_STEPS:,} exact "
        f"steps in float64, 20 s"
    ),
    acceptance=(
        f"below both bounds at every step; deterministic law within {LAW_TOLERANCE:g} of the "
        f"one-turn game's, stochastic at least {LEAST_LAW_DIFFERENCE:g} away; every score at least "
        f"1/2 - 1e-6 and every mean at least {LEAST_MEAN_SCORE:g}; mean share of the reward at "
        f"least {LEAST_REWARD_SHARE:g}"
    ),
    default_seeds=5,
    run=run,
)
