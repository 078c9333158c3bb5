"""Wishes to stop: a scheduler's SIGTERM and Ctrl-C, granted where nothing is lost.

A stage under way is stopped and saved after a step (`runner`). Between stages there is nothing to
save: one process stops at once, and several, which must stop together, before the next step.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

# What a process wishes; of several processes the largest number counts.
NO_WISH, TERMINATE, INTERRUPT = 0, 1, 2
# A run that was told to make room has done what it was told; one that a person stopped has not
# ended, and a script that goes on after it should know.
_EXIT_CODES = {TERMINATE: 0, INTERRUPT: 130}
_WISHES = {signal.SIGTERM: TERMINATE, signal.SIGINT: INTERRUPT}


class Stopped(BaseException):
    """A run has stopped because it was asked to, and the same command goes on with it.

    No Exception, as KeyboardInterrupt is none: nobody may take it for a mistake in the data.

    Args:
      message: one sentence for the person at the terminal.
      wish: `TERMINATE` or `INTERRUPT`.
    """

    def __init__(self, message: str, wish: int):
        super().__init__(message)
        self.exit_code = _EXIT_CODES[wish]


class _Ears:
    """What this process has heard, since signals belong to the process."""

    wish = NO_WISH
    # Handlers that others had installed, while ours are; None while they are not.
    before: dict[int, Any] | None = None
    # A stage is under way, or others must be told first: stopping waits for the next step.
    waits = False


def wish() -> int:
    """Returns what this process was asked for: `NO_WISH`, `TERMINATE` or `INTERRUPT`."""
    return _Ears.wish


def wait_for_steps() -> None:
    """Makes this process wait for the next step with every wish, also between stages.

    Several processes do once they have joined, which gave SIGTERM to JAX: it is taken back.
    """
    _Ears.waits = True
    if _Ears.before is not None:
        _install()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Hears SIGTERM and SIGINT while it is entered; the second one ends the process at once."""
    if _Ears.before is not None:
        yield
        return
    _Ears.before, _Ears.wish = _install(), NO_WISH
    try:
        yield
    finally:
        for number, handler in _Ears.before.items():
            # None is a handler that is not Python's.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _Ears.before, _Ears.wish = None, NO_WISH


@contextlib.contextmanager
def during_a_stage() -> Iterator[None]:
    """Keeps wishes for the loop of a stage, which reads `wish` and stops after a step."""
    with listening():
        waited, _Ears.waits = _Ears.waits, True
        try:
            yield
        finally:
            _Ears.waits = waited


def _install() -> dict[int, Any]:
    before = {}
    # Handlers can be set in the main thread alone; elsewhere (a notebook's worker) signals stay as
    # they are.
    with contextlib.suppress(ValueError):
        for number in _WISHES:
            before[number] = signal.signal(number, _hear)
    return before


def _hear(number, frame):
    del frame
    if _Ears.wish != NO_WISH:
        # Twice: whoever asks means it.
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _Ears.wish = _WISHES[number]
    if not _Ears.waits:
        raise Stopped(
            "stopped between steps of the run; the same command goes on with it.", _Ears.wish
        )
