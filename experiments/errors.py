"""Errors that the user of a binary can mend, and how a binary reports them."""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging


class UserError(Exception):
    """A bad flag, config or file; its message is one paragraph for the person at the terminal."""


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a binary: `absl.app.run`, with user errors as one paragraph and exit code 2.

    Args:
      main: the binary's main function, given the arguments that are no flags.
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
            return main(argv)
        except UserError as error:
            _report(error)
        except KeyboardInterrupt:
            sys.exit(130)

    # Libraries report every phase of what they do; the binary prints what a person wants to know.
    logging.set_verbosity(logging.WARNING)
    app.run(reported, flags_parser=parse)


def _report(error: UserError) -> NoReturn:
    paragraph = " ".join(str(error).split())
    print(f"error: {paragraph}", file=sys.stderr)
    sys.exit(2)
