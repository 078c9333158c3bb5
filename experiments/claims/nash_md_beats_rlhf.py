r"""A policy trained by Nash-MD-PG beats the one that maximises a fitted reward, judged in a circle.

Completions of the cyclic bench beat each other in a circle (with a part that is quality), so that
no reward explains the preference. From one supervised start, on the same preference pairs:

- Nash-MD-PG learns against the geometric mixture of itself and the reference, judged by a pairwise
  preference model fitted to the pairs;
- RLHF fits a Bradley-Terry reward to the pairs and maximises it.

Both are penalised by the KL divergence from the start, with weights that stand for one strength: a
preference moves by about a quarter of what a reward, in logits, moves. Neither sees the bench's own
law, by which they meet at the end: exactly, over all completions of 32 prompts.

The rule, on seeds 0 to 2, counts the error over prompts and not that over training. It held when
RLHF was held back by a quarter more (0.1 in the place of 0.08), and fails as it stands, by one
seed. `nash_md_fresh_seeds` asks again, over others: Nash-MD is ahead of RLHF on average, and not by
enough for ten seeds. `nash_md_many_seeds` asks over twenty-four, and holds.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from bellmax.configs.reason import nash_md
from bellmax.experiments import config as config_lib
from bellmax.experiments import plots, reason, reason_config, reason_report
from bellmax.experiments.claims.claim import Claim, Outcome

METHODS = ("nash_md", "rlhf")
# The rule: by so many standard errors over prompts must each win rate exceed one half.
STANDARD_ERRORS = 2.0


def _config(seed: int, workdir: pathlib.Path) -> reason_config.ReasonConfig:
    config = nash_md.get_config()
    taus = tuple(nash_md.TAUS[name] for name in METHODS)
    config.update({"seed": seed, "loss": {"names": METHODS, "taus": taus}})
    # A folder of other settings is refused, and not gone on with.
    config_lib.save_run_config(workdir, config)
    return config_lib.to_dataclass(reason_config.ReasonConfig, config)


def holds(beats: dict[str, tuple[float, float]]) -> bool:
    """Returns whether the rule holds on one seed.

    Args:
      beats: win rate of Nash-MD over each other policy, and its standard error.
    """
    return all(rate - 0.5 > STANDARD_ERRORS * error for rate, error in beats.values())


def play(seeds: Sequence[int], directory: pathlib.Path) -> tuple[list[dict], list[plots.Panel]]:
    """Trains both policies from each seed; a run that was stopped goes on.

    Args:
      seeds: their numbers.
      directory: gets a folder for each.

    Returns:
      Of each seed: win rates with their errors over prompts, divergences, exploitabilities; and a
      panel of the learning curves.
    """
    found, panels = [], []
    for seed in seeds:
        workdir = directory / f"seed{seed}"
        rows = {row["method"]: row for row in reason.train(_config(seed, workdir), workdir)}
        beats = {other: tuple(rows["nash_md"]["beats"][other]) for other in ("reference", "rlhf")}
        found.append(
            {
                "beats": beats,
                "rlhf_beats_reference": rows["rlhf"]["beats"]["reference"],
                "kl": {name: rows[name]["kl/reference"] for name in METHODS},
                "exploitability": {name: row["exploitability"] for name, row in rows.items()},
            }
        )
        panels.append(_panel(workdir, seed))
    return found, panels


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Trains both policies from each seed and lets them meet."""
    found, panels = play(range(seeds), directory / "nash_md_beats_rlhf")
    rates = {other: [one["beats"][other][0] for one in found] for other in ("reference", "rlhf")}
    kept = sum(holds(one["beats"]) for one in found)
    picture = directory / "nash_md_beats_rlhf.png"
    plots.save_figure(picture, panels, columns=3)
    rates["rlhf over the reference"] = [one["rlhf_beats_reference"][0] for one in found]
    shown = {other: ", ".join(f"{rate:.3f}" for rate in of) for other, of in rates.items()}
    shown |= {
        f"kl of {name}": ", ".join(f"{one['kl'][name]:.2f}" for one in found) for name in METHODS
    }
    return Outcome(
        passed=kept == seeds,
        figure=(
            f"win rate of Nash-MD over RLHF {shown['rlhf']}, over the reference "
            f"{shown['reference']} (RLHF's over the reference {shown['rlhf over the reference']}); "
            f"KL from the reference {shown['kl of nash_md']} and {shown['kl of rlhf']} nats; the "
            f"rule holds in {kept} of {seeds} seeds"
        ),
        details={"seeds": found},
        picture=picture,
    )


def _panel(workdir: pathlib.Path, seed: int) -> plots.Panel:
    series = []
    for name in METHODS:
        rows = reason_report.evaluations(workdir, name)
        rate = np.array([row["win_rate"] for row in rows])
        error = np.array([row["win_rate_stderr"] for row in rows])
        steps = [row["step"] for row in rows]
        series.append(plots.Series(name, steps, rate, rate - error, rate + error))
    return plots.Panel(
        f"Seed {seed}",
        "step",
        "win rate against the reference",
        series,
        horizontal_lines=[("chance", 0.5)],
    )


CLAIM = Claim(
    name="nash_md_beats_rlhf",
    paper="Munos et al. 2023",
    url="https://arxiv.org/abs/2312.00886",
    statement="a language policy trained by Nash-MD-PG beats the start and the RLHF policy",
    paper_figure=(
        "Nash-MD-PG ahead of SFT and RLHF in the pairwise matrix (summaries, T5X-L); no number "
        "carries over"
    ),
    budget="3 seeds of warm start, two fitted judges, two policies of 0.1M parameters, 13 min",
    acceptance=(
        f"in every seed both exact win rates exceed 1/2 by more than {STANDARD_ERRORS:g} standard "
        "errors over prompts"
    ),
    default_seeds=3,
    run=run,
    slow=True,
)
