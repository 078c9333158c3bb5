"""TFDS builders of preference pairs, and the cache of what they prepared. TensorFlow is not needed.

Preparing a file once turns it into array records, which give any row without reading the others.
Malformed rows are found by the readers of `records`, before anything is written.
"""

import contextlib
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import tensorflow_datasets as tfds
from absl import logging

from bellmax.experiments import errors
from bellmax.experiments.data import records

HH_SPLITS = ("train", "test")
# Rows that one read of the array records asks for when all of them are wanted.
_CHUNK = 1024


class _PreferenceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What both builders share: three texts a row, in the order of the file.

    Args:
      allow_empty: let pairs with an empty completion through instead of refusing them.
      **kwargs: those of TFDS; `data_dir` above all.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Where TFDS looks for citations and tags; without it, in a registry of its own data sets.
    pkg_dir_path = tfds.core.Path(__file__).parent
    # Where TFDS looks for checksums of downloads, of which there are none; finding it out by itself
    # needs a package that TFDS does not install.
    code_path: Any = None

    def __init__(self, *, allow_empty: bool = False, **kwargs: Any):
        self.allow_empty = allow_empty
        # TFDS's default, tfrecord, cannot be written or read without TensorFlow.
        kwargs.setdefault("file_format", tfds.core.FileFormat.ARRAY_RECORD)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text() for name in records.PreferenceRecord._fields}
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _generate_examples(
        self, rows: Sequence[records.PreferenceRecord]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        return ((number, row._asdict()) for number, row in enumerate(rows))


class PreferenceJsonl(_PreferenceBuilder):
    """Preference pairs of one JSONL file with `prompt`, `chosen` and `rejected`; split `train`.

    Args:
      path: the .jsonl or .jsonl.gz file.
      **kwargs: those of `_PreferenceBuilder`.
    """

    def __init__(self, *, path: str | pathlib.Path, **kwargs: Any):
        self.path = path
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        rows = records.read_jsonl(self.path, allow_empty=self.allow_empty)
        return {"train": self._generate_examples(rows)}


class AnthropicHH(_PreferenceBuilder):
    """Anthropic's HH-RLHF in its published layout, from TFDS's manual directory.

    Args:
      **kwargs: those of `_PreferenceBuilder`.

    References:
      Bai et al., Training a Helpful and Harmless Assistant with RLHF, 2022.
      https://arxiv.org/abs/2204.05862
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put train.jsonl.gz, test.jsonl.gz or both, of one of the folders of "
        "https://github.com/anthropics/hh-rlhf, into the manual directory."
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {
            split: self._generate_examples(records.read_hh(path, allow_empty=self.allow_empty))
            for split, path in _hh_files(dl_manager.manual_dir).items()
        }


def _hh_files(directory: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    paths = {split: pathlib.Path(directory) / f"{split}.jsonl.gz" for split in HH_SPLITS}
    found = {split: path for split, path in paths.items() if path.is_file()}
    if not found:
        raise errors.UserError(
            f"{directory} is no folder with train.jsonl.gz or test.jsonl.gz, the layout in which "
            "HH-RLHF is published."
        )
    return found


class PreparedRecords(Sequence[records.PreferenceRecord]):
    """Prepared pairs, read when asked for.

    Args:
      source: TFDS's random-access source of one split.
    """

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> records.PreferenceRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[records.PreferenceRecord]: ...

    def __getitem__(
        self, index: int | slice
    ) -> records.PreferenceRecord | list[records.PreferenceRecord]:
        """Returns a pair, or those of a slice.

        Raises:
          IndexError: there is no such pair.
        """
        if isinstance(index, slice):
            rows = range(len(self))[index]
            return [_as_record(row) for row in self._source.__getitems__(list(rows))]
        return _as_record(self._source[range(len(self))[index]])

    def __iter__(self) -> Iterator[records.PreferenceRecord]:
        """Iterates over all pairs, many to a read."""
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]


def _as_record(row: dict[str, bytes]) -> records.PreferenceRecord:
    return records.PreferenceRecord(
        *(row[name].decode() for name in records.PreferenceRecord._fields)
    )


def load_jsonl(
    path: str | pathlib.Path, *, cache_dir: str | pathlib.Path, allow_empty: bool = False
) -> PreparedRecords:
    """Returns the pairs of a prompt/chosen/rejected file, prepared at most once.

    Args:
      path: the .jsonl or .jsonl.gz file.
      cache_dir: where prepared sets are kept, each under a hash of what it was made from: a changed
        file is prepared anew. An interrupted preparation leaves nothing that is read later.
      allow_empty: let pairs with an empty completion through instead of refusing them.

    Returns:
      The pairs, in the order of the file.

    Raises:
      UserError: the file is missing or has a malformed row, which the message names.
    """
    path = pathlib.Path(path)
    return _prepare(
        PreferenceJsonl, [path], cache_dir, split="train", allow_empty=allow_empty, path=path
    )


def load_hh(
    directory: str | pathlib.Path,
    *,
    split: str,
    cache_dir: str | pathlib.Path,
    allow_empty: bool = False,
) -> PreparedRecords:
    """Returns the pairs of a split of HH-RLHF in its published layout, prepared at most once.

    Args:
      directory: holds train.jsonl.gz, test.jsonl.gz or both.
      split: "train" or "test".
      cache_dir: see `load_jsonl`.
      allow_empty: let pairs with an empty completion through instead of refusing them; some are
        published.

    Returns:
      The pairs, in the order of the file.

    Raises:
      UserError: the split is not there, or a file has a malformed row, which the message names.
    """
    files = _hh_files(directory)
    if split not in files:
        raise errors.UserError(
            f"{directory} has no {split}.jsonl.gz; it has: "
            f"{', '.join(path.name for path in files.values())}."
        )
    return _prepare(
        AnthropicHH,
        list(files.values()),
        cache_dir,
        split=split,
        manual_dir=pathlib.Path(directory),
        allow_empty=allow_empty,
    )


def prepared(
    make_builder: Callable[[], Any],
    folder: pathlib.Path,
    *,
    what: Any,
    manual_dir: pathlib.Path | None = None,
) -> Any:
    """Returns a TFDS builder whose records are there, made now if they were not.

    TFDS writes beside the final place and renames: what is there is whole, and an interrupted
    preparation leaves nothing that is read later.

    Args:
      make_builder: makes the builder, with `folder` as its `data_dir`.
      folder: where the records are kept.
      what: is prepared, for the error.
      manual_dir: where TFDS looks for files of the user's, or None.

    Returns:
      The builder.

    Raises:
      UserError: a row is malformed, or the folder cannot be written.
    """
    config = tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=manual_dir)
    with quiet():
        builder = make_builder()
        if builder.data_path.exists():
            return builder
        try:
            builder.download_and_prepare(download_dir=folder / "downloads", download_config=config)
        except OSError as error:
            # Another process of this run may have finished first; its files are the same.
            if not builder.data_path.exists():
                reason = error.strerror or error
                raise errors.UserError(
                    f"{what} cannot be prepared in {folder}: {reason}."
                ) from None
            builder = make_builder()
        return builder


def _prepare(
    builder_class: type[_PreferenceBuilder],
    files: Sequence[pathlib.Path],
    cache_dir: str | pathlib.Path,
    *,
    split: str,
    manual_dir: pathlib.Path | None = None,
    **kwargs: Any,
) -> PreparedRecords:
    digest = _digest(files, kwargs["allow_empty"])
    kwargs["data_dir"] = pathlib.Path(cache_dir).expanduser() / f"{builder_class.name}-{digest}"
    builder = prepared(
        lambda: builder_class(**kwargs), kwargs["data_dir"], what=files[0], manual_dir=manual_dir
    )
    with quiet():
        return PreparedRecords(builder.as_data_source(split))


def _digest(files: Sequence[pathlib.Path], allow_empty: bool) -> str:
    # The option is part of it: rows that one setting lets through, the other must refuse.
    digest = hashlib.sha256(f"allow_empty={allow_empty}".encode())
    for path in files:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise errors.UserError(f"{path} cannot be read: {error.strerror or error}.") from None
        digest.update(f"\n{path.name} {content}".encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS, which prints sizes it does not know and warns of metadata it does not need."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
