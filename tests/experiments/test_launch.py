"""Templates are shell that parses, tell every process who it is, and really join two of them."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from bellmax.experiments import errors, launch, mesh, metrics
from bellmax.experiments.launch import xmanager_launcher

FOLDER = pathlib.Path(launch.__path__[0])
LOCAL = FOLDER / "local_processes.sh"
TEMPLATES = sorted(
    path
    for path in FOLDER.iterdir()
    if path.suffix in (".sh", ".sbatch", ".py") and path.stem[0] != "_"
)
SHELL = [path for path in TEMPLATES if path.suffix != ".py"]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_templates_parse_and_explain_themselves_without_arguments(path):
    parsed = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (parsed.returncode, parsed.stderr) == (0, "")
    # What a template asks of its environment is there, but no program to run.
    environment = os.environ | {"TPU_NAME": "none", "ZONE": "none", "WORKDIR": "/nowhere"}
    done = subprocess.run(
        ["bash", path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_template_has_a_page_that_says_what_was_run_and_what_was_not(path):
    page = path.with_suffix("").with_name(path.stem.removesuffix("_launcher") + ".md").read_text()
    assert path.name in page
    assert "**Run:**" in page
    assert "**Not run:**" in page
    assert path.name in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize(
    "arguments", [["0", "1"], ["two", "1"], ["2", "many"], ["2", "0"]], ids=" ".join
)
def test_local_processes_refuses_what_are_no_numbers(arguments):
    done = subprocess.run(
        ["bash", LOCAL, *arguments, "align"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "must be a whole number" in done.stderr


def test_only_the_pod_and_slurm_ask_the_scheduler():
    asks = {
        path.name for path in SHELL if re.search(r"^[^#\n]*--distributed", path.read_text(), re.M)
    }
    assert asks == {"tpu_pod.sh", "slurm.sbatch"}


def test_a_slurm_task_sees_all_gpus_of_its_node():
    # JAX takes the one of the task's local number.
    text = (FOLDER / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options
    assert options["signal"].startswith("TERM@")


def test_xmanager_jobs_know_who_they_are():
    environments = [xmanager_launcher.job_environment(rank, 2, "first:1234") for rank in range(2)]
    assert environments[1] == {
        "JAX_COORDINATOR_ADDRESS": "first:1234",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    assert environments[0] == environments[1] | {"JAX_PROCESS_ID": "0"}
    arguments = xmanager_launcher.job_arguments("/shared", ["--config=gpo", "--config.seed=1"])
    assert arguments == ["--config=gpo", "--config.seed=1", "--workdir=/shared", "--distributed"]


@pytest.mark.parametrize("binary", ["align", "reason"])
@pytest.mark.parametrize("flag", [[], ["--distributed"]], ids=["", "distributed"])
def test_the_flag_asks_for_the_other_processes(run_main, monkeypatch, tmp_path, binary, flag):
    def asked(requested):
        raise errors.UserError(f"asked: {requested}")

    monkeypatch.setattr(mesh, "initialize_distributed", asked)
    config = {"align": "gpo", "reason": "nash_md"}[binary]
    arguments = [f"--config={config}", f"--workdir={tmp_path}", *flag]
    code, stderr = run_main(*arguments, binary=binary)
    assert code == 2
    assert f"asked: {bool(flag)}" in stderr


@pytest.fixture
def local(tmp_path, tiny_overrides):
    """Starts two processes of two devices; none of them outlives the test."""
    started = []

    def start(**train):
        arguments = ["align", "--config=gpo:hinge", f"--workdir={tmp_path / 'run'}"]
        process = subprocess.Popen(
            ["bash", LOCAL, "2", "2", *arguments, *tiny_overrides(train=train)],
            env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
            | {"PYTHON": sys.executable},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_local_processes_train_as_one_run(local, tmp_path):
    process = local(mesh_fsdp=2)
    _, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr[-3000:]
    assert "devices: 4 cpu" in stderr
    assert "processes: 2" in stderr
    assert (tmp_path / "run" / "processes" / "1.log").exists()
    rows = metrics.read_metrics(tmp_path / "run")
    assert max(row["step"] for row in rows if row["stage"] == "hinge") == 2


@pytest.mark.slow
def test_a_bad_flag_ends_both_processes_with_exit_code_2(local):
    process = local(mesh_fsdp=3)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "does not fit 4 devices" in stderr


@pytest.mark.slow
def test_sigterm_reaches_both_processes(local, tmp_path):
    process = local(num_steps=100_000, checkpoint_every=100_000)
    begun = time.monotonic()
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < begun + 300:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-3000:]
    assert "goes on from there" in stderr
