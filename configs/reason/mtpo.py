r"""MTPO in a dialogue game: preferences over whole conversations, beside single turns and rewards.

Paper: Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024,
https://arxiv.org/abs/2405.14655
Command (MTPO, its mixture, multi-turn RLHF and the single-turn method from one start; one alone):
  python -m bellmax.experiments.reason --config=mtpo --workdir=runs/mtpo
  python -m bellmax.experiments.reason --config=mtpo:single_turn --workdir=runs/single_turn
Cost: 4 minutes of CPU time for the four, on a machine of 2 cores without accelerator.
Expected: win-rates are exact, over all conversations of `envs.dialogue`, where a teacher must find
out a student's hidden type. On seed 0 MTPO wins 0.656 over the single-turn method, 0.648 over RLHF
and 0.763 over the start; sampling from the mixture, 0.660, 0.653 and 0.767. Over five other seeds
the first is 0.651 (95% interval 0.628 to 0.674).
"""

import ml_collections

from bellmax.configs.reason import base

METHODS = ("mtpo", "mtpo_mixture", "rlhf", "single_turn")


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      variant: a method to train alone; None for all four.

    Raises:
      ValueError: no method has this name.
    """
    if variant not in (None, *METHODS):
        raise ValueError(f"mtpo has no variant {variant!r}; there are: {', '.join(METHODS)}")
    shared = base.get_config().to_dict()
    shared["model"].pop("judge_rank")
    model = shared["model"] | {
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 16,
        "embed_dim": 32,
        "mlp_dim": 64,
    }
    optimizer = shared["optimizer"] | {
        "name": "adam",
        "learning_rate": 1.5e-3,
        "warmup_steps": 20,  # At most the steps of a method.
        "b1": 0.9,
        "b2": 0.99,
    }
    train = {
        key: value
        for key, value in shared["train"].items()
        if key.startswith("mesh_") or key == "keep_checkpoints"
    }
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "model": model,
            "optimizer": optimizer,
            "data": {
                "source": "dialogue",
                "num_types": 2,  # Types of student; the teacher does not see which.
                "num_turns": 3,
                "utterance_length": 2,  # Words that the teacher says in a turn.
                "num_parts": 2,  # Parts of the lesson.
                "score": 3.0,  # What a part learnt is worth to the judge, in log odds.
                "turn_score": 2.0,  # The same to the judge of single turns.
                "cyclic": 0.5,  # Weight of the teacher's manner, which no score explains.
            },
            "loss": {
                "methods": METHODS if variant is None else (variant,),
                "alpha": 0.02,  # Weight of the KL to the reference, in units of a probability.
                "trace_decay": 0.95,  # lambda of the advantages, over turns.
                "mixture": 0.0625,  # mtpo_mixture: weight of the reference in what is sampled.
                "num_rivals": 32,  # Conversations that each is compared with; 1 in the paper.
                "value_coefficient": 0.5,
                "value_gradient": 0.3,  # Factor on the values' gradient into the shared network.
                "policy_delay": 0,  # Steps in which the value alone learns.
                "normalise_advantages": True,  # alpha is divided with them, so keeps its meaning.
            },
            "train": {
                "num_steps": 400,  # Of each method.
                "batch_size": 512,  # Conversations, over all devices; an even number.
                "accumulate_steps": 1,  # Parts of a batch, one after another, to save memory.
                "log_every": 20,
                "evaluate_every": 50,
                "checkpoint_every": 100,
            }
            | train,
        }
    )
