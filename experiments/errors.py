"""Errors that the user of a binary can mend."""


class UserError(Exception):
    """A bad flag, config or file; its message is one paragraph for the person at the terminal."""
