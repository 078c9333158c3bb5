"""Libraries that are only ever compared with, and that nothing else imports."""

import importlib
import sys
from typing import Any


def import_peer(name: str) -> Any:
    """Imports a library that is only ever compared with; says how to get it where it is missing.

    Args:
      name: its import name.

    Returns:
      The module, or None.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        hint = f"{name} is not installed and not compared with: pip install 'bellmax[peers]'"
        print(hint, file=sys.stderr, flush=True)
        return None
