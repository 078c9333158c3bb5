"""The keys of a `reason` run, each with its unit; the other configs of this folder start here."""

import ml_collections

from bellmax.configs.align import base


def get_config() -> ml_collections.ConfigDict:
    """Returns every key that may be overridden, with the values of the smallest run."""
    shared = base.get_config().to_dict()
    # Numbers of a completion that the pairwise judge compares.
    shared["model"]["judge_rank"] = 8
    shared["data"]["source"] = "cyclic_bench"
    config = ml_collections.ConfigDict(
        {key: shared[key] for key in ("seed", "model", "optimizer", "data")}
    )
    config.loss = ml_collections.ConfigDict(
        {
            "names": ("nash_md",),  # Each is trained in turn from the same warm start.
            "taus": (0.05,),  # One for each name: weight of the KL to the reference.
            "judge": "pairwise",  # known (benches only), or fitted: pairwise, bradley_terry.
            "eta": 0.2,  # dno, inpo and sppo: inverse learning rate of an iteration.
            "mixture": 0.25,  # nash_md, ipo_md: weight of the reference in the mixture.
            "average_decay": 0.99,  # nash_ema: of the averaged opponent, a step.
            "iteration_steps": 50,  # dno, inpo, sppo: steps of an iteration.
        }
    )
    train = shared["train"]
    train.pop("live_reference")
    config.train = ml_collections.ConfigDict(
        train
        | {
            "judge_steps": 600,
            "judge_learning_rate": 2e-3,
            "max_new_tokens": 5,  # The end token included.
            "num_opponents": 3,  # Completions that each first completion meets.
            "num_evaluation_prompts": 256,  # Where completions cannot be listed.
        }
    )
    return config
