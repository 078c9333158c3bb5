"""The benchmarks there are: every module of this package that has a `BENCHMARK`."""

import importlib
import pkgutil

from bellmax.experiments import benchmarks, errors
from bellmax.experiments import config as config_lib
from bellmax.experiments.benchmarks.benchmark import Benchmark


def load_all() -> dict[str, Benchmark]:
    """Returns all benchmarks by name, sorted."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__)):
        if name != "__main__":
            module = importlib.import_module(f"{benchmarks.__name__}.{name}")
            if hasattr(module, "BENCHMARK"):
                found[name] = module.BENCHMARK
    return found


def select(names: list[str]) -> list[Benchmark]:
    """Returns benchmarks by name.

    Args:
      names: names; none at all for every benchmark.

    Returns:
      The benchmarks, in the order of `names`.

    Raises:
      UserError: there is no such benchmark; the nearest name is suggested.
    """
    known = load_all()
    for name in names:
        if name not in known:
            raise errors.UserError(
                f"{name!r} is no benchmark.{config_lib.did_you_mean(name, known)} There are: "
                f"{', '.join(known)}."
            )
    return [known[name] for name in names] if names else list(known.values())
