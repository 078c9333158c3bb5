import subprocess
import sys

import pytest

SCRIPT = """
import sys
from bellmax.experiments import errors

def main(argv):
    if argv[1:] == ["user"]:
        raise errors.UserError("A key\\n   is   wrong.")
    if argv[1:] == ["interrupt"]:
        raise KeyboardInterrupt
    if argv[1:] == ["bug"]:
        raise ValueError("ours")
    return 3 if argv[1:] == ["three"] else None

errors.run(main)
"""


@pytest.mark.parametrize(
    ("argument", "code", "stderr"),
    [
        ("user", 2, "error: A key is wrong.\n"),
        (
            "--unknown=3",
            2,
            "error: Unknown command line flag 'unknown' (--help lists the flags.)\n",
        ),
        ("interrupt", 130, ""),
        ("three", 3, ""),
        ("fine", 0, ""),
    ],
)
def test_exit_code_and_message(argument, code, stderr):
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, argument], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, stderr)


def test_our_own_mistakes_keep_their_traceback():
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, "bug"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: ours" in done.stderr
