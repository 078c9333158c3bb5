"""The lists that packaging reads agree with the folders, and the installed package is whole."""

import configparser
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import bellmax

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOPS = ("agents", "configs", "envs", "experiments", "losses")


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed(setup_cfg):
    listed = {line for line in setup_cfg["options"]["packages"].split() if not line.startswith("#")}
    found = {"bellmax"} | {
        ".".join(("bellmax", *init.parent.relative_to(ROOT).parts))
        for top in TOPS
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert listed == found


def test_every_folder_with_code_is_a_package():
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} lacks __init__.py"


def test_every_requirement_has_a_bound(setup_cfg):
    required = setup_cfg["options"]["install_requires"].split("\n")
    for extra in setup_cfg["options.extras_require"].values():
        required += extra.split("\n")
    for line in filter(None, required):
        assert re.search(r"[>=]=", line), f"{line} has no lower bound"


def test_extras_have_names_that_every_pip_finds(setup_cfg):
    for extra in setup_cfg["options.extras_require"]:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", extra)


def test_links_for_type_checkers_point_at_the_folders():
    for top in TOPS:
        link = ROOT / "src" / "bellmax" / top
        if not link.is_symlink():
            pytest.skip("this checkout was made without symbolic links")
        assert link.resolve() == ROOT / top


def test_version_is_a_literal_and_the_root_imports_nothing():
    assert re.fullmatch(r"\d+\.\d+\.\d+", bellmax.__version__)
    code = "import sys, bellmax; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def _modules():
    names = []
    for top in TOPS:
        package = importlib.import_module(f"bellmax.{top}")
        names += [
            module.name
            for module in pkgutil.walk_packages(package.__path__, prefix=f"bellmax.{top}.")
            if not module.name.endswith("__main__")
        ]
    return names


def test_every_module_imports_and_lists_what_exists():
    for name in _modules():
        module = importlib.import_module(name)
        assert module.__doc__, f"{name} has no docstring"
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{name}.__all__ names {public}, which is not there"


def test_no_tensorflow_at_run_time():
    code = "\n".join(f"import {name}" for name in _modules())
    # A dependency may look for PyTorch where it is installed; TensorFlow nobody may load.
    code += "\nimport sys; print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_wheel_holds_every_package(tmp_path, setup_cfg):
    """Built from a copy: a wheel built in place would reuse an old `build/`."""
    import shutil
    import zipfile

    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignore)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    assert "bellmax/py.typed" in files
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            assert f"bellmax/{path.relative_to(ROOT)}" in files
