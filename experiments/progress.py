"""Progress of long work, on standard error: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import rich.console
import rich.progress

_SECONDS_BETWEEN_PLAIN_LINES = 10.0

Item = TypeVar("Item")


class Progress:
    """Shows how far something is, how fast it goes and what is left; the first process alone does.

    Args:
      name: of what is done.
      total: how much there is to do.
      unit: of that, such as "steps".
    """

    def __init__(self, name: str, total: int, *, unit: str):
        self._name, self._total, self._unit = name, total, unit
        self._console = rich.console.Console(stderr=True)
        self._bar = None
        self._note = ""
        self._first: tuple[int, float] | None = None
        self._last_line = time.monotonic()
        if self._console.is_terminal and jax.process_index() == 0:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[rate]}"),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                console=self._console,
            )

    def __enter__(self):
        """Shows the bar."""
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, rate="", note="")
        return self

    def __exit__(self, *_):
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def at(self, done: int, note: str | None) -> None:
        """Says how far it is.

        Args:
          done: how much is done.
          note: to be shown beside it, such as the loss; None moves the bar alone.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        since, seconds = done - self._first[0], now - self._first[1]
        rate = since / seconds if seconds > 0 else 0.0
        if self._bar is not None:
            self._note = self._note if note is None else note
            shown = f"{rate:.1f} {self._unit}/s"
            self._bar.update(self._task, completed=done, rate=shown, note=self._note)
        elif note is not None and now - self._last_line > _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = now
            left = (self._total - done) / rate if rate > 0 else float("inf")
            said = f"{note}, " if note else ""
            say(
                f"{self._name}: {self._unit.removesuffix('s')} {done}/{self._total}, {said}"
                f"{rate:.1f} {self._unit}/s, {left:.0f} s left"
            )


def track(name: str, items: Sequence[Item], *, unit: str) -> Iterator[Item]:
    """Yields items one after another, and shows how many are done.

    Args:
      name: of what is done with them.
      items: of equal work.
      unit: of items, such as "files".

    Yields:
      The items.
    """
    with Progress(name, len(items), unit=unit) as progress:
        progress.at(0, None)
        for number, item in enumerate(items):
            yield item
            progress.at(number + 1, "")


def say(line: str) -> None:
    """Prints a line on standard error, by the first process alone.

    Args:
      line: the line.
    """
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
