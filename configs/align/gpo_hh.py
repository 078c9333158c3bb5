r"""Generalised preference optimisation on the helpful pairs of Anthropic's HH-RLHF.

The file has one JSON object a line with `prompt`, `chosen` and `rejected`; one prompt in ten is held out.

Papers: Tang et al., Generalized Preference Optimization, 2024, https://arxiv.org/abs/2402.05749
  Bai et al., Training a Helpful and Harmless Assistant, 2022, https://arxiv.org/abs/2204.05862
Command:
  python -m bellmax.experiments.align --config=gpo_hh --workdir=runs/gpo_hh \
      --config.data.path=helpful-base-test.jsonl.gz
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
    config.model.num_layers = 4
    config.model.head_dim = 32
    config.model.embed_dim = 128
    config.model.mlp_dim = 384
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 20
    config.data.source = "jsonl"
    config.data.tokenizer = "byte"
    config.data.max_length = 512
    config.data.bucket_lengths = (128, 256, 512)
    config.loss.names = (name,)
    config.loss.betas = (0.1,)
    config.train.warm_start_on = "chosen"
    config.train.warm_start_steps = 300
    config.train.num_steps = 200
    config.train.batch_size = 16
    config.train.evaluate_every = 50
    config.train.checkpoint_every = 50
    return config
