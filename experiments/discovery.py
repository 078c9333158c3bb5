"""Modules of a package that say by an attribute what they are: claims, benchmarks.

Nothing is registered by hand: a new module with the attribute is found by its name.
"""

import importlib
import pkgutil
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from bellmax.experiments import config as config_lib
from bellmax.experiments import errors

T = TypeVar("T")


def find(package: types.ModuleType, attribute: str) -> dict[str, Any]:
    """Returns what the modules of a package have under an attribute.

    Args:
      package: the package.
      attribute: such as `CLAIM`; modules without it are left out.

    Returns:
      The attributes by module name, sorted.
    """
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        if name != "__main__":
            module = importlib.import_module(f"{package.__name__}.{name}")
            if hasattr(module, attribute):
                found[name] = getattr(module, attribute)
    return found


def pick(found: Mapping[str, T], name: str, *, kind: str) -> T:
    """Returns the one of a name.

    Args:
      found: what there is, by name.
      name: what was asked for.
      kind: what these are called in the error.

    Returns:
      The one.

    Raises:
      UserError: there is none of this name; the nearest is suggested.
    """
    if name not in found:
        raise errors.UserError(
            f"{name!r} is no {kind}.{config_lib.did_you_mean(name, found)} There are: "
            f"{', '.join(found)}."
        )
    return found[name]
