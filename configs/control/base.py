"""The keys of `control` runs, each with its unit; the other configs of this folder start here."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the keys of laws of returns from a replay, with the values of the smallest run."""
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


def _policies(flow: str) -> dict:
    """Returns the keys that flows of policies share; their default is CartPole."""
    shared = get_config().to_dict()
    kept = ("num_seeds", "evaluation_steps", "log_every", "keep_checkpoints")
    meshes = ("mesh_data", "mesh_fsdp", "mesh_tensor")
    return {
        "flow": flow,
        "seed": 0,
        "model": {
            "hidden_sizes": (64, 64),  # Of policy and values each.
            "activation": "tanh",  # tanh, relu.
            "initial_std": 1.0,  # Of continuous actions, in units of half their range.
        },
        "optimizer": shared["optimizer"] | {"eps": 1e-5, "max_grad_norm": 0.5},
        "data": shared["data"] | {"source": "gymnax", "name": "CartPole-v1"},
        "train": {name: shared["train"][name] for name in (*kept, *meshes)}
        | {"num_env_steps": 100_000, "evaluation_episodes": 16},
    }


def get_rollout_config() -> ml_collections.ConfigDict:
    """Returns the keys of policies that learn from their own rollouts."""
    keys = _policies("rollouts")
    keys["optimizer"] |= {"schedule": "linear", "end_fraction": 0.0}
    keys["loss"] = {
        "names": ("ppo",),  # ppo, mdpo.
        "epochs": (10,),  # Passes over a rollout, of each.
        "minibatches": (8,),  # Parts of a pass, an update each, of each.
        "discount": 0.99,
        "trace_decay": 0.95,  # lambda of generalised advantage estimation.
        "clip_epsilon": 0.2,  # ppo.
        "value_coefficient": 0.5,
        "value_clip": 0.0,  # 0: none.
        "entropy_coefficient": 0.0,
        "normalise_advantages": True,
        "reward_scale": 1.0,  # Rewards are multiplied by it before they are learnt from.
    }
    keys["train"] |= {
        "num_environments": 8,  # Of each seed.
        "rollout_length": 128,  # Steps of each environment.
        "rollouts_per_step": 2,  # One step of the loop is one program.
        "evaluate_every": 5,
        "checkpoint_every": 25,
    }
    return ml_collections.ConfigDict(keys)


def get_off_policy_config() -> ml_collections.ConfigDict:
    """Returns the keys of policies that learn from a replay."""
    keys = _policies("replay")
    keys["model"]["activation"] = "relu"
    keys["loss"] = {
        "names": ("mdpo_off_policy",),  # mdpo_off_policy, sac.
        "discount": 0.99,
        "target_decay": 0.995,
        "inverse_step": 1.0,  # 1 / t, in units of the value a nat.
        "entropy_weight": 0.2,  # lambda, likewise; the inverse step of sac.
        "num_inner_steps": 1000,  # Updates between renewals of the old policy.
        "output_penalty": 1e-3,
        "reward_scale": 1.0,  # Rewards are multiplied by it before they are learnt from.
    }
    keys["train"] |= {
        "num_env_steps": 40_000,
        "num_environments": 4,  # Of each seed.
        "env_steps_per_update": 4,
        "updates_per_step": 250,  # One step of the loop is one program.
        "batch_size": 128,
        "replay_size": 40_000,  # Transitions of each seed.
        "learning_starts": 1000,  # Environment steps of each seed.
        "evaluate_every": 4,
        "checkpoint_every": 20,
    }
    return ml_collections.ConfigDict(keys)
