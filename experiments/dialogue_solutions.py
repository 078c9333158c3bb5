"""What a policy of the dialogue game is compared with, exactly: reference, optima, scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.agents import tabular
from bellmax.envs import dialogue_exact
from bellmax.envs.dialogue import DialogueGame

# Numbers in the transition table of the largest game whose equilibrium is computed: 0.2 GB.
_MOST_TRANSITIONS = 50_000_000


class Solutions(NamedTuple):
    """Policies as tables [H, X, U].

    Attributes:
      game: the game.
      reference: where all methods start from.
      single_turn: the optimum of the single-turn method: at every prefix the equilibrium of the
        short-sighted judge's game, regularised towards the reference.
      equilibrium: the optimum of MTPO, the equilibrium of the game of whole conversations, likewise
        regularised; None where the game is too large.
    """

    game: DialogueGame
    reference: Float[Array, "H X U"]
    single_turn: Float[Array, "H X U"]
    equilibrium: Float[Array, "H X U"] | None


def single_turn_optimum(
    game: DialogueGame, reference: Float[Array, "H X U"], *, alpha: float
) -> Float[Array, "H X U"]:
    """Returns the best policy for somebody who judges turns one by one.

    Args:
      game: the game.
      reference: the reference policy. [H, X, U].
      alpha: weight of the divergence, > 0, 1/nats.

    Returns:
      At each prefix, the regularised equilibrium of the short-sighted judge's game; the reference
      in rows that are no prefix. [H, X, U].
    """

    def solve(preference, law):
        return tabular.regularised_nash(preference, law, tau=alpha)

    table = reference
    for turn in range(game.num_turns):
        judged = dialogue_exact.turn_preferences(game, turn)
        count = judged.shape[0]
        table = table.at[turn, :count].set(jax.vmap(solve)(judged, reference[turn, :count]))
    return table


def solve(game: DialogueGame, reference: Float[Array, "H X U"], *, alpha: float) -> Solutions:
    """Returns both optima beside the reference.

    Args:
      game: the game.
      reference: the reference's table. [H, X, U].
      alpha: weight of the divergence, > 0, 1/nats.

    Returns:
      The tables.

    Raises:
      ValueError: `alpha` is not positive: there are no regularised optima.
    """
    single_turn = single_turn_optimum(game, reference, alpha=alpha)
    turns, states, utterances = reference.shape
    if turns * states**2 * utterances > _MOST_TRANSITIONS:
        return Solutions(game, reference, single_turn, None)
    mdp = dialogue_exact.preference_mdp(game, reference)
    equilibrium = tabular.multi_turn_equilibrium(*mdp, alpha=alpha)
    return Solutions(game, reference, single_turn, equilibrium)


def score(solutions: Solutions, table: Float[Array, "H X U"]) -> dict[str, Array]:
    """Returns what a policy is worth, exactly.

    Args:
      solutions: what it is compared with.
      table: its law over utterances. [H, X, U].

    Returns:
      Win-rates `win_rate/reference`, `win_rate/single_turn_optimum` and, if that is known,
      `win_rate/equilibrium`; `kl/reference` in nats a conversation; `parts`, the expected number of
      parts learnt; `asks_first`, the probability that all words of the first utterance ask.
    """
    game = solutions.game
    law = dialogue_exact.outcome_law(game, table).reshape(game.num_types, -1, game.num_words)
    found = {
        "win_rate/reference": dialogue_exact.win_rate(game, table, solutions.reference),
        "win_rate/single_turn_optimum": dialogue_exact.win_rate(game, table, solutions.single_turn),
        "kl/reference": dialogue_exact.divergence(game, table, solutions.reference),
        "parts": jnp.arange(game.num_parts + 1.0) @ law.sum(axis=(0, 2)),
        "asks_first": table[0, 0, 0],
    }
    if solutions.equilibrium is not None:
        found["win_rate/equilibrium"] = dialogue_exact.win_rate(game, table, solutions.equilibrium)
    return found
