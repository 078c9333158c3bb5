"""Refusals of numbers that no run can have, each by its key's name."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from bellmax.experiments import errors


def at_least_one(group: str, keys: Any, names: Iterable[str] | None = None) -> None:
    """Refuses counts below 1.

    Args:
      group: what the config calls the keys.
      keys: a dataclass of them.
      names: those that count something; every integer if not given, but for the sizes of the mesh,
        whose -1 is its own.

    Raises:
      UserError: there is one.
    """
    if names is None:
        names = [
            field.name
            for field in dataclasses.fields(keys)
            if field.type is int and not field.name.startswith("mesh_")
        ]
    for name in names:
        value = getattr(keys, name)
        if value < 1:
            raise errors.UserError(f"config.{group}.{name} must be at least 1, got {value}.")


def seed(value: int) -> None:
    """Refuses a seed that NumPy's generators do not take.

    Args:
      value: `config.seed`.

    Raises:
      UserError: it is negative.
    """
    if value < 0:
        raise errors.UserError(f"config.seed must be at least 0, got {value}.")


def parts(key: str, rows: int, accumulate_steps: int) -> None:
    """Refuses a batch that does not fall into the parts it is learnt from.

    Args:
      key: what holds its rows.
      rows: how many.
      accumulate_steps: `config.train.accumulate_steps`.

    Raises:
      UserError: the parts are not equal.
    """
    if rows % accumulate_steps:
        raise errors.UserError(
            f"config.train.accumulate_steps must divide config.{key} {rows}, got "
            f"{accumulate_steps}."
        )
