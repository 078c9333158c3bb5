r"""Generalised preference optimisation on the helpful pairs of Anthropic's HH-RLHF.

The file has one JSON object a line with `prompt`, `chosen` and `rejected`; one prompt in ten is
held out.

Papers: Tang et al., Generalized Preference Optimization, 2024, https://arxiv.org/abs/2402.05749
  Bai et al., Training a Helpful and Harmless Assistant, 2022, https://arxiv.org/abs/2204.05862
Command (bytes from scratch; a checkpoint in Hugging Face's layout, as it is, with its tokenizer):
  python -m bellmax.experiments.align --config=gpo_hh --workdir=runs/gpo_hh \
      --config.data.path=helpful-base-test.jsonl.gz
  python -m bellmax.experiments.align --config=gpo_hh --workdir=runs/gpo_hh_qwen \
      --config.data.path=helpful-base.jsonl.gz --config.model.checkpoint=Qwen2.5-0.5B \
      --config.model.compute_dtype=bfloat16 --config.model.remat=true \
      --config.model.chunk_size=128 --config.train.warm_start_steps=0 \
      --config.optimizer.learning_rate=1e-6
Cost: 16 minutes on 2 CPU cores that were busy with other work (9 minutes of CPU time).
Expected, with the 2,354 pairs of the test split (2,126 to learn from, 222 held out): held-out
accuracy 0.541, standard error 0.033, from seed 0 alone. That is chance within two standard errors:
a byte-level network of 0.8 million parameters that has read two thousand completions (2.15 nats a
byte) has not learnt what people prefer. The config shows that the path from a file to a policy
works; for a figure that means something give it a pretrained policy and the whole data set, which
was not done here: it needs an accelerator.
"""

import ml_collections

from bellmax.configs.align import base, gpo


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: the loss to train; None for the logistic one (DPO).

    Raises:
      ValueError: no loss has this name.
    """
    config = base.get_config()
    name = variant or "logistic"
    betas = gpo.BETAS | gpo.OTHERS
    if name not in betas:
        raise ValueError(f"gpo_hh has no variant {name!r}; there are: {', '.join(betas)}")
    config.update(
        {
            "model": {
                "num_layers": 4,
                "head_dim": 32,
                "embed_dim": 128,
                "mlp_dim": 384,
            },
            "optimizer": {
                "learning_rate": 3e-4,
                "warmup_steps": 20,
            },
            "data": {
                "source": "jsonl",
                "allow_empty_completions": True,  # The published files hold a few.
                "tokenizer": "",  # The checkpoint's, or bytes.
                "max_length": 384,
                "bucket_lengths": (128, 256, 384),
            },
            "loss": {
                "names": (name,),
                "betas": (0.1,),
            },
            "train": {
                "warm_start_on": "chosen",
                "warm_start_steps": 300,
                "num_steps": 150,
                "batch_size": 16,
                "evaluate_every": 50,
                "checkpoint_every": 50,
            },
        }
    )
    return config
