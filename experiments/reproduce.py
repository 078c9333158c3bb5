"""Runs claims of papers and prints the paper's figure beside ours.

    python -m bellmax.experiments.reproduce --list
    python -m bellmax.experiments.reproduce gpo_trade_off --seeds=3
    python -m bellmax.experiments.reproduce quick
    python -m bellmax.experiments.reproduce all

`quick` leaves out the claims that take more than two minutes on two cores, which `--list` marks.
Each run writes a row and a picture to `--workdir`. In a checkout, `--record` also writes them to
the repository's own record and makes the README's table anew; nobody types that table. The exit
code is 1 where a rule fails.
"""

import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from bellmax.experiments import errors, metrics
from bellmax.experiments.claims import records, registry

_FLAGS = flags.FLAGS


def _define_flags() -> None:
    flags.DEFINE_bool("list", False, "List the claims and stop.")
    flags.DEFINE_integer("seeds", None, "Seeds; each claim has its own default.", lower_bound=1)
    flags.DEFINE_string("workdir", "reproduced", "Folder for rows and pictures.")
    flags.DEFINE_bool("record", False, "Also write to the checkout's record and README.")
    flags.DEFINE_bool("readme", False, "Make the README's table from the record and stop.")


def list_claims() -> None:
    """Prints the claims."""
    rows = []
    for name in registry.names():
        claim = registry.load(name)
        rows.append(
            {
                "name": name,
                "paper": claim.paper,
                "statement": claim.statement,
                "budget": claim.budget,
                "slow": "slow" if claim.slow else "",
            }
        )
    metrics.print_table("Claims", rows)


def expand(names: Sequence[str]) -> list[str]:
    """Returns the claims that are meant.

    Args:
      names: names of claims, or `all` alone, or `quick` alone for those that are not slow.

    Returns:
      Names of claims.

    Raises:
      UserError: there is no name, or no such claim.
    """
    if not names:
        raise errors.UserError(
            "Name a claim, or `quick`, or `all`, or give --list. There are: "
            f"{', '.join(registry.names())}."
        )
    if list(names) == ["all"]:
        return registry.names()
    if list(names) == ["quick"]:
        return [name for name in registry.names() if not registry.load(name).slow]
    return [registry.load(name).name for name in names]


def reproduce(name: str, *, seeds: int | None, workdir: pathlib.Path, record: bool) -> bool:
    """Runs one claim and writes its row.

    Args:
      name: the claim.
      seeds: seeds, or None for the claim's own number.
      workdir: folder for the row and the picture.
      record: whether the checkout's record is written too.

    Returns:
      Whether the acceptance rule holds.

    Raises:
      UserError: there is no such claim.
    """
    claim = registry.load(name)
    seeds = claim.default_seeds if seeds is None else seeds
    workdir.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {claim.budget}", file=sys.stderr, flush=True)
    start = time.monotonic()
    outcome = claim.run(seeds, workdir)
    row = records.row(claim, outcome, seeds=seeds, seconds=time.monotonic() - start)
    records.save(workdir, row, outcome.picture)
    if record:
        records.save(records.RECORDED, row, outcome.picture)
    shown = {
        "statement": claim.statement,
        "paper": claim.paper_figure,
        "ours": outcome.figure,
        "rule": claim.acceptance,
        "verdict": "holds" if outcome.passed else "FAILS",
        "seconds": row["wall_time_s"],
    }
    metrics.print_table(f"{name} ({claim.paper})", [{"": k, " ": v} for k, v in shown.items()])
    return outcome.passed


def write_readme() -> None:
    """Makes the README's results table from the checkout's record.

    Raises:
      UserError: there is no README beside the packages, or it lacks the markers.
    """
    # experiments/claims/results is three folders below the README, through the link as well.
    path = records.RECORDED.parents[2] / "README.md"
    if not path.is_file():
        raise errors.UserError("--record and --readme need a checkout: there is no README.md.")
    path.write_text(records.with_table(path.read_text(), records.load(records.RECORDED)))


def main(argv: Sequence[str]) -> int:
    """Reads the flags and runs what they name."""
    if _FLAGS.readme:
        write_readme()
        return 0
    if _FLAGS.list:
        list_claims()
        return 0
    names = expand(argv[1:])
    workdir = pathlib.Path(_FLAGS.workdir)
    held = [
        reproduce(name, seeds=_FLAGS.seeds, workdir=workdir, record=_FLAGS.record) for name in names
    ]
    if _FLAGS.record:
        write_readme()
    return 0 if all(held) else 1


if __name__ == "__main__":
    _define_flags()
    errors.run(main, resumes=False)
