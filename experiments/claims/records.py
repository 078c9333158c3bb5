"""Rows of results on disk, and the README's table that is made of them."""

import datetime
import importlib.metadata
import json
import pathlib
from typing import Any

from bellmax.experiments import errors, metrics
from bellmax.experiments.claims.claim import Claim, Outcome

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
# Beside this module: in a checkout the repository's own record.
RECORDED = pathlib.Path(__file__).resolve().parent / "results"


def row(claim: Claim, outcome: Outcome, *, seeds: int, seconds: float) -> dict[str, Any]:
    """Returns the record of a run.

    Args:
      claim: what was run.
      outcome: what it found.
      seeds: seeds it was run with.
      seconds: how long it took.

    Returns:
      A dict for JSON.
    """
    command = f"python -m bellmax.experiments.reproduce {claim.name}"
    if seeds != claim.default_seeds:
        command += f" --seeds={seeds}"
    return {
        "name": claim.name,
        "paper": claim.paper,
        "url": claim.url,
        "statement": claim.statement,
        "paper_figure": claim.paper_figure,
        "figure": outcome.figure,
        "acceptance": claim.acceptance,
        "passed": outcome.passed,
        "seeds": seeds,
        "wall_time_s": round(seconds, 1),
        "command": command,
        "date": datetime.date.today().isoformat(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("bellmax", "jax", "optax")
        },
        "details": outcome.details,
    }


def save(directory: pathlib.Path, record: dict[str, Any], picture: pathlib.Path) -> None:
    """Writes a row and its picture into a folder.

    Args:
      directory: the folder; made if it is missing.
      record: from `row`.
      picture: the picture's file, copied unless it is there already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    metrics.write_json(directory / f"{record['name']}.json", record)
    target = directory / f"{record['name']}.png"
    if picture.resolve() != target.resolve():
        target.write_bytes(picture.read_bytes())


def load(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Reads all rows of a folder.

    Args:
      directory: the folder.

    Returns:
      Rows by name.
    """
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the README's table.

    Args:
      rows: the rows, failures included.

    Returns:
      Markdown.
    """
    lines = [
        "| claim | paper's figure | ours | rule | verdict | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        verdict = "holds" if r["passed"] else "**fails**"
        lines.append(
            f"| `{r['name']}`: {r['statement']} ([{r['paper']}]({r['url']})) | "
            f"{r['paper_figure']} | "
            f"{r['figure']} | {r['acceptance']} | "
            f"[{verdict}](experiments/claims/results/{r['name']}.png) | "
            f"{r['wall_time_s']:g} |"
        )
    return "\n".join(lines)


def with_table(readme: str, rows: list[dict[str, Any]]) -> str:
    """Returns the README's text with the table of these rows.

    Args:
      readme: the text, which has the two markers.
      rows: the rows.

    Returns:
      The text, with what was between the markers replaced.

    Raises:
      UserError: a marker is missing.
    """
    if BEGIN not in readme or END not in readme:
        raise errors.UserError(f"README.md lacks the markers {BEGIN} and {END}.")
    before, rest = readme.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"
