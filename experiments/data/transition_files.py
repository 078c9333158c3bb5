"""Tables of transitions, and the files that hold them: .npz, D4RL's HDF5, ExoRL's episodes.

This is the only place where a file becomes a table; whatever is wrong with one is said here, with
the file's name.
"""

import contextlib
import hashlib
import importlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bellmax.experiments import errors

_D4RL_REQUIRED = ("observations", "actions")
_D4RL_OPTIONAL = ("next_observations", "rewards", "terminals", "timeouts")
_EXORL_REQUIRED = ("observation", "action")
_EXORL_OPTIONAL = ("reward", "discount")


class TransitionTable(NamedTuple):
    """Transitions of any behaviour, on the host.

    Attributes:
      observations: where a transition began. [N, D].
      actions: what was done; of size 0 where there is nothing to choose. [N, A].
      next_observations: where it led, never the start of another episode. [N, D].
      rewards: of the transition; None where nobody noted any. [N].
      terminated: whether the transition ended the episode by itself; None for never. [N].
    """

    observations: Float[np.ndarray, "N D"]
    actions: Float[np.ndarray, "N A"]
    next_observations: Float[np.ndarray, "N D"]
    rewards: Float[np.ndarray, " N"] | None = None
    terminated: Bool[np.ndarray, " N"] | None = None


def check(table: TransitionTable, place: str = "The transitions") -> TransitionTable:
    """Returns a table that is sure to be sound: float32, finite, of one number of rows.

    Args:
      table: arrays of any real dtype; rewards and terminated may be [N, 1].
      place: where they come from, for messages.

    Returns:
      The table, C-contiguous; arrays that were so already are not copied.

    Raises:
      UserError: a field is no array of numbers of its shape, has another number of rows than the
        observations, or none, or a number that is not finite in float32, or `terminated` is
        something else than 0 and 1. The message names field and row.
    """
    fields = {name: value for name, value in table._asdict().items() if value is not None}
    return TransitionTable(**_same_columns(_parse(fields, place), place))


def _same_columns(arrays: dict[str, np.ndarray], place: str) -> dict[str, np.ndarray]:
    here, there = arrays["observations"].shape, arrays["next_observations"].shape
    if here != there:
        raise errors.UserError(
            f"{place}: next_observations must have the shape of observations, {here}, got {there}."
        )
    return arrays


def _parse(values: dict[str, Any], place: str) -> dict[str, np.ndarray]:
    """Turns each field into the array it must be; the first one decides how many rows there are."""
    arrays = {name: _PARSERS[name](value, name, place) for name, value in values.items()}
    first, *others = arrays
    shape = arrays[first].shape
    if 0 in shape:
        raise errors.UserError(
            f"{place}: {first} must have at least one row and one column, got shape {shape}."
        )
    for name in others:
        if len(arrays[name]) != shape[0]:
            raise errors.UserError(
                f"{place}: {name} must have as many rows as {first}, {shape[0]}, got "
                f"{len(arrays[name])}."
            )
    return arrays


def _numbers(value: Any, name: str, place: str, *, num_axes: int) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise errors.UserError(f"{place}: {name} must hold numbers, got the dtype {array.dtype}.")
    if num_axes == 1 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != num_axes:
        expected = "[rows, columns]" if num_axes == 2 else "[rows]"
        raise errors.UserError(
            f"{place}: {name} must have the shape {expected}, got {list(array.shape)}."
        )
    with np.errstate(over="ignore"):  # What overflows is found below.
        numbers = np.ascontiguousarray(array, np.float32)
    _refuse(~np.isfinite(numbers), array, f"{place}: {name} must be finite in float32")
    return numbers


def _refuse(bad: np.ndarray, values: np.ndarray, complaint: str) -> None:
    if bad.any():
        worst = tuple(np.argwhere(bad)[0].tolist())
        where = " ".join(
            f"{axis} {place}" for axis, place in zip(("row", "column"), worst, strict=False)
        )
        raise errors.UserError(f"{complaint}, got {values[worst]} in {where}.")


def _rows(value: Any, name: str, place: str) -> np.ndarray:
    return _numbers(value, name, place, num_axes=2)


def _scalars(value: Any, name: str, place: str) -> np.ndarray:
    return _numbers(value, name, place, num_axes=1)


def _flags(value: Any, name: str, place: str) -> np.ndarray:
    numbers = _numbers(value, name, place, num_axes=1)
    _refuse((numbers != 0) & (numbers != 1), numbers, f"{place}: {name} must be 0 or 1")
    return numbers == 1


