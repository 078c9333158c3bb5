"""Progress of long work, on standard error: a bar in a terminal, a line now and then elsewhere."""

import sys
import time

import jax
import rich.console
import rich.progress

_SECONDS_BETWEEN_PLAIN_LINES = 10.0


class Progress:
    """Shows how far something is, how fast it goes and what is left; the first process alone does.

    Args:
      name: of what is done.
      total: how much there is to do.
      unit: of that, a plural in -s.
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
          note: what to show beside it, such as the loss, or "" for nothing; None prints no line
            and leaves the bar's note as it is.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        since, seconds = done - self._first[0], now - self._first[1]
        rate = since / seconds if seconds > 0 else 0.0
        speed = f"{rate:.1f} {self._unit}/s" if rate >= 1 else f"{rate:.2g} {self._unit}/s"
        if self._bar is not None:
            self._note = self._note if note is None else note
            self._bar.update(self._task, completed=done, rate=speed, note=self._note)
        elif note is not None and now - self._last_line > _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = now
            left = (self._total - done) / rate if rate > 0 else float("inf")
            said = f"{note}, " if note else ""
            say(
                f"{self._name}: {self._unit.removesuffix('s')} {done}/{self._total}, {said}"
                f"{speed}, {left:.0f} s left"
            )


def say(line: str) -> None:
    """Prints a line on standard error, by the first process alone.

    Args:
      line: the line.
    """
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
