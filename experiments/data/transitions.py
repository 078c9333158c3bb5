"""Transitions prepared once by TFDS, and their statistics. TensorFlow is not needed.

A record holds thousands of rows: read back row by row, a table takes a hundred times as long.
Tables and the files that they are read from are those of `transition_files`, at hand here too.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from bellmax.experiments import errors
from bellmax.experiments.data import builders
from bellmax.experiments.data.transition_files import (
    TransitionTable,
    check,
    content_key,
    read,
    write_npz,
)

__all__ = [
    "TransitionChunks",
    "TransitionTable",
    "check",
    "content_key",
    "load",
    "load_files",
    "read",
    "standardisation",
    "write_npz",
]

# Rows of a record, and its bytes at most, where rows are long.
_CHUNK_ROWS = 4096
_CHUNK_BYTES = 2**24
# Rows that are widened to float64 at a time.
_STATISTICS_ROWS = 2**16


class TransitionChunks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Transitions in the order of a table, many to an example; split `train`.

    An example has the fields of `TransitionTable`, each [rows, ...]; those that are None or have no
    columns are left out.

    Args:
      table: what `check` returned.
      **kwargs: those of TFDS; `data_dir` above all.
    """

    # Part of the folder's name: a new one where `read` makes other tables of the same files.
    VERSION = tfds.core.Version("1.0.0")
    # See `builders`: without these two, TFDS looks in a registry of its own data sets.
    pkg_dir_path = tfds.core.Path(__file__).parent
    code_path: Any = None

    def __init__(self, *, table: TransitionTable, **kwargs: Any):
        self._fields: dict[str, np.ndarray] = {
            name: value
            for name, value in table._asdict().items()
            if value is not None and value.size
        }
        # TFDS's default, tfrecord, cannot be written or read without TensorFlow.
        kwargs.setdefault("file_format", tfds.core.FileFormat.ARRAY_RECORD)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            # As bytes: numbers one by one take ten times as long to write.
            name: tfds.features.Tensor(
                shape=(None, *value.shape[1:]),
                dtype=value.dtype,
                encoding=tfds.features.Encoding.BYTES,
            )
            for name, value in self._fields.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        num_rows = len(self._fields["observations"])
        row_bytes = sum(value[:1].nbytes for value in self._fields.values())
        size = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))
        for number, start in enumerate(range(0, num_rows, size)):
            rows = slice(start, start + size)
            yield number, {name: value[rows] for name, value in self._fields.items()}


def load(
    source_key: str, make_table: Callable[[], TransitionTable], cache_dir: str | pathlib.Path
) -> TransitionTable:
    """Returns a table that is made at most once and kept in a folder.

    Args:
      source_key: what the table depends on, all of it: under the same key the table that was kept
        is returned. `content_key` gives one for files.
      make_table: makes the table, where it is not kept yet.
      cache_dir: where tables are kept, each under a hash of its key. An interrupted preparation
        leaves nothing that is read later.

    Returns:
      The table, bit for bit as `check` returned it.

    Raises:
      UserError: `check` refuses the table, the folder cannot be written, or what it keeps is
        damaged.
    """
    digest = hashlib.sha256(source_key.encode()).hexdigest()[:16]
    folder = pathlib.Path(cache_dir).expanduser() / f"{TransitionChunks.name}-{digest}"
    kept = folder / TransitionChunks.name / str(TransitionChunks.VERSION)
    if not kept.exists():
        table = check(make_table())
        builders.prepared(
            lambda: TransitionChunks(table=table, data_dir=folder), folder, what="The transitions"
        )
    return _read_back(kept)


def load_files(path: str | pathlib.Path, cache_dir: str | pathlib.Path) -> TransitionTable:
    """Returns what `read` returns, from the cache where the files have not changed since.

    Args:
      path: a file, or a folder of episodes.
      cache_dir: see `load`.

    Returns:
      The table.

    Raises:
      UserError: as `read` and `load`.
    """
    return load(content_key(path), lambda: read(path), cache_dir)


def _read_back(kept: pathlib.Path) -> TransitionTable:
    try:
        with builders.quiet():
            builder: Any = tfds.builder_from_directory(kept)
            source = builder.as_data_source("train")
            chunks = [source[number] for number in range(len(source))]
    except Exception as error:  # TFDS and array_record raise whatever they meet.
        raise errors.UserError(
            f"{kept} cannot be read ({error}); delete it and it is prepared anew."
        ) from None
    # Popped: a large table is not held twice.
    fields = {name: np.concatenate([c.pop(name) for c in chunks]) for name in list(chunks[0])}
    fields.setdefault("actions", np.zeros((len(fields["observations"]), 0), np.float32))
    return TransitionTable(**fields)


def standardisation(
    table: TransitionTable,
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Returns mean and scale of each feature, over observations and next observations together.

    (x - mean) / scale has mean 0 and standard deviation 1 over the 2 N states. A feature that
    varies by no more than float32 tells apart has scale 1.

    Args:
      table: what `check` returned.

    Returns:
      The mean and the standard deviation, divided by 2 N and not 2 N - 1, float32. [D] each.
    """
    halves = (table.observations, table.next_observations)
    parts = [
        half[start : start + _STATISTICS_ROWS]
        for half in halves
        for start in range(0, len(half), _STATISTICS_ROWS)
    ]
    count = sum(map(len, parts))
    mean = np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0) / count
    squares = [np.square(part - mean).sum(axis=0) for part in parts]
    deviation = np.sqrt(np.sum(squares, axis=0) / count)
    largest = np.max([np.abs(part).max(axis=0) for part in parts], axis=0)
    float32 = np.finfo(np.float32)
    varies = deviation > np.maximum(float32.eps * largest, float32.tiny)
    return mean.astype(np.float32), np.where(varies, deviation, 1.0).astype(np.float32)
