"""The keys of an `align` run, each with its unit; the other configs of this folder start here."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns every key that may be overridden, with the values of the smallest run."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "model": {
                "checkpoint": "",  # A folder in Hugging Face's layout; empty: a network as below.
                "num_layers": 2,
                "num_heads": 4,
                "num_kv_heads": 2,  # Fewer than num_heads: grouped queries.
                "head_dim": 16,
                "embed_dim": 64,
                "mlp_dim": 192,
                "tied_embeddings": True,
                "compute_dtype": "float32",  # Or "bfloat16"; parameters are float32 always.
                "logit_softcap": 0.0,  # 0: none.
                "remat": False,  # Recompute activations in the backward pass, layer by layer.
                "scan_layers": False,  # One compiled layer for all: compiles faster when deep.
                "chunk_size": 0,  # Tokens per chunk of the head; 0 holds all logits at once.
            },
            "optimizer": {
                "name": "adan",  # adan, adamw, adam, sgd, lion.
                "learning_rate": 1e-3,
                "schedule": "cosine",  # constant, linear, cosine.
                "warmup_steps": 50,  # At most the steps of a stage.
                "end_fraction": 0.1,  # Last learning rate over the peak.
                "weight_decay": 0.0,  # Decoupled; never on norms and biases.
                "max_grad_norm": 1.0,  # Global norm; 0: no clipping.
                "b1": 0.98,
                "b2": 0.92,
                "b3": 0.99,  # Adan only.
                "eps": 1e-8,
            },
            "data": {
                "source": "gold_bench",  # gold_bench, cyclic_bench, jsonl, hh.
                "path": "",  # A .jsonl[.gz] file, or for hh the folder of {train,test}.jsonl.gz.
                "allow_empty_completions": False,  # True leaves such pairs out, and counts them.
                "cache_dir": "",  # Where TFDS prepares files; empty: inside the workdir.
                # Or byte, or a tokenizer.json.
                "tokenizer": "characters:abcde",  # Empty: the checkpoint's, or byte without one.
                "end_token": "",  # Of a tokenizer.json; empty: the checkpoint's, a well-known one.
                "max_length": 16,  # Tokens of prompt and completion together.
                "bucket_lengths": (16,),  # Rows are padded to one of these.
                "held_out_fraction": 0.1,  # Of prompts (jsonl); hh has its own test split.
                "num_pairs": 8192,  # Benches only.
                "num_held_out_pairs": 1024,  # Benches only.
                "num_evaluation_prompts": 32,  # Benches only: prompts of the exact evaluation.
                "quality_weight": 0.5,  # cyclic_bench only: of the gold reward in the preference.
            },
            "loss": {
                "names": ("logistic",),  # Each is trained in turn from the same warm start.
                "betas": (0.1,),  # One for each name, 1/nats.
                "label_smoothing": 0.0,  # Probability that a label is wrong.
                "sft_weight": 0.005,  # rpo only: eta, which multiplies eta * beta.
            },
            "train": {
                "warm_start_steps": 400,  # 0: the checkpoint as it is.
                "warm_start_learning_rate": 3e-3,
                "warm_start_on": "both",  # Imitate the chosen completions, or both of a pair.
                "num_steps": 500,  # Of each loss.
                "batch_size": 64,  # Pairs, over all devices.
                "accumulate_steps": 1,  # Parts of a batch, one after another, to save memory.
                "live_reference": False,  # True evaluates the reference at every step.
                "log_every": 20,
                "evaluate_every": 25,
                "checkpoint_every": 100,
                "keep_checkpoints": 2,
                "mesh_data": -1,  # Devices along each axis; -1: all that are left.
                "mesh_fsdp": 1,
                "mesh_tensor": 1,
            },
        }
    )
