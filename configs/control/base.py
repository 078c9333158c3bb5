"""The keys of a `control` run, each with its unit; the other configs of this folder start here."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns every key that may be overridden, with the values of the smallest run."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "model": {
                "hidden_sizes": (64,),
                "conv_channels": (),  # Of convolutions; () for none.
                "conv_kernels": (),  # Their sides; () for 3 everywhere.
                "conv_strides": (),  # () for 1 everywhere.
                "observation_scale": 1.0,  # Observations are multiplied by it.
                "dueling": False,
                "noisy": False,  # Noisy layers; set epsilon_start and epsilon_end to 0 with them.
                "law": "categorical",  # categorical (C51), quantile (QR-DQN).
                "num_outputs": 51,  # Atoms, or quantiles.
                "v_min": 0.0,  # Least atom.
                "v_max": 1.0,  # Greatest.
            },
            "optimizer": {
                "name": "adam",  # adan, adamw, adam, sgd, lion.
                "learning_rate": 1e-3,
                "schedule": "constant",  # constant, linear, cosine.
                "warmup_steps": 0,
                "end_fraction": 1.0,
                "weight_decay": 0.0,
                "max_grad_norm": 10.0,
                "b1": 0.9,
                "b2": 0.999,
                "b3": 0.99,  # Adan only.
                "eps": 0.01 / 32,
            },
            "data": {
                "source": "tabular",  # tabular; gymnax, gymnasium (extra `environments`); atari.
                "name": "frozen_lake",
                "sticky_actions": 0.0,
                "reward_clip": 0.0,  # Learn from rewards clipped to so much; 0: as they are.
            },
            "loss": {
                "names": ("q_lambda", "retrace", "one_step"),
                "trace_decays": (0.7, 1.0, 0.0),  # lambda of each.
                "mixings": (0.7, 1.0, 1.0),  # Weight of the greedy policy in the target policy.
                "discount": 0.99,
                "kind": "cross_entropy",  # categorical: cross_entropy, cramer, clipped.
                "kappa": 1.0,  # quantile: where the Huber loss turns linear.
                "double": False,
                "target_every": 250,  # Updates.
            },
            "train": {
                "num_seeds": 5,
                "num_env_steps": 40_000,  # Of each seed.
                "num_environments": 4,  # Of each seed.
                "env_steps_per_update": 4,
                "updates_per_step": 250,  # One step of the loop is one program.
                "batch_size": 32,
                "sequence_length": 5,
                "replay_size": 40_000,  # Transitions of each seed.
                "learning_starts": 1000,  # Environment steps of each seed.
                "priority_exponent": 0.0,  # 0: uniform.
                "importance_exponent": 0.5,
                "epsilon_start": 1.0,
                "epsilon_end": 0.05,
                "epsilon_env_steps": 10_000,
                "evaluation_episodes": 64,
                "evaluation_steps": 1000,  # After which an episode counts as it is.
                "log_every": 1,
                "evaluate_every": 4,
                "checkpoint_every": 20,
                "keep_checkpoints": 1,
                "mesh_data": -1,
                "mesh_fsdp": 1,
                "mesh_tensor": 1,
            },
        }
    )
