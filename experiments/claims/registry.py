"""The claims there are: every module of this package that has a `CLAIM`."""

from bellmax.experiments import claims, discovery
from bellmax.experiments.claims.claim import Claim


def names() -> list[str]:
    """Returns the names of all claims, sorted."""
    return list(discovery.find(claims, "CLAIM"))


def load(name: str) -> Claim:
    """Returns a claim.

    Args:
      name: one of `names()`.

    Returns:
      The claim.

    Raises:
      UserError: there is no such claim; the nearest name is suggested.
    """
    return discovery.pick(discovery.find(claims, "CLAIM"), name, kind="claim")
