"""Configs of binaries: `--config=NAME[:VARIANT]`, overrides, and the dataclass they become."""

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import json
import os
import pathlib
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import ml_collections
from absl import flags
from ml_collections import config_flags

from bellmax.experiments import errors, mesh

T = TypeVar("T")


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Returns the option that a misspelt name most resembles, or None if none is near.

    Args:
      name: what was written.
      options: what could have been meant.

    Returns:
      An option or None.
    """
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns a sentence that suggests the nearest option, with a space before it, or nothing.

    Args:
      name: what was written.
      options: what could have been meant.

    Returns:
      The sentence, or an empty string.
    """
    option = nearest(name, options)
    return f" Did you mean {option!r}?" if option else ""


def unknown(key: str, value: str, options: Iterable[str]) -> errors.UserError:
    """Returns the error of a name that there is not, with the nearest that there is.

    Args:
      key: the key, such as `config.loss.names`.
      value: what it holds.
      options: what there is.

    Returns:
      The error, to be raised.
    """
    known = list(options)
    return errors.UserError(
        f"{key} holds {value!r}, which is unknown.{did_you_mean(value, known)} "
        f"There are: {', '.join(known)}."
    )


@contextlib.contextmanager
def user_errors(group: str) -> Iterator[None]:
    """Turns the library's errors about arguments into the user's about a group of keys.

    Args:
      group: the group, such as `config.model`; the library's message names the key.

    Yields:
      Nothing.

    Raises:
      UserError: a ValueError or TypeError came from inside.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise errors.UserError(f"{group}: {error}") from error


def config_names(binary: str) -> list[str]:
    """Returns the names of a binary's configs.

    Args:
      binary: the binary's name, a package of `bellmax.configs`.

    Returns:
      Names that `--config` takes, sorted.
    """
    package = importlib.import_module(f"bellmax.configs.{binary}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base")


def load(binary: str, specification: str) -> ml_collections.ConfigDict:
    """Loads a config by name or path.

    Args:
      binary: the binary's name.
      specification: NAME[:VARIANT] of `bellmax.configs.BINARY`, or PATH[:VARIANT] of a Python file
        that has `get_config(variant=None)`.

    Returns:
      The config, unlocked.

    Raises:
      UserError: there is no such config or variant; the nearest name is suggested.
    """
    name, _, variant = specification.partition(":")
    is_path = name.endswith(".py") or os.sep in name
    if is_path:
        module = _load_path(name)
    elif name in config_names(binary):
        module = importlib.import_module(f"bellmax.configs.{binary}.{name}")
    else:
        options = config_names(binary)
        raise errors.UserError(
            f"--config={specification} names no config of {binary}.{did_you_mean(name, options)} "
            f"There are: {', '.join(options)}; or give a path to a .py file."
        )
    try:
        return module.get_config(variant) if variant else module.get_config()
    except (ValueError, KeyError) as error:
        message = str(error)
        raise errors.UserError(
            f"--config={specification}: {message}.{did_you_mean(variant, _words(message, variant))}"
        ) from error
    except TypeError as error:
        raise errors.UserError(f"--config={specification}: {error}.") from error


def _words(message: str, but: str) -> list[str]:
    return [w for w in message.replace(",", " ").replace("'", " ").split() if w != but]


def _load_path(name: str) -> types.ModuleType:
    path = pathlib.Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise errors.UserError(f"--config={name}: there is no Python file of this path.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise errors.UserError(f"--config={name}: the file defines no get_config(variant=None).")
    return module


class _Parser(flags.ArgumentParser):
    """Turns the text of `--config` into a locked config; overrides must name its keys."""

    syntactic_help = "NAME[:VARIANT] of a config, or PATH[:VARIANT] of a Python file"

    def __init__(self, binary: str):
        self._binary = binary

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        """Loads the config and checks the names of overrides."""
        config = load(self._binary, argument)
        known = list(_flatten(config.to_dict()))
        for text in sys.argv[1:]:
            if not text.startswith(("--config.", "-config.")):
                continue
            key = text.split("=", 1)[0].split(".", 1)[1]
            # One element of a tuple is named by its place: loss.betas[0].
            if re.sub(r"\[\d+\]$", "", key) not in known:
                group = key.split(".", 1)[0] + "."
                siblings = [name for name in known if name.startswith(group)] or known
                raise errors.UserError(
                    f"--config.{key} is no key of the config {argument}.{did_you_mean(key, known)} "
                    f"There are: {', '.join(siblings)}."
                )
        return config.lock()

    def flag_type(self) -> str:
        """Returns what the help text calls this type."""
        return "config"


class Simulation(typing.NamedTuple):
    """What a dry run is asked for.

    Attributes:
      devices: how many to simulate; 0 where a topology says so.
      topology: a TPU slice to compile for, such as `v5e:4x4`, or "" for hosts.
      model_size: a key of `model_sizes.SIZES` in the place of the config's network, or "".
      rows: rows of a batch over all devices; 0 for the config's.
      length: tokens of a row; 0 for the config's.
    """

    devices: int
    topology: str
    model_size: str
    rows: int
    length: int


class RunFlags:
    """`--config` and `--workdir`, both required, and the overrides `--config.KEY=VALUE`.

    Beside them `--distributed`, and for binaries that can say what a step would need `--simulate_*`
    and `--model_size`. Made once, when the binary's module is imported.

    Args:
      binary: the binary's name.
      simulates: whether it has a dry run.
    """

    def __init__(self, binary: str, *, simulates: bool = False):
        self._binary = binary
        self._config = config_flags.DEFINE_config_file(
            "config", None, f"NAME[:VARIANT] or PATH[:VARIANT]; names: {config_names(binary)}."
        )
        # ml_collections reads paths alone; the flag's own parser reads names as well.
        flags.FLAGS["config"].parser = _Parser(binary)
        self._workdir = flags.DEFINE_string(
            "workdir", None, "Folder for checkpoints, metrics, figures and the final table."
        )
        self._distributed = flags.DEFINE_bool(
            "distributed", False, "Join the other processes that a scheduler has started."
        )
        self._simulates = simulates
        if simulates:
            _define_simulation()

    def join_processes(self) -> None:
        """Joins the other processes where `--distributed` or the environment says so.

        Raises:
          UserError: they cannot be found.
        """
        mesh.initialize_distributed(self._distributed.value)

    def simulation(self) -> Simulation | None:
        """Returns the dry run that the flags ask for, or None where they ask for a run.

        Raises:
          UserError: the flags contradict each other.
        """
        if not self._simulates:
            return None
        values: list[Any] = [flags.FLAGS[name].value for name in _SIMULATION]
        asked = Simulation(*values)
        if not asked.devices and not asked.topology:
            given = [name for name, value in zip(_SIMULATION, values, strict=True) if value]
            if given:
                raise errors.UserError(
                    f"--{given[0]} belongs to a dry run: give --simulate_devices=N as well, or "
                    "--simulate_topology."
                )
            return None
        if asked.devices and asked.topology:
            raise errors.UserError(
                "--simulate_devices and --simulate_topology exclude each other, got "
                f"{asked.devices} and {asked.topology!r}."
            )
        return asked

    def read_config(self) -> ml_collections.ConfigDict:
        """Returns the config, overrides applied.

        Raises:
          UserError: the flag is missing.
        """
        if self._config.value is None:
            raise errors.UserError(
                f"--config is required: one of {', '.join(config_names(self._binary))}, with "
                "or without :VARIANT, or a path to a .py file."
            )
        return self._config.value

    def read(self) -> tuple[ml_collections.ConfigDict, pathlib.Path]:
        """Returns the config, overrides applied, and the folder of the run.

        Raises:
          UserError: one of the two flags is missing.
        """
        config = self.read_config()
        if not self._workdir.value:
            raise errors.UserError("--workdir is required: the folder that the run writes to.")
        return config, pathlib.Path(self._workdir.value)


# In the order of `Simulation`.
_SIMULATION = (
    "simulate_devices",
    "simulate_topology",
    "model_size",
    "simulate_rows",
    "simulate_length",
)


def _define_simulation() -> None:
    flags.DEFINE_integer(
        "simulate_devices",
        0,
        "Dry run on so many simulated devices: prints what lies where and what a step needs, "
        "allocates and trains nothing.",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "simulate_topology", "", "Dry run for a TPU slice such as v5e:4x4; needs libtpu, no TPU."
    )
    flags.DEFINE_string(
        "model_size", "", "Dry run of a published shape: 0.5b, 1.5b, 7b, 13b or 70b."
    )
    flags.DEFINE_integer(
        "simulate_rows", 0, "Rows of the dry run's batch, over all devices.", lower_bound=0
    )
    flags.DEFINE_integer("simulate_length", 0, "Tokens of its rows.", lower_bound=0)


def to_dataclass(
    cls: type[T], config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "config"
) -> T:
    """Returns a config as a frozen dataclass, every key checked.

    Args:
      cls: a dataclass without defaults; its fields may be dataclasses again.
      config: a ConfigDict or mapping of its fields.
      prefix: what the keys are called in errors.

    Returns:
      The dataclass; lists become tuples, and integers floats where the field is a float.

    Raises:
      UserError: a key is unknown or missing, or a value has the wrong type.
    """
    fields = hints = typing.get_type_hints(cls)
    for key in config:
        if key not in fields:
            raise errors.UserError(f"{prefix}.{key} is no key.{did_you_mean(key, fields)}")
    for key in fields:
        if key not in config:
            raise errors.UserError(f"{prefix}.{key} is missing.{did_you_mean(key, config)}")
    return cls(**{key: _convert(hints[key], config[key], f"{prefix}.{key}") for key in fields})


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping | ml_collections.ConfigDict):
            raise errors.UserError(f"{name} must be a group of keys, got {value!r}.")
        return to_dataclass(hint, value, name)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise errors.UserError(f"{name} must be a tuple, got {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], item, name) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        kind = getattr(hint, "__name__", hint)
        raise errors.UserError(f"{name} must be of type {kind}, got {value!r}.")
    return value


def save_run_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes the config into the folder of a run, or checks that it is the one there.

    A folder belongs to one config once training has begun in it (`checkpoints` is there): resuming
    under another would mix two runs. A run that its data or config stopped before leaves no claim.

    Args:
      workdir: the folder; made if it is missing.
      config: the config of this run.

    Raises:
      UserError: the folder holds another run, or cannot be made.
    """
    path = workdir / "config.json"
    mine = json.loads(json.dumps(config.to_dict()))
    if path.exists() and (workdir / "checkpoints").exists():
        try:
            theirs = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise errors.UserError(f"{path} is no config of a run: {error}.") from error
        old, new = _flatten(theirs), _flatten(mine)
        differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        if differing:
            shown = ", ".join(
                f"{k} ({old.get(k)!r} there, {new.get(k)!r} now)" for k in differing[:8]
            )
            raise errors.UserError(
                f"{workdir} holds another run, with other values of {shown}. Give another "
                "--workdir, or the same config to resume."
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(f"--workdir={workdir} cannot be made: {error}.") from error
    # Every process of a run writes the same file; none may move another's away.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(mine, indent=2) + "\n")
    partial.replace(path)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
