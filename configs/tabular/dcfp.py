r"""Laws of returns: the categorical fixed point (DCFP) beside dynamic programming (CDP, QDP).

Paper: Rowland et al., Near-Minimax-Optimal Distributional Reinforcement Learning with a Generative
Model, 2024, https://arxiv.org/abs/2402.07598
Command:
  python -m bellmax.experiments.tabular --config=dcfp --workdir=runs/dcfp
  python -m bellmax.experiments.tabular --config=dcfp:two_state --workdir=runs/dcfp_two_state
  python -m bellmax.experiments.tabular --config=dcfp:full --workdir=runs/dcfp_full
Cost: a minute on 2 busy CPU cores; two_state 20 s; full 14 minutes of CPU time (its two halves side
by side: 9 minutes). It goes on with the next chain and discount if it was stopped.
Expected, largest W1 error over states with transitions estimated from 10,000 next states of each
state, 31 atoms, 30 seeds (standard error in the last digits): on two states DCFP 0.0452(5) and QDP
0.0511(10) at discount 0.8, 0.228(2) and 0.839 at 0.95, where CDP after 30 sweeps is at 1.45(1). On
the random chains QDP is the better one with so few atoms (0.010 against 0.092 at discount 0.8 on
low_random): projection spreads a return whose standard deviation is a few gaps of atoms or less.
Where a state is left with a chance of less than half of 1 / K, QDP never sees that, which makes it
the worse one at discount 0.99. The claim `dcfp_environments` has these numbers, at 100 atoms.
With `full`, the same at discount 0.99 and 300 atoms for DCFP and QDP: two_state 0.42(4) and
2.13(3), chain 0.29(2) and 0.777(9), low_random 0.86(8) and 2.874(8), high_random 0.234(2) and
0.074(6), where CDP after 30 sweeps is 20 to 66 away.
With the clock, on chains of 10 states, a hundred compiled sweeps of CDP take less than a
millisecond and a thousand a few; DCFP takes as long at every discount by elimination alone, which
is the default up to 256 unknowns, and longer at high ones where it iterates. What it saves is the
choice of a number of sweeps.
"""

import ml_collections

VARIANTS = ("two_state", "full")


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: two_state for the smallest chain alone, full for the grid of the paper's size; None
        for four chains at two discounts.

    Raises:
      ValueError: there is no such variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"dcfp has no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    config = ml_collections.ConfigDict(
        {
            "seed": 0,  # Of chains and returns; estimates of transitions have seeds of their own.
            "fixed_points": {
                # two_state, chain, low_random, high_random.
                "environments": ("two_state", "chain", "low_random", "high_random"),
                "methods": ("dcfp", "qdp", "cdp"),  # Also dcfp_dense, always by elimination.
                "discounts": (0.8, 0.95),
                "num_atoms": (31,),  # Atoms of categorical laws, quantiles of the others.
                "num_samples": (100, 1000, 10_000),  # Next states drawn from each state.
                "num_seeds": 30,  # Estimates of the transitions; intervals are over these.
                "num_states": 10,  # Of all chains but two_state.
                "num_sweeps": (3, 10, 30, 100, 300),  # Of CDP, known transitions, with the clock.
                "estimate_sweeps": 30,  # Of CDP, estimated transitions.
                "num_returns": 20_000,  # Sampled returns of each state, which are the truth.
                "num_functions": 5,  # Random cumulative functions drawn over the fixed point.
            },
        }
    )
    if variant == "two_state":
        config.update({"fixed_points": {"environments": ("two_state",), "discounts": (0.9,)}})
    if variant == "full":
        config.update(
            {
                "fixed_points": {
                    "discounts": (0.8, 0.9, 0.95, 0.99),
                    "num_atoms": (30, 100, 300),
                    "num_sweeps": (3, 10, 30, 100, 300, 1000),
                    "num_returns": 50_000,
                }
            }
        )
    return config
