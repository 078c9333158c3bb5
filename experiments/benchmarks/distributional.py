"""The categorical projection, and the whole C51 loss with its gradient, against those of rlax.

Batch 4096, 51 and 201 atoms. The projection's support is known to the compiler, or an argument of
the compiled function. The loss is that of one step with six actions, as in MinAtar: expectations,
the greedy action, its law moved and projected, cross-entropy, gradients of all logits. Ours is the
multi-step target of length 1, which serves any trace rule. Gradients go where those of the last
call were, as they do inside a training step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bellmax import losses
from bellmax.experiments.benchmarks import peers, runner

_PROJECTION_AIM = 15
_LOSS_AIM = 3
_ACTIONS = 6


def _projections(
    rlax: Any, support: jax.Array, atoms: jax.Array, weights: jax.Array
) -> list[runner.Candidate]:
    def known(atoms: jax.Array, weights: jax.Array) -> jax.Array:
        return losses.categorical_projection(atoms, weights, support)

    candidates = [
        runner.Candidate("projection", known, (atoms, weights)),
        runner.Candidate(
            "projection, support an argument",
            losses.categorical_projection,
            (atoms, weights, support),
        ),
    ]
    if rlax is not None:
        theirs = jax.vmap(rlax.categorical_l2_project, (0, 0, None))
        candidates.append(runner.Candidate("rlax projection", theirs, (atoms, weights, support)))
    return candidates


def _c51(support: jax.Array) -> Callable[..., jax.Array]:
    def mean_loss(
        logits: jax.Array,
        next_logits: jax.Array,
        actions: jax.Array,
        rewards: jax.Array,
        discounts: jax.Array,
    ) -> jax.Array:
        probs = jax.nn.softmax(next_logits, axis=-1)
        best = jnp.argmax(losses.categorical_mean(probs, support), axis=-1)
        # One step: no action beside the first one is known, and none has a trace.
        nothing = jnp.zeros((logits.shape[0], 0))
        target = losses.categorical_multistep_target(
            probs[:, None],
            jax.nn.one_hot(best, logits.shape[1])[:, None],
            nothing.astype(jnp.int32),
            rewards[:, None],
            discounts[:, None],
            nothing,
            support,
        )
        # One gather of rows: take_along_axis would gather, and scatter back, single numbers.
        taken = jax.vmap(lambda row, action: row[action])(logits, actions)
        return jnp.mean(losses.categorical_loss(taken, target, support))

    return mean_loss


def _rlax_c51(rlax: Any, support: jax.Array) -> Callable[..., jax.Array]:
    each = jax.vmap(rlax.categorical_q_learning, (None, 0, 0, 0, 0, None, 0))

    def mean_loss(
        logits: jax.Array,
        next_logits: jax.Array,
        actions: jax.Array,
        rewards: jax.Array,
        discounts: jax.Array,
    ) -> jax.Array:
        return jnp.mean(each(support, logits, actions, rewards, discounts, support, next_logits))

    return mean_loss


def _with_gradient(mean_loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    def step(outputs: jax.Array, *arguments: jax.Array):
        del outputs  # Only its memory is used.
        loss, gradient = jax.value_and_grad(mean_loss)(*arguments)
        return gradient, loss

    return step


def _compare(
    candidates: list[runner.Candidate], atoms: int, repeats: int, *, aim: float, theirs: bool
) -> list[dict[str, Any]]:
    """Returns rows of candidates, rlax's last where it is installed."""
    timings = runner.measure(candidates, repeats=repeats)
    rows = []
    for timing in timings:
        peer = "-"
        if theirs and timing is not timings[-1]:
            ratio = runner.ratio(timings[-1], timing)
            peer = f"{ratio}, aim {aim} {'met' if ratio.median >= aim else 'MISSED'}"
        row = runner.row(timing, timings[0])
        # Two baselines share one table: a column of its own each would leave half of it empty.
        row["time / first"] = row.pop(f"time / {timings[0].name}")
        rows.append({"": row.pop(""), "atoms": atoms, **row, "times faster than rlax": peer})
    return rows


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares the projection, then the loss with its gradient, at each number of atoms.

    Args:
      machine: measured rates; not used.
      quick: a small batch.
      repeats: counted runs.

    Returns:
      One row a candidate and number of atoms; without rlax, ours alone.
    """
    del machine
    batch, counts = (64, (51,)) if quick else (4096, (51, 201))
    rlax = peers.import_peer("rlax")
    rows = []
    for count in counts:
        keys = jax.random.split(jax.random.key(0), 5)
        support = jnp.linspace(-10, 10, count)
        logits, next_logits = jax.random.normal(keys[0], (2, batch, _ACTIONS, count))
        actions = jax.random.randint(keys[1], (batch,), 0, _ACTIONS)
        rewards = jax.random.normal(keys[2], (batch,))
        # One transition in twenty terminates.
        discounts = 0.99 * jax.random.bernoulli(keys[3], 0.95, (batch,))
        atoms = rewards[:, None] + discounts[:, None] * support
        weights = jax.nn.softmax(next_logits[:, 0], axis=-1)
        candidates = _projections(rlax, support, atoms, weights)
        theirs = rlax is not None
        rows += _compare(candidates, count, repeats, aim=_PROJECTION_AIM, theirs=theirs)

        functions = {"loss": _c51(support)}
        if rlax is not None:
            functions["rlax loss"] = _rlax_c51(rlax, support)
        arguments = (logits, logits, next_logits, actions, rewards, discounts)
        candidates = [
            runner.Candidate(name, _with_gradient(function), arguments, carried=True)
            for name, function in functions.items()
        ]
        rows += _compare(candidates, count, repeats, aim=_LOSS_AIM, theirs=theirs)
    return rows


BENCHMARK = runner.Benchmark(
    name="distributional",
    description="categorical projection, C51 loss with gradient, batch 4096, 51 and 201 atoms",
    run=run,
)
