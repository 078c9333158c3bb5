"""Cases of advantages, consistency losses and latent reasoning; see `loss_cases.py`."""

import pathlib
import runpy

import jax
import jax.numpy as jnp

from bellmax import losses

TABLE = runpy.run_path(str(pathlib.Path(__file__).with_name("loss_cases.py")))
Case, bind, REAL = (TABLE[name] for name in ("Case", "bind", "REAL"))

SAMPLES = 4
REWARDS, LOG_PROBS = ("real", (SAMPLES,)), ("log_prob", (SAMPLES,))
ANSWERS, CORRECT, MASK = ("token", (SAMPLES,)), ("token", ()), ("mask", (SAMPLES,))


def widest(rewards):
    """A function of a set that is none of those with a name."""
    return jnp.max(rewards, axis=-1) - jnp.min(rewards, axis=-1) / 2


def credited(name, **hyper):
    """Returns the weighted sum of log-probabilities, from a function of whole numbers only."""
    function = bind(name, **hyper)

    def total(log_probs, *counted):
        weights = function(*counted)
        return losses.sequence_log_probs(log_probs, jnp.broadcast_to(weights, log_probs.shape))

    return total


def estimated(num_samples, num_correct):
    """Returns pass@2 as the last axis of a group of one."""
    return losses.pass_at_k(num_samples + 1, num_correct, 2)[..., None]


CASES = {
    **{
        name: Case(bind(name), (REWARDS,), (0,))
        for name in ("leave_one_out_advantages", "centred_advantages", "group_advantages")
    },
    "group_advantages:ddof": Case(bind("group_advantages", ddof=1, epsilon=0.1), (REWARDS,), (0,)),
    "greedy_baseline_advantages": Case(
        bind("greedy_baseline_advantages", clip=1.0), (REWARDS, REAL), (0, 1)
    ),
    "scaled_advantages": Case(bind("scaled_advantages"), (REWARDS,), (0,)),
    "scaled_advantages:mask": Case(
        lambda values, mask: losses.scaled_advantages(values, clip=0.7, ddof=1, mask=mask),
        (REWARDS, MASK),
        (0,),
    ),
    **{
        f"k_sample_advantages:{getattr(objective, '__name__', objective)}": Case(
            bind("k_sample_advantages", objective=objective), (REWARDS,), (0,)
        )
        for objective in ("mean", "max", widest)
    },
    **{
        f"subset_k_sample_advantages:{getattr(objective, '__name__', objective)}": Case(
            bind("subset_k_sample_advantages", k=2, objective=objective), (REWARDS,), (0,)
        )
        for objective in ("mean", "max", widest)
    },
    "pass_at_k": Case(
        lambda log_probs, *counts: losses.sequence_log_probs(log_probs, estimated(*counts)),
        (("log_prob", (1,)), ("length", ()), ("sign", ())),
    ),
    **{
        f"majority_advantages:{ties}": Case(
            credited("majority_advantages", ties=ties), (LOG_PROBS, ANSWERS, CORRECT)
        )
        for ties in ("lowest", "uniform")
    },
    "majority_advantages:subsets": Case(
        credited("majority_advantages", ties="uniform", k=3), (LOG_PROBS, ANSWERS, CORRECT)
    ),
    **{
        f"majority_at_k:{ties}": Case(
            lambda log_probs, *votes, ties=ties: losses.sequence_log_probs(
                log_probs, losses.majority_at_k(*votes, k=3, ties=ties)[..., None]
            ),
            (("log_prob", (1,)), ANSWERS, CORRECT),
        )
        for ties in ("lowest", "uniform")
    },
    "agro_loss": Case(bind("agro_loss", beta=0.7), (LOG_PROBS, LOG_PROBS, REWARDS), (1, 2)),
    "copg_loss": Case(
        bind("copg_loss", beta=0.7),
        (("log_prob", (2,)), ("log_prob", (2,)), ("real", (2,))),
        (1, 2),
    ),
    "copg_loss:group": Case(bind("copg_loss", beta=0.7), (LOG_PROBS, LOG_PROBS, REWARDS), (1, 2)),
    **{
        f"jepo_bound:{multi}": Case(bind("jepo_bound", multi_sample=multi), (LOG_PROBS,))
        for multi in (True, False)
    },
    **{
        f"jepo_advantages:{multi}": Case(
            bind("jepo_advantages", multi_sample=multi), (LOG_PROBS,), (0,)
        )
        for multi in (True, False)
    },
    # Advantages are stopped: with the answers constant, or without chains, the value has the
    # gradient of the loss.
    **{
        f"jepo_loss:chains {multi}": Case(
            lambda chains, answers, multi=multi: losses.jepo_loss(
                chains, jax.lax.stop_gradient(answers), multi_sample=multi
            ),
            (LOG_PROBS, LOG_PROBS),
            (1,),
        )
        for multi in (True, False)
    },
    **{
        f"jepo_loss:answers {multi}": Case(
            lambda answers, mask, multi=multi: losses.jepo_loss(
                jnp.zeros_like(answers), answers, multi_sample=multi, mask=mask
            ),
            (LOG_PROBS, MASK),
        )
        for multi in (True, False)
    },
    "jepo_practical_loss": Case(
        lambda chains, answers, good: losses.jepo_practical_loss(
            chains, jax.lax.stop_gradient(answers), good, beta_supervised=0.3
        ),
        (LOG_PROBS, LOG_PROBS, MASK),
        (1,),
    ),
    "answer_probability_loss": Case(
        lambda chains, answers: losses.answer_probability_loss(
            chains, jax.lax.stop_gradient(answers)
        ),
        (LOG_PROBS, LOG_PROBS),
        (1,),
    ),
}
