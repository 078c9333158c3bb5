"""The keys of a `horizon` run, each with its unit; the other configs of this folder start here."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns every key that may be overridden, with the values of the smallest run."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "model": {
                "hidden_sizes": (64, 64, 64),
                "u_shaped": False,  # True: stages with skips, time and condition by FiLM.
                "time_features": 16,  # Sines and cosines.
                "min_frequency": 1.0,  # Radians by unit of time.
                "max_frequency": 100.0,
                "time_sizes": (64, 64),  # U-shaped only.
                "condition_sizes": (64, 64),  # U-shaped only.
                "baseline_sizes": (128, 128),  # Of the vae and the gan.
                "baseline_residual": False,  # gan: blocks of two layers with skips.
                "policy_sizes": (128, 128),  # Of a policy that is trained.
            },
            "optimizer": {
                "name": "adamw",  # adan, adamw, adam, sgd, lion; the gan has an adam of its own.
                "learning_rate": 2e-3,
                "schedule": "cosine",  # constant, linear, cosine.
                "warmup_steps": 0,
                "end_fraction": 0.05,
                "weight_decay": 1e-3,
                "max_grad_norm": 10.0,
                "b1": 0.9,
                "b2": 0.999,
                "b3": 0.99,  # Adan only.
                "eps": 1e-4,
            },
            "data": {
                "source": "noisy_circle",  # noisy_circle, ring, linear_gaussian, maze, dm_control.
                "task": "",  # maze, dm_control: whose policy is evaluated.
                "policy": "scripted",  # maze: scripted; maze, dm_control: td3, trained first.
                "path": "",  # Likewise: a .npz, .hdf5 or folder of episodes; empty collects.
                "cache_dir": "",  # Where TFDS prepares it; empty: inside the workdir.
                "num_transitions": 200_000,
                "noise": 1.0,  # Likewise: deviation of the actions that collect transitions.
                "correlation": 0.98,  # Likewise: of them from step to step.
                "standardise": False,  # Learn states less their mean and over their deviation.
            },
            "loss": {
                "names": ("td_cfm", "coupled_td_cfm", "td2_cfm"),  # And td_dd, td2_dd, vae, gan.
                "discounts": (0.95,),
                "path": "linear",  # linear, curved.
                "flow_steps": 10,  # Midpoint steps of a bootstrap.
                "diffusion_steps": 20,  # DDIM steps of a bootstrap.
                "num_levels": 1000,  # Of noise in a diffusion.
                "clip_to_data": False,  # Keep what a diffusion denoises to within the data's range.
                "target_decay": 0.99,  # Of the target, an update.
                "beta": 0.5,  # vae: weight of the KL divergence.
                "penalty_start": 0.05,  # gan: weight of the gradient penalties.
                "penalty_end": 0.005,
            },
            "train": {
                "num_updates": 6000,
                "updates_per_step": 50,  # One step of the loop is one program.
                "policy_updates": 15_000,  # Of a policy that is trained.
                "policy_learning_rate": 1e-3,
                "policy_target_decay": 0.95,
                "batch_size": 256,
                "accumulate_steps": 1,  # Parts of a batch, one after another, to save memory.
                "evaluation_states": 16,
                "evaluation_samples": 512,  # Of each state.
                "likelihood_samples": 64,  # True samples of each state.
                "evaluation_flow_steps": 10,
                "evaluation_diffusion_steps": 20,
                "likelihood_steps": 20,
                "log_every": 4,
                "evaluate_every": 20,
                "checkpoint_every": 20,
                "keep_checkpoints": 1,
                "mesh_data": -1,
                "mesh_fsdp": 1,
                "mesh_tensor": 1,
            },
        }
    )
