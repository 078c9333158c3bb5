"""Tiny runs of `align` and `reason`, and ways to run a command line here or in a process."""

import functools
import itertools
import json
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tokenizers
from absl import flags

from bellmax.agents import networks
from bellmax.configs.align import base
from bellmax.configs.reason import base as reason_base
from bellmax.experiments import align_config, metrics, reason_config
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


class Processes:
    """One command line in processes of its own, each in a folder that goes on where it stopped."""

    def __init__(self, folder: pathlib.Path, *command: str):
        self.folder = folder
        self._command = [sys.executable, "-P", "-m", *command]
        # Whatever one process compiled, the next one reads.
        self._environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(self, name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self._command, f"--workdir={self.folder / name}"],
            env=self._environment,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, name: str) -> None:
        process = self.start(name)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr[-3000:]

    def wait_for_a_new_checkpoint(self, process: subprocess.Popen, name: str) -> None:
        before = self._saved(name)
        while not self._saved(name) - before and process.poll() is None:
            time.sleep(0.005)

    def kill_at_a_random_moment(self, name: str) -> str:
        """Kills a process after it saved; returns when, for a message."""
        process = self.start(name)
        self.wait_for_a_new_checkpoint(process, name)
        delay = random.Random().uniform(0.0, 1.5)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return f"killed after {delay} s"

    def _saved(self, name: str) -> set[pathlib.Path]:
        return {
            path for path in (self.folder / name / "checkpoints").glob("*/*") if path.name.isdigit()
        }

    def last_checkpoints(self, name: str) -> dict[str, tuple[int, dict]]:
        """Each stage's last step and what it saved, as arrays."""
        stages = {}
        for folder in sorted((self.folder / name / "checkpoints").iterdir()):
            last = max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
            with ocp.StandardCheckpointer() as reader:
                state = jax.device_get(reader.restore(last / "state"))
            stages[folder.name] = (int(last.name), state)
        return stages

    def assert_same(self, name: str, other: str, message: str) -> None:
        """Two folders hold the same bits and the same metrics."""
        found, expected = self.last_checkpoints(name), self.last_checkpoints(other)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, two, err_msg=message)
        assert self.rows(name) == self.rows(other), message

    def rows(self, name: str) -> list[dict]:
        """The metrics, less the time they took."""
        return [
            {key: value for key, value in row.items() if key != "wall_time_s"}
            for row in metrics.read_metrics(self.folder / name)
        ]


@pytest.fixture
def processes(tmp_path):
    """Returns `Processes` of `python -m MODULE ARGUMENTS` in the test's folder."""

    def make(module: str, *arguments: str) -> Processes:
        return Processes(tmp_path, module, *arguments)

    return make


@pytest.fixture
def stop_at_call(monkeypatch):
    """Makes the NUMBER-th call of a method or function, and no other, a keyboard interrupt."""

    def arrange(owner: Any, name: str, number: int) -> None:
        original, calls = getattr(owner, name), itertools.count(1)

        def call(*args, **kwargs):
            if next(calls) == number:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    return arrange


@pytest.fixture(scope="session")
def save_checkpoint():
    """Writes a small model in Hugging Face's layout into a folder; returns its parameters."""

    def save(folder, *, vocab_size=300, names=("<|endoftext|>", "<|im_end|>")):
        """Random weights of more tokens, or fewer, than the bytes that its tokenizer has."""
        config = networks.TransformerConfig(
            vocab_size=vocab_size,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            embed_dim=8,
            mlp_dim=8,
            attention_bias=True,
        )
        params = jax.jit(functools.partial(networks.init, config))(jax.random.key(3))
        networks.save_pretrained(folder, config, params)
        letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        tokenizer = tokenizers.Tokenizer(
            tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, [])
        )
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens(list(names))
        tokenizer.save(str(folder / "tokenizer.json"))
        return params

    return save
