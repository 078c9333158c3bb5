"""Several processes as one run: how they join, stop at the same step, and notice that one is lost.

JAX gives every process its part of one program. What it leaves open is what happens when they no
longer agree: a wish to stop reaches one of them, or one of them is gone and the others would wait.
"""

import ctypes
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import Float

from bellmax.experiments import errors, interruptions

# By how many processes each scheduler started, and not merely that there is one: a single process
# in an allocation of many has nobody to join.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_HOSTS = "TPU_WORKER_HOSTNAMES"
# Seconds, by the environment variable that changes them. JAX's own 100 s of silence are long for
# accelerators that idle; its 300 s for the last process to come are not.
_HEARTBEAT = ("BELLMAX_HEARTBEAT_SECONDS", 60)
_INITIALISATION = ("BELLMAX_INITIALISATION_SECONDS", 300)
# How backends and JAX's service say that another process does not answer.
_LOST = re.compile(
    r"gloo|nccl|connection|heartbeat|barrier|coordination|socket closed|UNAVAILABLE|ABORTED|"
    r"DEADLINE_EXCEEDED|CANCELLED",
    re.IGNORECASE,
)
# How long a wish to stop may stay unheard; a scheduler gives at least half a minute.
_SECONDS_BETWEEN_AGREEMENTS = 1.0
# An error that all processes meet is told by all of them before the first is missed.
_SECONDS_BEFORE_LEAVING = 2.0


class _Membership:
    """What this process needs when it ends."""

    def __init__(self):
        self.saved: Callable[[], str] = lambda: "this one had not come to a stage yet"
        # Kept here, or the handler would be freed under JAX.
        self.abort_handler: Any = None
        self.is_leaving = False


_membership = _Membership()


def _seconds(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise errors.UserError(f"{variable} must be a whole number of seconds, got {text!r}.")
    return int(text)


def _expected(requested: bool) -> bool:
    environment = os.environ
    if requested or environment.get("BELLMAX_DISTRIBUTED") == "1":
        return True
    counts = [environment.get(variable, "") for variable in _COUNTS]
    return (
        "JAX_COORDINATOR_ADDRESS" in environment
        or any(count.isdecimal() and int(count) > 1 for count in counts)
        or "," in environment.get(_HOSTS, "")
    )


def initialize_distributed(requested: bool = False) -> None:
    """Joins the other processes where somebody says that there are some; else does nothing.

    Said by the flag (`requested`) or the environment, the same for every binary:

    - Slurm's `srun` and Open MPI's `mpirun` with more than one process, or a TPU slice of several
      hosts on Kubernetes: JAX finds out the rest by itself;
    - `JAX_COORDINATOR_ADDRESS=HOST:PORT` of process 0, with `JAX_NUM_PROCESSES` and
      `JAX_PROCESS_ID` (from 0), anywhere. JAX itself reads the first of them only, so without the
      other two it must find a cluster of the kinds above;
    - the flag, or `BELLMAX_DISTRIBUTED=1`, on the hosts of a Cloud TPU slice, which nothing in the
      environment tells from a single host, and wherever else JAX knows the scheduler.

    From then on a process that stops answering for `BELLMAX_HEARTBEAT_SECONDS` (60) ends the
    others, as does one that has not come after `BELLMAX_INITIALISATION_SECONDS` (300); and signals
    wait for the next step (`interruptions`).

    Args:
      requested: whether the flag `--distributed` was given.

    Raises:
      UserError: the variables contradict each other, or do not say enough.
    """
    environment = os.environ
    numbers: dict[str, int] = {}
    for variable in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        text = environment.get(variable)
        if text is not None and not text.isdecimal():
            raise errors.UserError(f"{variable} must be a whole number, got {text!r}.")
        if text is not None:
            numbers[variable] = int(text)
    if not _expected(requested):
        return
    heartbeat, initialisation = _seconds(*_HEARTBEAT), _seconds(*_INITIALISATION)
    _report_aborts()
    try:
        jax.distributed.initialize(
            num_processes=numbers.get("JAX_NUM_PROCESSES"),
            process_id=numbers.get("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=heartbeat,
            initialization_timeout=initialisation,
        )
    except ValueError as error:
        raise errors.UserError(
            f"The processes cannot be joined: {error} Set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start with --distributed under a scheduler "
            "that JAX knows."
        ) from error
    errors.leave_with(_after_error)
    interruptions.wait_for_steps()


def _report_aborts() -> None:
    """Says what has happened when JAX's service ends this process, as it does by abort().

    It does so in a thread of its own, at once where process 0 is gone and after the heartbeat's
    time elsewhere, while Python waits for a device; only a handler of the signal still runs.
    """
    if os.name != "posix":
        return

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number):
        del number
        leave(1, "JAX says above how it knows")

    _membership.abort_handler = handler
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def remember_saved(describe: Callable[[], str]) -> None:
    """Keeps how to find out what is on disk, for the last words of this process.

    Args:
      describe: returns for example `the last checkpoint is of step 20 of hinge`.
    """
    _membership.saved = describe


def is_lost(error: BaseException) -> bool:
    """Returns whether an error says that another process does not answer.

    Args:
      error: what a computation of several processes raised.
    """
    is_ours = isinstance(error, jax.errors.JaxRuntimeError | TimeoutError | ConnectionError)
    return is_ours and _LOST.search(str(error)) is not None


def leave(code: int, reason: str | None = None) -> NoReturn:
    """Ends this process at once, since an ordinary exit would wait for the others.

    Args:
      code: the exit code, not 0.
      reason: how it is known that another process is lost, told in one paragraph; None where this
        process has told its own error.
    """
    first, _membership.is_leaving = not _membership.is_leaving, True
    if reason is not None and first:
        why = " ".join(reason.split())[:300]
        paragraph = (
            f"error: another process of this run has stopped or cannot be reached ({why}); "
            f"{_membership.saved()}. Start all processes again with the same command, and the run "
            "goes on from there."
        )
        print(paragraph, file=sys.stderr)
    elif first:
        time.sleep(_SECONDS_BEFORE_LEAVING)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _after_error(code: int, error: Exception | None) -> NoReturn:
    if error is not None and is_lost(error):
        leave(code, str(error))
    if error is not None:
        traceback.print_exception(error)
    leave(code)


class Agreement:
    """When all processes stop: at the same step, or the save of one would wait for ever.

    They tell each other their wishes about once a second, however long a step takes: also how
    long theirs took is told, and the slowest decides for all after how many steps they meet again.
    """

    def __init__(self):
        self._steps = self._left = 1
        self._since = time.monotonic()

    def after_step(self) -> int:
        """Returns whether all stop now, and why: one of the numbers of `interruptions`.

        To be called by every process after every step. A single process asks itself.
        """
        if jax.process_count() == 1:
            return interruptions.wish()
        self._left -= 1
        if self._left > 0:
            return interruptions.NO_WISH
        seconds = (time.monotonic() - self._since) / self._steps
        told = _gather(np.array([interruptions.wish(), seconds], np.float32))
        self._since = time.monotonic()
        # At most twice as many as before, since the first steps tell little.
        fitting = _SECONDS_BETWEEN_AGREEMENTS / max(float(told[:, 1].max()), 1e-6)
        self._steps = self._left = int(np.clip(fitting, 1, 2 * self._steps))
        return int(told[:, 0].max())


def _gather(mine: Float[np.ndarray, " n"]) -> Float[np.ndarray, "processes n"]:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(mine))
