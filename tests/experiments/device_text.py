"""Run by test_text_tasks.py with several forced devices: they check completions as one does."""

import pathlib
import runpy
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from bellmax.experiments import (
    language_run,
    mesh,
    pretrained,
    step_program,
    task_methods,
    task_steps,
    text_data,
    text_tasks,
    text_training,
)

CASES = runpy.run_path(str(pathlib.Path(__file__).with_name("text_cases.py")))
SIZE = 1024


def check(devices, workdir, count):
    """Answers of written and of random completions, where rows can be spread and where not."""
    config = CASES["make_config"](workdir)
    tokenizer = pretrained.make_tokenizer(config)
    data = text_data.load(config.data, tokenizer, workdir)
    task = text_tasks.TextTask(tokenizer, data.numbers, SIZE, devices)
    tokens = np.random.default_rng(0).integers(32, 58, (count, 8, SIZE), np.int32)
    mask = np.ones(tokens.shape, np.float32)
    problems = jax.tree.map(
        lambda leaf: np.resize(leaf, (count, *leaf.shape[1:])), data.train.problem
    )
    right = [tokenizer.encode(f"#### {data.numbers[row]}") for row in problems.solution.row]
    for place, row in enumerate(right):
        tokens[place, place % 8, : len(row)] = row
        mask[place, place % 8, len(row) :] = 0
    expected = np.arange(8) == np.arange(count)[:, None] % 8
    # A sum over devices between two calls of the host, which one of them may come to late.
    run = jax.jit(lambda *given: task.answers(*given).sum() * 0 + task.answers(*given))
    placed = problems, tokens, mask
    if count % devices.size == 0:
        placed = mesh.place_batch(devices, placed)
    found = [np.asarray(run(*placed)) for _ in range(3)]
    for answers in found:
        np.testing.assert_array_equal(answers[expected], 0)
        assert (answers[~expected] > 0).mean() > 0.9
    return found


def collected(devices, workdir):
    """A step's completions, rewarded."""
    config = CASES["make_config"](workdir, train={"batch_size": 8, "mesh_fsdp": 2})
    run = text_training.prepare(config, workdir)
    run = run._replace(mesh=devices, task=run.task._replace(mesh=devices))
    method = task_methods.make_method("rloo", 0.1, config.loss, run.task)
    assert run.train is not None
    rows = next(text_data.ProblemBatches(run.train, 8, seed=0, name="rloo"))
    params = language_run.compiled_init(run.network)(jax.random.key(0))

    def collect(params, rows, key):
        return task_steps.collect(run, method, params, rows.index, key, rows)

    placed = mesh.place_state(devices, params), mesh.place_batch(devices, rows)
    return step_program.jit_rows(collect, devices)(*placed, jax.random.key(1))


def main(workdir):
    several = jax.device_count() > 1
    devices = mesh.make_mesh(data=-1, fsdp=2 if several else 1)
    one = Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh.AXES, axis_types=(AxisType.Auto,) * 3
    )
    for count in (16, 7)[: 1 + several]:
        found = check(devices, workdir, count)
        np.testing.assert_array_equal(found, check(one, workdir, count))
        print("alike")
    if several:
        found, expected = (collected(where, workdir) for where in (devices, one))
        for name in ("tokens", "mask", "rewards", "answers", "correct_answers"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        print("collected")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
