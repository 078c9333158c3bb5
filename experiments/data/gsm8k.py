r"""GSM8K in its published layout, as a TFDS data set: questions, worked answers and their numbers.

Each line has `question` and `answer`; the answer ends in `#### number`, which `verifiers` reads:

    rows = gsm8k.load("train.jsonl", cache_dir="data")
    verifiers.is_correct(completion, rows[0].number)

References:
  Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021.
  https://arxiv.org/abs/2110.14168 (data: github.com/openai/grade-school-math, MIT licence)
"""

import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from bellmax.experiments import errors
from bellmax.experiments.data import builders, records, verifiers

MARKER = "####"
# <<48/2=24>>: what the published solutions hand to a calculator.
_ANNOTATION = re.compile(r"<<[^<>]*>>")


class Gsm8kRecord(NamedTuple):
    """A question and its published solution, as the file has them.

    Attributes:
      question: the problem.
      answer: the steps with their calculator annotations, and `#### number`.
      number: that number, without commas or currency.
    """

    question: str
    answer: str
    number: str

    @property
    def steps(self) -> str:
        """The solution before its number, without calculator annotations: words for a policy."""
        return _ANNOTATION.sub("", self.answer[: self.answer.rindex(MARKER)]).strip()


def iterate_rows(path: str | pathlib.Path) -> Iterator[Gsm8kRecord]:
    """Yields the rows of a file in GSM8K's layout.

    Args:
      path: a .jsonl or .jsonl.gz file; other fields are ignored.

    Yields:
      Rows in the file's order.

    Raises:
      UserError: a row is malformed, lacks a field, has a field that is no string or is empty, or an
        answer that does not end in #### and a number; the message names file and line.
    """
    for line, text in records.iterate_lines(path):
        place = f"{path}, line {line}"
        row = records.parse_object(text, place)
        question = records.text_field(row, "question", place)
        answer = records.text_field(row, "answer", place)
        if not question.strip():
            raise errors.UserError(f"{place}: the question is empty.")
        _, marker, ending = answer.rpartition(MARKER)
        number = verifiers.extract_number(ending)
        if not marker or number is None:
            raise errors.UserError(
                f"{place}: the answer must end in '{MARKER}' and a number, got {answer[-40:]!r}."
            )
        yield Gsm8kRecord(question, answer, format(number, "f"))


def read(path: str | pathlib.Path) -> list[Gsm8kRecord]:
    """Reads a whole file of `iterate_rows`.

    Args:
      path: a .jsonl or .jsonl.gz file.

    Returns:
      Rows in the file's order, at least one.

    Raises:
      UserError: as `iterate_rows`, or the file has no rows.
    """
    rows = list(iterate_rows(path))
    if not rows:
        raise errors.UserError(f"{path} has no rows.")
    return rows


class Gsm8k(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Questions of one file in GSM8K's layout with their solutions and numbers; split `train`.

    Args:
      path: the .jsonl or .jsonl.gz file.
      **kwargs: those of TFDS; `data_dir` above all.
    """

    VERSION = tfds.core.Version("1.0.0")
    # As in `builders`: no tags or checksums to look for, and none that need TensorFlow.
    pkg_dir_path = tfds.core.Path(__file__).parent
    code_path: Any = None

    def __init__(self, *, path: str | pathlib.Path, **kwargs: Any):
        self.path = path
        kwargs.setdefault("file_format", tfds.core.FileFormat.ARRAY_RECORD)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text() for name in Gsm8kRecord._fields}
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        # Read as a whole: a malformed row is found before anything is written.
        return {"train": self._generate_examples(read(self.path))}

    def _generate_examples(
        self, rows: Sequence[Gsm8kRecord]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        return ((number, row._asdict()) for number, row in enumerate(rows))


def load(path: str | pathlib.Path, *, cache_dir: str | pathlib.Path) -> list[Gsm8kRecord]:
    """Returns the rows of a file, prepared at most once.

    Args:
      path: the .jsonl or .jsonl.gz file: the published train or test file, or a part of one.
      cache_dir: where prepared sets are kept, each under a hash of what it was made from: a changed
        file is prepared anew. An interrupted preparation leaves nothing that is read later.

    Returns:
      The rows, in the order of the file.

    Raises:
      UserError: the file is missing or has a malformed row, which the message names, or the folder
        cannot be written.
    """
    path = pathlib.Path(path)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    folder = pathlib.Path(cache_dir).expanduser() / f"{Gsm8k.name}-{digest}"
    builder = builders.prepared(lambda: Gsm8k(path=path, data_dir=folder), folder, what=path)
    with builders.quiet():
        source = builder.as_data_source("train")
        found = source.__getitems__(list(range(len(source))))
    return [Gsm8kRecord(*(row[name].decode() for name in Gsm8kRecord._fields)) for row in found]
