r"""Quantile regression with Q(lambda), signed weights and all, beside Retrace and one-step targets.

Paper: Tang et al., Off-policy Distributional Q(lambda), 2024, https://arxiv.org/abs/2402.05766, and
Dabney et al., Distributional Reinforcement Learning with Quantile Regression, 2017,
https://arxiv.org/abs/1710.10044. The variants are those of `c51_q_lambda`.
Command:
  python -m bellmax.experiments.control --config=qr_q_lambda:cartpole --workdir=runs/qr
Cost: about three times that of `c51_q_lambda`: every target has as many atoms as all laws of a
sequence together.
Expected: see `c51_q_lambda`; no figures are kept.
"""

import ml_collections

from bellmax.configs.control import c51_q_lambda


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: an environment, as in `c51_q_lambda`.

    Raises:
      ValueError: there is no such variant.
    """
    config = c51_q_lambda.get_config(variant)
    config.update({"model": {"law": "quantile", "num_outputs": 21}})
    return config
