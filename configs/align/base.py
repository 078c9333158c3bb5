"""The keys of an `align` run, each with its unit; the other configs of this folder start here."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns every key that may be overridden, with the values of the smallest run."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.num_kv_heads = 2  # Fewer than num_heads: grouped queries.
    config.model.head_dim = 16
    config.model.embed_dim = 64
    config.model.mlp_dim = 192
    config.model.tied_embeddings = True
    config.model.compute_dtype = "float32"  # Or "bfloat16"; parameters are float32 always.
    config.model.logit_softcap = 0.0  # 0: none.
    config.model.remat = False  # Recompute activations in the backward pass, layer by layer.
    config.model.scan_layers = False  # One compiled layer for all: compiles faster when deep.
    config.model.chunk_size = 0  # Tokens per chunk of the head; 0 holds all logits at once.

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adan"  # adan, adamw, adam, sgd, lion.
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"  # constant, linear, cosine.
    config.optimizer.warmup_steps = 10
    config.optimizer.end_fraction = 0.1  # Last learning rate over the peak.
    config.optimizer.weight_decay = 0.0  # Decoupled; never on norms and biases.
    config.optimizer.max_grad_norm = 1.0  # Global norm; 0: no clipping.
    config.optimizer.b1 = 0.98
    config.optimizer.b2 = 0.92
    config.optimizer.b3 = 0.99  # Adan only.
    config.optimizer.eps = 1e-8

    config.data = ml_collections.ConfigDict()
    config.data.source = "gold_bench"  # gold_bench, jsonl, hh.
    config.data.path = ""  # A .jsonl[.gz] file (jsonl), or a folder of {train,test}.jsonl.gz (hh).
    config.data.cache_dir = ""  # Where TFDS prepares files; empty: inside the workdir.
    config.data.tokenizer = "characters:abcde"  # byte, characters:LETTERS, or a tokenizer.json.
    config.data.max_length = 16  # Tokens of prompt and completion together.
    config.data.bucket_lengths = (16,)  # Rows are padded to one of these.
    config.data.held_out_fraction = 0.1  # Of prompts (jsonl); hh has its own test split.
    config.data.num_pairs = 4096  # gold_bench only.
    config.data.num_held_out_pairs = 1024  # gold_bench only.
    config.data.num_evaluation_prompts = 32  # gold_bench only: prompts of the exact evaluation.

    config.loss = ml_collections.ConfigDict()
    config.loss.names = ("logistic",)  # Each is trained in turn from the same warm start.
    config.loss.betas = (0.1,)  # One for each name, 1/nats.
    config.loss.label_smoothing = 0.0  # Probability that a label is wrong.
    config.loss.sft_weight = 0.005  # rpo only: eta, which multiplies eta * beta.

    config.train = ml_collections.ConfigDict()
    config.train.warm_start_steps = 400
    config.train.warm_start_learning_rate = 3e-3
    config.train.warm_start_on = "both"  # Imitate the chosen completions, or both of a pair.
    config.train.num_steps = 400  # Of each loss.
    config.train.batch_size = 64  # Pairs, over all devices.
    config.train.live_reference = False  # True evaluates the reference at every step.
    config.train.log_every = 20
    config.train.evaluate_every = 50
    config.train.checkpoint_every = 100
    config.train.keep_checkpoints = 2
    config.train.mesh_data = -1  # Devices along each axis; -1: all that are left.
    config.train.mesh_fsdp = 1
    config.train.mesh_tensor = 1
    return config