def _discounts(value: Any, name: str, place: str) -> np.ndarray:
    numbers = _numbers(value, name, place, num_axes=1)
    _refuse((numbers < 0) | (numbers > 1), numbers, f"{place}: {name} must be from 0 to 1")
    return numbers


_PARSERS: dict[str, Callable[[Any, str, str], np.ndarray]] = {
    "observations": _rows,
    "actions": _rows,
    "next_observations": _rows,
    "rewards": _scalars,
    "terminated": _flags,
    "terminals": _flags,
    "timeouts": _flags,
    "observation": _rows,
    "action": _rows,
    "reward": _scalars,
    "discount": _discounts,
}


def read(path: str | pathlib.Path) -> TransitionTable:
    """Reads the transitions of a file or of a folder of episodes.

    A .npz, .hdf5 or .h5 file has D4RL's keys `observations` [N, D] and `actions` [N, A], and may
    have `next_observations`, `rewards`, `terminals` and `timeouts`. Without `next_observations` a
    row leads to the one after it; rows that end an episode by `terminals` or `timeouts`, of which
    there must be one, lead nowhere that is known and are left out, as is the last row. No
    transition that is left has terminated then.

    A folder has ExoRL's episodes, .npz files in the order of their names, each with `observation`
    [T + 1, D] and `action` [T + 1, A], and `reward` and `discount` [T + 1] in all or in none. Row t
    holds the observation after the transition from t - 1 to t beside the action, reward and
    discount of that transition; of row 0 only the observation counts. A discount of 0 means that
    the transition terminated.

    Keys besides these are not looked at.

    Args:
      path: the file or folder.

    Returns:
      The table.

    Raises:
      UserError: there is no such file, it has another format, lacks a key, or holds something that
        `check` refuses; or h5py is missing for HDF5. The message names the file.

    References:
      Fu et al., D4RL: Datasets for Deep Data-Driven Reinforcement Learning, 2020.
      https://arxiv.org/abs/2004.07219
      Yarats et al., Don't Change the Algorithm, Change the Data: Exploratory Data for Offline
      Reinforcement Learning, 2022. https://arxiv.org/abs/2201.13425
    """
    path = _existing(path)
    return _read_episodes(path) if path.is_dir() else _read_d4rl(path)


def content_key(path: str | pathlib.Path) -> str:
    """Returns a hash of the names and the contents of what `read` reads.

    Args:
      path: the file or folder.

    Returns:
      64 hexadecimal digits; another file, or the same one changed, has others.

    Raises:
      UserError: there is no such file or folder, it cannot be read, or the folder has no episodes.
    """
    path = _existing(path)
    # A folder of one episode is not read as that file alone would be.
    digest = hashlib.sha256(b"folder" if path.is_dir() else b"file")
    for file in _episode_files(path) if path.is_dir() else [path]:
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise errors.UserError(f"{file} cannot be read: {error.strerror or error}.") from None
        digest.update(f"\n{file.name} {content}".encode())
    return digest.hexdigest()


