r"""Nash-MD on completions that beat each other in a circle, beside reward maximisation.

Paper: Munos et al., Nash Learning from Human Feedback, 2023, https://arxiv.org/abs/2312.00886
Command (Nash-MD, self-play, online IPO and RLHF from one start; one method alone; all eleven):
  python -m bellmax.experiments.reason --config=nash_md --workdir=runs/nash
  python -m bellmax.experiments.reason --config=nash_md:inpo --workdir=runs/inpo
  python -m bellmax.experiments.reason --config=nash_md:all --workdir=runs/all
Cost: 4.5 minutes of CPU time for the four, on a machine of 2 cores without accelerator.
Expected: the final matrix is exact, over all completions of 32 prompts, by the bench's own law,
which no method sees. Over seeds 0, 1, 2 (claim `nash_md_beats_rlhf`) Nash-MD beats the start with
0.620, 0.573, 0.561 and RLHF with 0.668, 0.624, 0.514 (standard errors over prompts 0.005 to 0.013);
ten other seeds (`nash_md_fresh_seeds`) give 0.556 (0.490 to 0.622) over RLHF on average, and
twenty-four others (`nash_md_many_seeds`) 0.558 (0.526 to 0.591).
"""

import ml_collections

from bellmax.configs.reason import base

# Weight of the KL divergence. For rlhf it is in units of the fitted reward (logits), elsewhere in
# units of a probability, which moves by a quarter of that near 1/2: 0.08 is as strong as 0.02. sppo
# and dno have none.
TAUS = {
    "nash_md": 0.02,
    "nash_ema": 0.02,
    "best_response": 0.02,
    "self_play": 0.02,
    "online_ipo": 0.02,
    "ipo_md": 0.02,
    "online_dpo": 0.1,
    "sppo": 1.0,
    "dno": 1.0,
    "inpo": 0.02,
    "rlhf": 0.08,
}
COMPARED = ("nash_md", "self_play", "online_ipo", "rlhf")


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: a method to train alone, or "all" for every method; None for Nash-MD, self-play,
        online IPO and RLHF.

    Raises:
      ValueError: no method has this name.
    """
    config = base.get_config()
    if variant not in (None, "all", *TAUS):
        raise ValueError(f"nash_md has no variant {variant!r}; there are: all, {', '.join(TAUS)}")
    names = {None: COMPARED, "all": tuple(TAUS)}.get(variant, (variant,))
    taus = tuple(TAUS[name] for name in names)
    config.update({"loss": {"names": names, "taus": taus}})
    return config
