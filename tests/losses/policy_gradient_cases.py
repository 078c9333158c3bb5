"""Cases of policy gradients; see `loss_cases.py`."""

import pathlib
import runpy

TABLE = runpy.run_path(str(pathlib.Path(__file__).with_name("loss_cases.py")))
Case, bind, REAL, LOG_PROB = (TABLE[name] for name in ("Case", "bind", "REAL", "LOG_PROB"))

CASES = {}
