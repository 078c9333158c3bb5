"""The claims there are: every module of this package that has a `CLAIM`."""

import importlib
import pkgutil

from bellmax.experiments import claims, errors
from bellmax.experiments import config as config_lib
from bellmax.experiments.claims.claim import Claim

_OTHER_MODULES = ("claim", "registry", "records")


def names() -> list[str]:
    """Returns the names of all claims, sorted."""
    found = (module.name for module in pkgutil.iter_modules(claims.__path__))
    return sorted(name for name in found if name not in _OTHER_MODULES)


def load(name: str) -> Claim:
    """Returns a claim.

    Args:
      name: one of `names()`.

    Returns:
      The claim.

    Raises:
      UserError: there is no such claim; the nearest name is suggested.
    """
    known = names()
    if name not in known:
        raise errors.UserError(
            f"{name!r} is no claim.{config_lib.did_you_mean(name, known)} There are: "
            f"{', '.join(known)}."
        )
    return importlib.import_module(f"bellmax.experiments.claims.{name}").CLAIM
