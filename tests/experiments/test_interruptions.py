import os
import signal
import subprocess
import sys

import pytest

from bellmax.experiments import interruptions

HANDLED = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def unchanged():
    """Whatever a test does, the handlers are afterwards what they were."""
    before = [signal.getsignal(number) for number in HANDLED]
    yield
    assert [signal.getsignal(number) for number in HANDLED] == before


@pytest.mark.parametrize(
    ("number", "wish"),
    [(signal.SIGTERM, interruptions.TERMINATE), (signal.SIGINT, interruptions.INTERRUPT)],
)
def test_a_stage_keeps_a_wish_until_it_is_read(number, wish):
    with interruptions.during_a_stage():
        assert interruptions.wish() == interruptions.NO_WISH
        os.kill(os.getpid(), number)
        assert interruptions.wish() == wish
    assert interruptions.wish() == interruptions.NO_WISH


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_between_stages_there_is_nothing_to_wait_for(number, code):
    with interruptions.listening():
        with interruptions.during_a_stage():
            pass
        with pytest.raises(interruptions.Stopped, match="the same command") as stopped:
            os.kill(os.getpid(), number)
    assert stopped.value.exit_code == code


def test_several_processes_wait_for_the_next_stage(monkeypatch):
    monkeypatch.setattr(interruptions._Ears, "waits", False)
    with interruptions.listening():
        # Joining gives the signal to JAX.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interruptions.wait_for_steps()
        os.kill(os.getpid(), signal.SIGTERM)
        with interruptions.during_a_stage():
            assert interruptions.wish() == interruptions.TERMINATE
        assert interruptions.wish() == interruptions.TERMINATE


BETWEEN = "stopped between steps of the run; the same command goes on with it.\n"
SCRIPT = """
import os, signal, sys, time
from bellmax.experiments import errors, interruptions

def main(argv):
    number = getattr(signal, argv[1])
    if argv[2] == "outside":
        os.kill(os.getpid(), number)
    with interruptions.during_a_stage():
        os.kill(os.getpid(), number)
        if argv[2] == "twice":
            os.kill(os.getpid(), number)
        if interruptions.wish():
            raise interruptions.Stopped("stopped at step 3", interruptions.wish())

errors.run(main, resumes="answers" not in sys.argv)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "stderr"),
    [
        (("SIGTERM", "once"), 0, "stopped at step 3\n"),
        (("SIGINT", "once"), 130, "stopped at step 3\n"),
        (("SIGTERM", "twice"), -signal.SIGTERM, ""),
        (("SIGTERM", "answers"), 143, "stopped at step 3\n"),
        (("SIGINT", "answers"), 130, "stopped at step 3\n"),
        (
            ("SIGTERM", "outside"),
            0,
            BETWEEN,
        ),
    ],
)
def test_exit_codes(arguments, code, stderr):
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, stderr)
