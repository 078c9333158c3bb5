"""Arrays flow up three floors and nothing flows down: the imports, read from the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLOORS = {
    "losses": {"losses"},
    "envs": {"envs"},
    "agents": {"agents", "losses"},
    "configs": {"configs"},
    "experiments": {"experiments", "agents", "losses", "envs", "configs"},
}
# What the two lowest floors may import beside the standard library.
FOUNDATION = {"jax", "jaxlib", "numpy", "chex", "jaxtyping", "bellmax"}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == "bellmax":
                yield from (f"bellmax.{alias.name}" for alias in node.names)
            else:
                yield module


FILES = [path for top in FLOORS for path in (ROOT / top).rglob("*.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_up_the_floors(path):
    floor = path.relative_to(ROOT).parts[0]
    for name in imported_modules(path):
        parts = name.split(".")
        assert parts[0] not in FLOORS, f"{path} imports {name}: write bellmax.{name}"
        if parts[0] == "bellmax" and len(parts) > 1:
            assert parts[1] in FLOORS[floor] | {"__version__"}, f"{path} imports {name}"
        if floor in ("losses", "envs"):
            assert parts[0] in FOUNDATION | sys.stdlib_module_names, f"{path} imports {name}"


def test_peers_are_imported_inside_functions_only():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                names.append(getattr(node, "module", None) or "")
                peers = {name.split(".")[0] for name in names} & {"torch", "trl", "rlax"}
                assert not peers, f"{path} imports {peers} for everybody"


def test_agents_read_no_files_and_log_nothing():
    for path in (ROOT / "agents").rglob("*.py"):
        banned = {"absl", "logging", "pathlib", "os", "rich", "matplotlib", "orbax"}
        used = {name.split(".")[0] for name in imported_modules(path)}
        # Foreign checkpoints are files by nature: the one room of the floor that reads them.
        if path.name != "checkpoints.py":
            assert not used & banned, f"{path} imports {used & banned}"


def test_one_copy_of_every_module():
    code = (
        "import bellmax.experiments, bellmax.agents, sys;"
        f"print([name for name in {sorted(FLOORS)!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_files_stay_about_one_idea():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 450, f"{path} wants to be two files"
