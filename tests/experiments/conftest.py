"""Tiny runs of `align` and `reason`, and a way to run a command line inside the test's process."""

import json
import pathlib
import runpy
import sys

import pytest
from absl import flags

from bellmax.configs.align import base
from bellmax.configs.reason import base as reason_base
from bellmax.experiments import align_config, reason_config
from bellmax.experiments import config as config_lib

TINY = {
    "model": {
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "embed_dim": 8,
        "mlp_dim": 16,
    },
    "optimizer": {"warmup_steps": 1},
    "data": {"num_pairs": 64, "num_held_out_pairs": 32, "num_evaluation_prompts": 2},
    "train": {
        "warm_start_steps": 2,
        "num_steps": 2,
        "batch_size": 8,
        "log_every": 1,
        "evaluate_every": 2,
        "checkpoint_every": 2,
    },
}


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.fixture(scope="session")
def tiny_overrides():
    """The flags that make `--config=gpo:NAME` tiny; keyword arguments are further groups."""

    def make(**groups):
        merged = {key: {**TINY.get(key, {}), **value} for key, value in {**TINY, **groups}.items()}
        return [f"--config.{key}={value}" for key, value in _flat(merged)]

    return make


@pytest.fixture(scope="session")
def tiny_config():
    """Returns an `AlignConfig` of a tiny run; keyword arguments are groups to change."""

    def make(**groups):
        config = base.get_config()
        config.update(TINY)
        config.update(groups)
        return config_lib.to_dataclass(align_config.AlignConfig, config)

    return make


@pytest.fixture(scope="session")
def tiny_reason_config():
    """Returns a `ReasonConfig` of a tiny run; keyword arguments are groups to change."""

    def make(**groups):
        config = reason_base.get_config()
        config.update(TINY)
        config.update({"model": {"judge_rank": 2}, "train": {"judge_steps": 2}})
        config.update(groups)
        return config_lib.to_dataclass(reason_config.ReasonConfig, config)

    return make


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> pathlib.Path:
    """A file of 40 pairs over the letters a to e, 20 prompts twice each."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "prompt": "abcde"[i % 5] + "abcde"[i // 5 % 4] + "c",
            "chosen": "ab" * (1 + i % 3),
            "rejected": "edc"[: 1 + i % 3],
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_main(monkeypatch, capfd):
    """Runs `python -m bellmax.experiments.BINARY ARGUMENTS` here: exit code and standard error."""

    def run(*arguments: str, binary: str = "align") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [binary, *map(str, arguments)])
        before = set(flags.FLAGS)
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as stopped:
                runpy.run_module(f"bellmax.experiments.{binary}", run_name="__main__")
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
        code = stopped.value.code
        return (0 if code is None else int(code)), capfd.readouterr().err

    return run
