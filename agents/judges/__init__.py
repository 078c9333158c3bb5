"""Learned judges: which of two completions of a prompt is better, as a probability.

A judge is one function of parameters and of two rows of tokens:

    judge(params, first_tokens, first_mask, second_tokens, second_mask) -> preferences[B]

Two models of it are fitted to a `PreferenceBatch` by agents of their own, over any causal network:

- `bradley_terry`: a reward of each completion; the preference is that of their difference, and so
  it is transitive;
- `pairwise`: a bilinear form of the two completions, antisymmetric by construction, which may hold
  cycles. It is no cross-encoder: neither completion is read in the light of the other.

    hidden_states = functools.partial(networks.hidden_states, config)
    judge = functools.partial(judges.pairwise_preferences, hidden_states=hidden_states)
"""

from bellmax.agents.judges import bradley_terry, pairwise
from bellmax.agents.judges.bradley_terry import preferences as bradley_terry_preferences
from bellmax.agents.judges.bradley_terry import rewards
from bellmax.agents.judges.fitting import HiddenStates, Judge, State, completion_states
from bellmax.agents.judges.pairwise import preferences as pairwise_preferences

__all__ = [
    "HiddenStates",
    "Judge",
    "State",
    "bradley_terry",
    "bradley_terry_preferences",
    "completion_states",
    "pairwise",
    "pairwise_preferences",
    "rewards",
]
