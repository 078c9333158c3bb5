"""Tiny files in GSM8K's layout, and runs on them."""

import json

from bellmax.configs.reason import gsm8k
from bellmax.experiments import config as config_lib
from bellmax.experiments import text_config


def rows(first, count):
    return [
        {
            "question": f"{i} and {i}?",
            "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}",
        }
        for i in range(first, first + count)
    ]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def make_config(folder, names=("rloo",), **groups):
    config = gsm8k.get_config(names[0])
    config.update(
        {
            "model": {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 4},
            "optimizer": {"warmup_steps": 1},
            "data": {
                "path": write(folder / "train.jsonl", rows(1, 6)),
                "held_out_path": write(folder / "test.jsonl", rows(11, 4)),
                "cache_dir": str(folder / "cache"),
                "prompt": "{question}=",
                "max_prompt_tokens": 12,
                "max_new_tokens": 14,
                "num_held_out": 3,
            },
            "loss": {
                "names": names,
                "betas": (0.01,) * len(names),
                "learning_rates": (0.0,) * len(names),
                "k": 2,
            },
            "train": {
                "warm_start_steps": 2,
                "warm_start_batch_size": 4,
                "num_steps": 2,
                "batch_size": 4,
                "group_size": 2,
                "evaluation_samples": 2,
                "log_every": 1,
                "evaluate_every": 2,
                "checkpoint_every": 1,
            },
        }
    )
    config.update({"model": {"embed_dim": 8, "mlp_dim": 8}})
    config.update(groups)
    return config_lib.to_dataclass(text_config.TextConfig, config)
