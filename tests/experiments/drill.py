"""Run by test_faults.py, in one or several processes: a stage small enough to be killed often.

    python drill.py WORKDIR NUM_STEPS [FAULT]

Rows come through Grain, noise from the step's key, parameters lie over fsdp: what a resumed run
must get right. Process 0 ends with `final.json`. FAULT is `bug`, which the last process alone has,
or `bad data`, which all of them find.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from bellmax.experiments import errors, mesh, metrics, runner
from bellmax.experiments.data import pipeline, plans

ROWS, WIDTH = 8, 8
OPTIMIZER = optax.adam(1e-2)


class State(NamedTuple):
    params: Any
    opt_state: Any
    step: Array


def assemble(batch):
    table = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    return {"x": table[batch.rows], "number": batch.rows.astype(np.int32)}


def first_state():
    keys = jax.random.split(jax.random.key(0))
    params = {
        "mlp": {
            "up": {"kernel": jax.random.normal(keys[0], (WIDTH, 16)) / 3},
            "down": {"kernel": jax.random.normal(keys[1], (16, WIDTH)) / 4},
        }
    }
    return State(params, OPTIMIZER.init(params), jnp.zeros((), jnp.int32))


def train_step(state, batch, key):
    noise = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), (WIDTH,)))

    def loss_fn(params):
        hidden = jnp.tanh(batch["x"] @ params["mlp"]["up"]["kernel"])
        target = batch["x"] + 0.3 * noise(batch["number"])
        return jnp.mean(jnp.square(hidden @ params["mlp"]["down"]["kernel"] - target))

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(params, opt_state, state.step + 1), {"loss": loss}


def main(argv):
    workdir, num_steps, fault = pathlib.Path(argv[1]), int(argv[2]), argv[3:]
    mesh.initialize_distributed()
    devices = mesh.make_mesh(fsdp=2)
    last = jax.process_index() == jax.process_count() - 1

    def evaluate(state, step):
        if last and fault == ["bug"] and step:
            raise LookupError("only here")
        if fault == ["bad data"] and step:
            raise errors.UserError("all of us know")
        norms = jax.jit(optax.tree.norm)(state.params)
        return {"norm": float(norms)}

    state = runner.run_stage(
        name="stage",
        workdir=workdir,
        state=first_state(),
        train_step=train_step,
        batches=pipeline.make_plan_iterator(
            plans.BatchPlan(np.full(64, WIDTH), batch_size=ROWS, bucket_lengths=[WIDTH], seed=3),
            assemble,
            num_steps=num_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        schedule=runner.Schedule(num_steps, 3, 20, 7, 2),
        run_key=jax.random.key(1),
        mesh=devices,
        evaluate=evaluate,
    )
    found = {
        mesh.path_name(path): leaf.tolist()
        for path, leaf in jax.tree_util.tree_leaves_with_path(mesh.gather(state))
    }
    metrics.write_json(workdir / "final.json", found)


if __name__ == "__main__":
    errors.run(main)
