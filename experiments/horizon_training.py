"""One stage of a `horizon` run: an agent that learns from fixed transitions, a window at a time."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax.agents import Agent, TransitionBatch
from bellmax.experiments import runner
from bellmax.experiments.horizon_config import HorizonConfig


class State(NamedTuple):
    """What the loop carries.

    Attributes:
      step: steps of the loop so far.
      agent: the agent's state.
    """

    step: Int[Array, ""]
    agent: Any


class Batches:
    """Uniform draws of rows, with replacement, for a window of updates at a time.

    Args:
      transitions: on the host.
      batch_size: rows of an update, over all processes.
      updates_per_step: updates of a window.
      seed: of the draws.
      process_index: of this process, which gets its share of every batch.
      process_count: of all.
    """

    def __init__(
        self,
        transitions: TransitionBatch,
        *,
        batch_size: int,
        updates_per_step: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._transitions = transitions
        self._shape = (batch_size, updates_per_step)
        self._seed, self._window = seed, 0
        share = batch_size // process_count
        self._mine = slice(process_index * share, (process_index + 1) * share)

    def __next__(self) -> TransitionBatch:
        """Returns the rows of a window, [B, updates, ...]; each a row of its own in its batch."""
        generator = np.random.default_rng((self._seed, self._window))
        rows = generator.integers(self._transitions.observations.shape[0], size=self._shape)
        self._window += 1
        mine = rows[self._mine]
        return jax.tree.map(lambda leaf: leaf[mine], self._transitions)

    def get_state(self) -> dict[str, int]:
        """Returns how many windows were drawn."""
        return {"window": self._window}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a window."""
        self._window = int(state["window"])


def train_step(agent: Agent) -> Callable[[State, TransitionBatch, PRNGKeyArray], Any]:
    """Returns a window of updates as one function, which the loop compiles as one program.

    Args:
      agent: the agent.

    Returns:
      `(state, batch of windows, key) -> (state, metrics)`.
    """

    def step(state: State, batch: TransitionBatch, key: PRNGKeyArray):
        def one(carry, number_and_rows):
            number, rows = number_and_rows
            return agent.update(carry, rows, jax.random.fold_in(key, number))

        # [B, updates, ...], so that it is rows that devices share.
        windows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batch)
        count = windows.observations.shape[0]
        learnt, found = jax.lax.scan(one, state.agent, (jnp.arange(count), windows))
        averaged = {name: jnp.mean(values) for name, values in found.items()}
        # A count, which is not averaged; the guard wants to know of how many.
        averaged["updates/skipped"] = found["updates/skipped"][-1]
        averaged["updates/done"] = jnp.asarray(count, jnp.float32)
        return State(state.step + 1, learnt), averaged

    return step


def run_stage(
    config: HorizonConfig,
    name: str,
    agent: Agent,
    transitions: TransitionBatch,
    *,
    workdir: pathlib.Path,
    num_updates: int,
    start_key: PRNGKeyArray,
    run_key: PRNGKeyArray,
    mesh: Mesh,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
) -> Any:
    """Trains an agent, or what is left of it.

    Args:
      config: the run.
      name: the stage's.
      agent: the agent.
      transitions: on the host, in the units that the agent learns in.
      workdir: folder of the run.
      num_updates: a multiple of `config.train.updates_per_step`.
      start_key: randomness of the first state; consumed.
      run_key: the root key of the updates.
      mesh: the devices.
      evaluate: `agent's state -> scalars by name`.

    Returns:
      The agent's last state, on the mesh.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    keys = config.train

    def evaluated(state: State, step: int) -> Mapping[str, float]:
        assert evaluate is not None
        return {"updates": float(step * keys.updates_per_step), **evaluate(state.agent)}

    state = runner.run_stage(
        name=name,
        workdir=workdir,
        state=State(jnp.zeros((), jnp.int32), agent.init(start_key)),
        train_step=train_step(agent),
        batches=Batches(
            transitions,
            batch_size=keys.batch_size,
            updates_per_step=keys.updates_per_step,
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        schedule=runner.make_schedule(keys, num_updates // keys.updates_per_step),
        run_key=run_key,
        mesh=mesh,
        evaluate=None if evaluate is None else evaluated,
    )
    return state.agent
