"""The trees of a `tabular` run: names to tables, methods to policies, baselines, comparisons."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax.agents import tabular
from bellmax.envs import PreferenceMDP, preference_mdp
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors, numbered, plots, tabular_config
from bellmax.experiments.tabular_config import TabularConfig

_NAMED: dict[str, Callable[[], PreferenceMDP]] = {
    "deterministic": preference_mdp.deterministic_tree,
    "stochastic": preference_mdp.stochastic_tree,
}
_NAME_KEY = "config.trees.names"
# More final states than this make matrices that no exact solver should be asked for.
_MOST_STATES = 1024

# A reward's unit is not a win-rate's: near indifference sigma(r) - 1/2 is r / 4, so that RLHF goes
# much further from the reference at the same weight. From a quarter of alpha to 64 times alpha.
RLHF_FACTORS = tuple(2.0 ** np.arange(-2, 6.25, 0.25))

# What `baselines` and `compare` return, in their order.
BASELINES = ("reference", "single_turn", "multi_turn_rlhf", "multi_turn_rlhf_tuned")
_SCORES = ("win_rate", "regularised_win_rate", "kl/reference", "gap")

Policy = Float[Array, "H X Y"]


def make_tree(name: str, config: TabularConfig) -> PreferenceMDP:
    """Returns the tree of a name.

    Args:
      name: deterministic, stochastic or random:H.
      config: the run; a random tree depends on the seed and its own name alone.

    Returns:
      The tree.

    Raises:
      UserError: there is no such tree, or it is too large.
    """
    kind, _, text = name.partition(":")
    if name in _NAMED:
        return _NAMED[name]()
    if kind != "random":
        raise config_lib.unknown(_NAME_KEY, name, [*_NAMED, "random:H"])
    horizon = tabular_config.count(_NAME_KEY, name, text, 1)
    num_actions = config.trees.num_actions
    if num_actions**horizon > _MOST_STATES:
        raise errors.UserError(
            f"{_NAME_KEY} holds {name!r}, which has {num_actions}^{horizon} final states; at most "
            f"{_MOST_STATES} are solved."
        )
    key = numbered.named_key(config.seed, name)
    return preference_mdp.random_tree(key, horizon=horizon, num_actions=num_actions)


METHODS: dict[str, Callable[..., Float[Array, "T+1 H X Y"]]] = {
    "mtpo": tabular.mtpo_iterates,
    "mtpo_mixture": tabular.mtpo_mixture_iterates,
}


def check_methods(config: TabularConfig) -> None:
    """Finds unknown methods before anything is solved.

    Args:
      config: the run.

    Raises:
      UserError: a method is unknown.
    """
    for method in config.trees.methods:
        if method not in METHODS:
            raise config_lib.unknown("config.trees.methods", method, METHODS)


def baselines(
    tree: PreferenceMDP, equilibrium: Policy, alpha: float | Float[Array, ""]
) -> dict[str, Policy]:
    """Returns the policies of those who do not solve the game of whole conversations.

    Args:
      tree: the tree.
      equilibrium: its regularised equilibrium, against which one of them is tuned. [H, X, Y].
      alpha: weight of the divergence.

    Returns:
      By name: the reference; multi-turn RLHF with Bradley-Terry rewards of final states, fitted by
      maximum likelihood to pairs of the reference's conversations; the same with the weight of the
      divergence, out of `RLHF_FACTORS` times alpha, that loses least to the equilibrium; and the
      equilibrium of each turn's own game.
    """
    found = _baselines(tree, equilibrium, alpha)
    return dict(zip(BASELINES, found, strict=True))


@jax.jit
def _baselines(tree, equilibrium, alpha):
    law = tabular.final_law(tree.reference, tree.transition, tree.initial_state)
    rewards = tabular.bradley_terry_rewards(tree.final_preference, law)

    def rlhf(weight):
        return tabular.multi_turn_rlhf(tree.transition, rewards, tree.reference, alpha=weight)

    def loss(policy):
        return tabular.regularised_win_rate(equilibrium, policy, *tree, alpha=alpha)

    tuned = jax.vmap(rlhf)(alpha * jnp.array(RLHF_FACTORS))
    single_turn = tabular.per_turn_equilibrium(
        tree.transition, tree.final_preference, tree.reference, alpha=alpha
    )
    best = jnp.argmin(jax.vmap(loss)(tuned))
    return tree.reference, single_turn, rlhf(alpha), tuned[best]


def divergences(
    tree: PreferenceMDP, equilibrium: Policy, policies: Float[Array, "T+1 H X Y"]
) -> np.ndarray:
    """Returns KL_p(equilibrium, policy) of each policy.

    Args:
      tree: the tree.
      equilibrium: its regularised equilibrium. [H, X, Y].
      policies: policies by step. [T + 1, H, X, Y].

    Returns:
      Divergences, nats. [T + 1].
    """
    return np.asarray(_divergences(tree, equilibrium, policies))


@jax.jit
def _divergences(tree, equilibrium, policies):
    def one(policy):
        return tabular.trajectory_kl(equilibrium, policy, tree.transition, tree.initial_state)

    return jax.vmap(one)(policies)


def bound(tree: PreferenceMDP, steps: np.ndarray, alpha: float) -> np.ndarray:
    r"""Returns the bound of MTPO's rate: 32 H Q^2 / (alpha^2 (T + 1)).

    Q is at most max(4 alpha H log(1 / mu_min), 1), with mu_min over states that can be reached.

    Args:
      tree: the tree.
      steps: T. [N].
      alpha: weight of the divergence.

    Returns:
      Bounds on KL_p(equilibrium, policy), nats. [N].
    """
    laws = tabular.occupancy(tree.reference, tree.transition, tree.initial_state)[:-1]
    reached = np.asarray(laws) > 0
    least = np.asarray(tree.reference)[reached].min()
    q = max(4 * alpha * tree.horizon * np.log(1 / least), 1.0)
    return 32 * tree.horizon * q**2 / (alpha**2 * (steps + 1))


def compare(
    tree: PreferenceMDP, policies: Mapping[str, Policy], champion: Policy, alpha: float
) -> list[dict[str, Any]]:
    """Returns how policies do against one of them and against their best responses.

    Args:
      tree: the tree.
      policies: policies by name.
      champion: the policy that meets each.
      alpha: weight of the divergence.

    Returns:
      A row a policy: the champion's plain and regularised win-rate against it, its divergence from
      the reference and its duality gap.
    """
    rows = []
    for name, policy in policies.items():
        scores = map(float, _scores(tree, policy, champion, alpha))
        rows.append({"policy": name, **dict(zip(_SCORES, scores, strict=True))})
    return rows


@jax.jit
def _scores(tree, policy, champion, alpha):
    kl = tabular.trajectory_kl(policy, tree.reference, tree.transition, tree.initial_state)
    return (
        tabular.regularised_win_rate(champion, policy, *tree, alpha=0.0),
        tabular.regularised_win_rate(champion, policy, *tree, alpha=alpha),
        jnp.maximum(kl, 0),  # Rounding may leave less than nothing.
        tabular.multi_turn_duality_gap(policy, *tree, alpha=alpha),
    )


def panel(
    name: str,
    tree: PreferenceMDP,
    alpha: float,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> plots.Panel:
    """Returns the figure's panel of a tree.

    Args:
      name: the tree.
      tree: its tables.
      alpha: weight of the divergence.
      curves: steps and divergences by method.

    Returns:
      A log-log panel with MTPO's bound.
    """
    series = [
        plots.Series(method, steps, np.maximum(values, 1e-17))
        for method, (steps, values) in curves.items()
    ]
    if "mtpo" in curves:
        steps = curves["mtpo"][0]
        series.append(
            plots.Series(
                "bound of MTPO", steps, bound(tree, steps, alpha), style="--", reference=True
            )
        )
    return plots.Panel(
        f"{name}, alpha = {alpha:g}",
        "step T",
        "KL of conversations (equilibrium, policy), nats",
        series,
        x_scale="log",
        y_scale="log",
    )
