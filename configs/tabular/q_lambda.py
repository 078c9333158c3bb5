r"""Distributional Q(lambda) as an operator: contraction while policies are near, divergence beyond.

Paper: Tang et al., Off-policy Distributional Q(lambda): Distributional RL without Importance
Sampling, 2024, https://arxiv.org/abs/2402.05766
Command:
  python -m bellmax.experiments.tabular --config=q_lambda --workdir=runs/q_lambda
  python -m bellmax.experiments.tabular --config=q_lambda:quick --workdir=runs/q_lambda_quick
Cost: half a minute to two on 2 busy CPU cores.
Expected: on the Garnet of seed 0 spectral radii of 0.9, 0.871, 0.818, 0.692, 0.474 at lambda 0 to
0.9, whatever the policy, since functions that are the same for all states are kept by every policy
and shrink like gamma (1 - lambda) / (1 - gamma lambda); at lambda = 1 0.461 alpha. Where one policy
swaps two states and the other stays, the radius is gamma (1 + lambda) / (1 - gamma lambda) and
crosses 1 at lambda = 0.5 and 0.0556. Only the Garnet is random.
"""

import ml_collections

VARIANTS = ("quick",)


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: quick for few atoms; None for the size of the figure.

    Raises:
      ValueError: there is no such variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"q_lambda has no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    config = ml_collections.ConfigDict(
        {
            "seed": 0,  # Of the Garnet.
            "operators": {
                "num_states": 10,  # Of the Garnet, as all up to `mixtures`.
                "num_actions": 4,
                "concentration": 0.3,  # Of the Dirichlet law of next states.
                "discount": 0.9,
                "num_atoms": 21,
                "reach": 15.0,  # The support is [-reach, reach].
                "trace_decays": (0.0, 0.25, 0.5, 0.75, 0.9, 1.0),  # lambda.
                "mixtures": (0.1, 0.25, 0.5, 1.0),  # alpha: how far the policy is from uniform.
                "num_iterations": 30,  # Of each operator.
                "radii": True,  # Whether eigenvalues are computed: a second or two each.
                "tight_discounts": (0.5, 0.9),  # Of the two states where the bound is tight.
                "num_points": 21,  # Values of lambda between 0 and 1 there.
            },
        }
    )
    if variant == "quick":
        config.update({"operators": {"num_states": 4, "num_actions": 3, "num_atoms": 11}})
    return config