def _existing(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise errors.UserError(f"There is no file or folder {path}.")
    return path


def _read_d4rl(path: pathlib.Path) -> TransitionTable:
    if path.suffix not in _FORMATS:
        raise errors.UserError(
            f"{path} must be a file that ends in {', '.join(_FORMATS)}, or a folder of episodes; "
            f"got the ending {path.suffix!r}."
        )
    place = str(path)
    found = _FORMATS[path.suffix](path, _D4RL_REQUIRED, _D4RL_OPTIONAL)
    arrays = _parse(found, place)
    if "next_observations" not in arrays:
        arrays = _consecutive(arrays, place)
    _same_columns(arrays, place)
    return TransitionTable(
        arrays["observations"],
        arrays["actions"],
        arrays["next_observations"],
        arrays.get("rewards"),
        arrays.get("terminals"),
    )


def _consecutive(arrays: dict[str, np.ndarray], place: str) -> dict[str, np.ndarray]:
    flags = [arrays[name] for name in ("terminals", "timeouts") if name in arrays]
    if not flags:
        raise errors.UserError(
            f"{place} has no next_observations, and neither terminals nor timeouts to tell where "
            "episodes end: the transitions are not known. Add timeouts, 1 at the last row of each "
            "episode."
        )
    kept = np.flatnonzero(~np.logical_or.reduce(flags)[:-1])
    if not kept.size:
        raise errors.UserError(
            f"{place}: no transition is left: without next_observations, rows that end an episode "
            f"and the last row are left out, which are all {len(flags[0])} of them."
        )
    followers = arrays["observations"][kept + 1]
    return {name: array[kept] for name, array in arrays.items()} | {"next_observations": followers}


def _episode_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = sorted(file for file in folder.glob("*.npz") if not file.name.startswith("."))
    if not files:
        raise errors.UserError(
            f"{folder} has no .npz files of episodes; ExoRL's are in a folder named buffer."
        )
    return files


def _read_episodes(folder: pathlib.Path) -> TransitionTable:
    files = _episode_files(folder)
    episodes = []
    for file in files:
        episodes.append(_read_episode(file))
        _refuse_another_kind(file, episodes[-1], files[0], episodes[0])

    def joined(name: str, rows: slice) -> np.ndarray:
        return np.concatenate([episode[name][rows] for episode in episodes])

    after = slice(1, None)
    return TransitionTable(
        observations=joined("observation", slice(-1)),
        actions=joined("action", after),
        next_observations=joined("observation", after),
        rewards=joined("reward", after) if "reward" in episodes[0] else None,
        terminated=joined("discount", after) == 0 if "discount" in episodes[0] else None,
    )


def _read_episode(file: pathlib.Path) -> dict[str, np.ndarray]:
    found = _read_npz(file, _EXORL_REQUIRED, _EXORL_OPTIONAL)
    for name in found.keys() - {"observation"}:
        if np.ndim(found[name]):
            # Nothing led to row 0: whatever it holds is nobody's error.
            found[name][:1] = 0
    episode = _parse(found, str(file))
    if len(episode["observation"]) < 2:
        raise errors.UserError(f"{file}: an episode must have at least 2 rows, got 1.")
    return episode


def _refuse_another_kind(
    file: pathlib.Path,
    episode: dict[str, np.ndarray],
    first_file: pathlib.Path,
    first: dict[str, np.ndarray],
) -> None:
    if episode.keys() != first.keys():
        raise errors.UserError(
            f"{file} has {_listed(episode)}, but {first_file.name} has {_listed(first)}: all "
            "episodes must have the same."
        )
    for name in _EXORL_REQUIRED:
        here, there = episode[name].shape[1], first[name].shape[1]
        if here != there:
            raise errors.UserError(
                f"{file}: {name} must have as many columns as in {first_file.name}, {there}, got "
                f"{here}."
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _wanted(
    place: pathlib.Path, names: Iterable[str], required: Sequence[str], optional: Sequence[str]
) -> list[str]:
    names = set(names)
    for name in required:
        if name not in names:
            hint = ""
            if name.startswith("action"):
                hint = " Where there is nothing to choose, it has the shape [rows, 0]."
            raise errors.UserError(
                f"{place}: the key {name!r} is missing; the keys are: {_listed(names)}.{hint}"
            )
    return [name for name in (*required, *optional) if name in names]


def _read_npz(
    path: pathlib.Path, required: Sequence[str], optional: Sequence[str]
) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is a single array")
        with archive:
            return {name: archive[name] for name in _wanted(path, archive, required, optional)}
    # NumPy and zipfile raise all of these on files that are none, cut off or damaged.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise errors.UserError(f"{path} cannot be read as .npz: {error}.") from None


def _read_hdf5(
    path: pathlib.Path, required: Sequence[str], optional: Sequence[str]
) -> dict[str, np.ndarray]:
    try:
        # Imported here: few runs read HDF5.
        h5py: Any = importlib.import_module("h5py")
    except ImportError:
        raise errors.UserError(f"{path} needs h5py: pip install 'bellmax[horizon]'.") from None
    try:
        with h5py.File(path, "r") as file:
            return {
                name: np.asarray(file[name]) for name in _wanted(path, file, required, optional)
            }
    except (OSError, RuntimeError, ValueError) as error:
        raise errors.UserError(f"{path} cannot be read as HDF5: {error}.") from None


_FORMATS = {".npz": _read_npz, ".hdf5": _read_hdf5, ".h5": _read_hdf5}


def write_npz(path: str | pathlib.Path, table: TransitionTable) -> None:
    """Writes a table as a .npz file with D4RL's keys, which `read` reads.

    The file is there once it is whole; equal tables give equal bytes.

    Args:
      path: a file that ends in .npz, in a folder that exists; it is replaced.
      table: what `check` accepts.

    Raises:
      UserError: the path ends in something else or cannot be written, or `check` refuses the table.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix != ".npz":
        raise errors.UserError(f"{path} must end in .npz, got the ending {path.suffix!r}.")
    fields = {name: value for name, value in check(table)._asdict().items() if value is not None}
    if "terminated" in fields:
        fields["terminals"] = fields.pop("terminated")
    with _replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **fields)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise errors.UserError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
