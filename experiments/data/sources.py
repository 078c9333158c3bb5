"""Where a run's preference pairs come from: a config's data group becomes encoded pairs."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from bellmax.experiments import config as config_lib
from bellmax.experiments import errors
from bellmax.experiments.data import builders, embedded, pipeline, records, tokenizers


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The keys of `config.data`.

    Attributes:
      source: gold_bench or cyclic_bench (embedded), jsonl (one file) or hh (a folder of the
        published layout).
      path: the file or folder; empty for a bench.
      allow_empty_completions: leave out pairs with an empty completion, and count them, instead of
        refusing the file.
      cache_dir: where TFDS prepares files; empty for a folder inside the workdir.
      tokenizer: byte, characters:LETTERS or the path of a tokenizer.json; empty for the
        checkpoint's, or for byte without a checkpoint.
      end_token: of a tokenizer.json, the token that ends a completion; empty for the one that the
        checkpoint says, or else the first that the file has of `tokenizers.END_TOKENS`.
      max_length: most tokens of prompt and completion together.
      bucket_lengths: lengths to which rows are padded.
      held_out_fraction: share of prompts that are held out (jsonl).
      num_pairs: pairs to learn from (benches).
      num_held_out_pairs: pairs to evaluate on (benches).
      num_evaluation_prompts: prompts of the exact evaluation (benches).
      quality_weight: weight of the gold reward in the preference (cyclic_bench).
    """

    source: str
    path: str
    allow_empty_completions: bool
    cache_dir: str
    tokenizer: str
    end_token: str
    max_length: int
    bucket_lengths: tuple[int, ...]
    held_out_fraction: float
    num_pairs: int
    num_held_out_pairs: int
    num_evaluation_prompts: int
    quality_weight: float


class PreferenceData(NamedTuple):
    """Encoded pairs of a run.

    Attributes:
      train: pairs to learn from.
      held_out: pairs to evaluate on.
      tokenizer: what encoded them.
      embedded: the bench behind them, or None.
    """

    train: pipeline.EncodedPairs
    held_out: pipeline.EncodedPairs
    tokenizer: tokenizers.Tokenizer
    embedded: embedded.EmbeddedData | None


Pairs = tuple[Sequence[records.PreferenceRecord], Sequence[records.PreferenceRecord]]


def _read_jsonl(config: DataConfig, seed: int, cache_dir: pathlib.Path) -> Pairs:
    loaded = builders.load_jsonl(
        config.path, cache_dir=cache_dir, allow_empty=config.allow_empty_completions
    )
    if not 0 < config.held_out_fraction < 1:
        raise errors.UserError(
            f"config.data.held_out_fraction must be above 0 and below 1, got "
            f"{config.held_out_fraction}."
        )
    return records.split_by_prompt(loaded, fraction=config.held_out_fraction, seed=seed)


def _read_hh(config: DataConfig, seed: int, cache_dir: pathlib.Path) -> Pairs:
    del seed  # The published splits are what everybody evaluates on.
    return tuple(
        builders.load_hh(
            config.path,
            split=split,
            cache_dir=cache_dir,
            allow_empty=config.allow_empty_completions,
        )
        for split in ("train", "test")
    )  # type: ignore[return-value]


BENCHES = ("gold_bench", "cyclic_bench")
FILE_SOURCES = {"jsonl": _read_jsonl, "hh": _read_hh}


def load(
    config: DataConfig, tokenizer: tokenizers.Tokenizer, *, seed: int, workdir: pathlib.Path
) -> PreferenceData:
    """Reads, splits and encodes the pairs that a config asks for.

    Args:
      config: the data group.
      tokenizer: what encodes them.
      seed: decides embedded data and the held-out split.
      workdir: folder of the run.

    Returns:
      The data.

    Raises:
      UserError: the source is unknown, a path is missing, a row is malformed, or a size does not
        fit.
    """
    bench = None
    # The library names its argument, which is the key of the config.
    with config_lib.user_errors("config.data"):
        if config.source in BENCHES:
            bench = embedded.make(
                seed,
                num_pairs=config.num_pairs,
                num_held_out_pairs=config.num_held_out_pairs,
                num_evaluation_prompts=config.num_evaluation_prompts,
                quality_weight=config.quality_weight if config.source == "cyclic_bench" else None,
            )
            if config.tokenizer != f"characters:{embedded.LETTERS}":
                raise errors.UserError(
                    f"config.data.tokenizer must be 'characters:{embedded.LETTERS}' for the "
                    f"{config.source}, whose exact evaluation lists every completion; got "
                    f"{config.tokenizer!r}."
                )
            pairs: Pairs = (bench.train, bench.held_out)
        elif config.source in FILE_SOURCES:
            if not config.path:
                raise errors.UserError(
                    f"config.data.path is empty: give the file or folder with "
                    f"--config.data.path=... (source {config.source!r})."
                )
            cache_dir = pathlib.Path(config.cache_dir or workdir / "data")
            pairs = FILE_SOURCES[config.source](config, seed, cache_dir)
        else:
            options = [*BENCHES, *FILE_SOURCES]
            raise errors.UserError(
                f"config.data.source must be one of {', '.join(options)}, got {config.source!r}."
                f"{config_lib.did_you_mean(config.source, options)}"
            )
        train, held_out = (
            pipeline.tokenise(rows, tokenizer, max_length=config.max_length) for rows in pairs
        )
        for part, encoded in (("train on", train), ("hold out", held_out)):
            if not len(encoded):
                raise errors.UserError(
                    f"config.data: no pair is left to {part}: all were empty or identical."
                )
            pipeline.BatchPlan(encoded.lengths, batch_size=1, bucket_lengths=config.bucket_lengths)
    return PreferenceData(train, held_out, tokenizer, bench)


def describe(name: str, encoded: pipeline.EncodedPairs, bucket_lengths: Sequence[int]) -> str:
    """Returns a line about encoded pairs: how many, what was cut and left out.

    Args:
      name: what the pairs are for.
      encoded: the pairs.
      bucket_lengths: lengths to which rows are padded.

    Returns:
      The line.
    """
    s = encoded.statistics
    plan = pipeline.BatchPlan(encoded.lengths, batch_size=1, bucket_lengths=bucket_lengths)
    buckets = ", ".join(f"{count} of {length}" for length, count in plan.bucket_counts.items())
    return (
        f"{name}: {s.num_pairs} pairs of {s.num_records} rows ({s.num_empty} empty and "
        f"{s.num_identical + s.num_identical_after_cut} identical left out); {s.num_prompts_cut} "
        f"prompts and {s.share_of_completions_cut:.1%} of completions cut; tokens a row: {buckets}"
    )
