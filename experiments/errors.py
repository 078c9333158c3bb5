"""Errors that the user of a binary can mend, and how a binary reports them."""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from bellmax.experiments import interruptions


class UserError(Exception):
    """A bad flag, config or file; its message is one paragraph for the person at the terminal."""


# What shells say of a process that SIGTERM has ended.
_TERMINATED = 143

# How a process that has failed leaves others which would wait for it; set once there are any.
_leave: list[Callable[[int, Exception | None], NoReturn]] = []


def leave_with(leave: Callable[[int, Exception | None], NoReturn]) -> None:
    """Makes `run` leave by a function after any error, instead of by an ordinary exit.

    Args:
      leave: takes the exit code and an error that is not told yet, if any; does not return.
    """
    _leave[:] = [leave]


def run(main: Callable[[Sequence[str]], int | None], *, resumes: bool = True) -> None:
    """Runs a binary: `absl.app.run`, with user errors as one paragraph and exit code 2.

    A run that SIGTERM stopped exits with 0, since it has done what it was asked to, and one that
    Ctrl-C stopped with 130, since a script that goes on after it should know.

    Args:
      main: the binary's main function, given the arguments that are no flags.
      resumes: whether the same command goes on where the binary was stopped; one that does not, or
        whose exit code is its answer, exits with 143 after SIGTERM.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(argv, known_only=False)
        except UserError as error:
            _report(error)
        except flags.Error as error:
            hint = "--config=NAME comes before its overrides; " if "config." in str(error) else ""
            _report(UserError(f"{error} ({hint}--help lists the flags.)"))

    def reported(argv: Sequence[str]) -> int | None:
        try:
            with interruptions.listening():
                return main(argv)
        except UserError as error:
            _report(error)
        except interruptions.Stopped as stopped:
            if str(stopped):
                print(stopped, file=sys.stderr)
            sys.exit(stopped.exit_code if resumes else stopped.exit_code or _TERMINATED)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            for leave in _leave:
                leave(1, error)
            raise

    # Libraries report every phase of what they do; the binary prints what a person wants to know.
    logging.set_verbosity(logging.WARNING)
    app.run(reported, flags_parser=parse)


def _report(error: UserError) -> NoReturn:
    paragraph = " ".join(str(error).split())
    print(f"error: {paragraph}", file=sys.stderr)
    for leave in _leave:
        leave(2, None)
    sys.exit(2)
