r"""GSM8K: questions in words, completions checked by their last number; from a checkpoint or not.

Papers: Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021 (the questions),
https://arxiv.org/abs/2110.14168; Ahmadian et al., Back to Basics, 2024 (RLOO),
https://arxiv.org/abs/2402.14740
Command (a checkpoint as it is; a small network of bytes from scratch; another method; completions
of other policies, read from a file as `text_completions` says):
  python -m bellmax.experiments.reason --config=gsm8k --workdir=runs/gsm8k \
    --config.data.path=train.jsonl --config.data.held_out_path=test.jsonl \
    --config.model.checkpoint=Qwen2.5-0.5B --config.model.compute_dtype=bfloat16 \
    --config.model.remat=true --config.model.chunk_size=128 --config.train.warm_start_steps=0 \
    --config.optimizer.learning_rate=1e-6
  python -m bellmax.experiments.reason --config=gsm8k --workdir=runs/gsm8k_bytes \
    --config.data.path=train.jsonl --config.data.held_out_path=test.jsonl
  python -m bellmax.experiments.reason --config=gsm8k:grpo --workdir=runs/gsm8k_grpo ...
  python -m bellmax.experiments.reason --config=gsm8k:agro --workdir=runs/gsm8k_stored ... \
    --config.data.completions=model_solutions.jsonl --config.loss.staleness=0 \
    --config.train.group_size=4
Expected: not measured here: needs an accelerator. The small network answers nothing right; it is
there to try a run before one.
Cost: a checkpoint's parameters, the reference, what all methods begin with and Adam's averages are
20 bytes a parameter and the gradient 4 more, over the axis fsdp; an evaluation holds `num_held_out
* evaluation_samples` completions at once. The small network on 2 shared cores: 3.5 s a step of the
warm start, 2.5 s one of 16 completions in rows of 416 tokens.
"""

import ml_collections

from bellmax.configs.reason import tasks


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns every key that may be overridden.

    Args:
      variant: a method of `task_methods.METHODS` that learns from rewards; None for rloo.
    """
    config = tasks.of_methods((variant or "rloo",)).to_dict()
    config["data"] = {
        "source": "gsm8k",
        "path": "",  # A .jsonl[.gz] file in GSM8K's layout, to learn from.
        "held_out_path": "",  # Likewise, to evaluate on; its questions are never learnt from.
        "cache_dir": "",  # Where TFDS prepares files; empty: inside the workdir.
        "tokenizer": "",  # byte, characters:LETTERS, a tokenizer.json; empty: the checkpoint's.
        "end_token": "",  # Of a tokenizer.json; empty: the first well-known one that it has.
        "prompt": "Question: {question}\nAnswer:",  # No token is added; write any out here.
        "solution": " {steps}\n#### {number}",  # What a warm start imitates.
        "completions": "",  # Of another policy, to learn from (staleness 0); empty: sampled.
        "max_prompt_tokens": 320,  # Longer prompts are left out.
        "max_new_tokens": 320,  # Of a completion, the end token included.
        "num_held_out": 64,  # Questions of an evaluation.
    }
    config["train"] |= {
        "warm_start_steps": 300,  # 0: the checkpoint as it is.
        "warm_start_learning_rate": 1e-3,
        "warm_start_batch_size": 16,
        "num_steps": 200,
        "batch_size": 8,
        "evaluation_samples": 4,
    }
    return ml_collections.ConfigDict(config)
