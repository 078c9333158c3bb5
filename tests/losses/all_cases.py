"""Cases of every public function of bellmax.losses, from the files that hold them."""

import pathlib
import runpy

CASES = {
    name: case
    for path in sorted(pathlib.Path(__file__).parent.glob("*_cases.py"))
    if path.name != pathlib.Path(__file__).name
    for name, case in runpy.run_path(str(path))["CASES"].items()
}
