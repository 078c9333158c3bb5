"""What a claim is: a statement of a paper, how it is tried here, and the rule that decides."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run of a claim found.

    Attributes:
      passed: whether the acceptance rule holds.
      figure: our figure, in one line, to stand beside the paper's.
      details: every number behind it, for the record.
      picture: the picture that the run drew.
    """

    passed: bool
    figure: str
    details: dict[str, Any]
    picture: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper that a program can check; all but `run` is fixed before it runs.

    Attributes:
      name: the module's name.
      paper: authors, short title, year.
      url: where the paper is.
      statement: what is claimed, in one sentence.
      paper_figure: the paper's number or ordering, or the closed form that stands for it.
      budget: what is run, and how long it takes on two cores.
      acceptance: the rule that decides, in words; the module's constants are its numbers.
      default_seeds: seeds that the rule is meant for; 1 where nothing is random.
      run: `(seeds, directory) -> Outcome`; draws its picture into the directory.
      slow: whether it takes more than two minutes on two cores.
    """

    name: str
    paper: str
    url: str
    statement: str
    paper_figure: str
    budget: str
    acceptance: str
    default_seeds: int
    run: Callable[[int, pathlib.Path], Outcome]
    slow: bool = False
