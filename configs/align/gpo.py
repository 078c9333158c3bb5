r"""Generalised preference optimisation on embedded data with a known gold reward.

Paper: Tang et al., Generalized Preference Optimization, 2024, https://arxiv.org/abs/2402.05749
Command (all convex functions from one warm start, then one alone):
  python -m bellmax.experiments.align --config=gpo --workdir=runs/gpo
  python -m bellmax.experiments.align --config=gpo:hinge --workdir=runs/gpo_hinge
Cost: 2 minutes 15 seconds on 2 CPU cores for all six, without the installation.
Expected, over seeds 0, 1, 2 (each draws its own bench): gain of the exact gold reward over the
reference 0.64 to 0.83 (logistic), 0.64 to 0.84 (exponential), 0.58 to 0.72 (squared), 0.60 to 0.73
(truncated quadratic), 0.82 to 0.93 (hinge, at 2 to 6 nats of KL where the others spend 0.6 to 1.2),
0.66 to 0.81 (Savage); the standard error over prompts is 0.02 to 0.07. Held-out accuracy 0.63 to
0.67.
"""

import ml_collections

from bellmax.configs.align import base

# Equal regularisation near the reference needs beta inversely proportional to |f''(0) / f'(0)|,
# which is 1/2 for the logistic and Savage functions, 1 for the others, and 0 for the hinge.
BETAS = {
    "logistic": 0.5,
    "exponential": 0.25,
    "squared": 0.25,
    "truncated_quadratic": 0.25,
    "hinge": 0.25,
    "savage": 0.5,
}
OTHERS = {"robust_dpo": 0.5, "rpo": 0.5, "length_normalised_dpo": 1.0}


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: a loss to train alone; None for every convex function of the family.

    Raises:
      ValueError: no loss has this name.
    """
    config = base.get_config()
    if variant is None:
        config.update({"loss": {"names": tuple(BETAS), "betas": tuple(BETAS.values())}})
        return config
    betas = BETAS | OTHERS
    if variant not in betas:
        raise ValueError(f"gpo has no variant {variant!r}; there are: {', '.join(betas)}")
    config.update({"loss": {"names": (variant,), "betas": (betas[variant],)}})
    if variant == "robust_dpo":
        config.update({"loss": {"label_smoothing": 0.1}})
    return config
