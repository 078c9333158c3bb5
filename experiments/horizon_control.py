"""Walker, Cheetah and Quadruped of the DeepMind Control Suite as a source: MuJoCo is the truth.

States are the suite's own observations, without the horizontal place: they are what ExoRL's files
hold, and what the paper measures distances in. MuJoCo's positions and velocities would be simpler
to go back to, but a place grows without end and no reward depends on it. Nothing is lost: the
reward of what is seen can be computed exactly (see `dm_control_states.Simulator.rewards`), and the
states that are evaluated are the first ones of fresh episodes, of which MuJoCo's own state is kept.
Rollouts begin there, in double precision, and go on past the thousand steps of an episode.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, PRNGKeyArray

from bellmax.agents import TransitionBatch
from bellmax.envs.adapters import dm_control, dm_control_states
from bellmax.experiments import collecting, errors, horizon_truth, progress
from bellmax.experiments import config as config_lib
from bellmax.experiments.data import transitions
from bellmax.experiments.horizon_config import DataConfig
from bellmax.experiments.horizon_truth import Policy, Rollout, Source

TASKS = tuple(
    f"{domain}_{task}" for domain, tasks in dm_control_states.TASKS.items() for task in tasks
)
# Environments that collect side by side, and steps of an episode, after which one is left out.
_NUM_ENVIRONMENTS = 20
_EPISODE = 1000


def control(config: DataConfig, count: int, key: PRNGKeyArray) -> Source:
    """Returns a task of the suite as a source.

    Args:
      config: the data group.
      count: states that are evaluated, E.
      key: randomness of transitions and states; consumed.

    Returns:
      The source, with the policy that does nothing until one is trained.

    Raises:
      UserError: the extra `dm-control` is missing, or a path cannot be read.
      ValueError: there is no such task or policy, or what a path holds has other sizes.
    """
    if config.task not in TASKS:
        raise ValueError(
            f"task must be one of {', '.join(TASKS)}, got {config.task!r}."
            f"{config_lib.did_you_mean(config.task, TASKS)}"
        )
    if config.policy != "td3":
        raise ValueError(
            f"policy must be td3 for {config.source}, which has none that is scripted, got "
            f"{config.policy!r}."
        )
    domain, _, task = config.task.partition("_")
    try:
        simulator = dm_control_states.Simulator(domain, task)
    except ImportError as error:
        raise errors.UserError(f"config.data.source: {error}") from error
    collect_key, evaluation_key = jax.random.split(key)
    if config.path:
        rows = horizon_truth.read_rows(
            config, state_size=simulator.observation_size, action_size=simulator.action_size
        )
    else:
        rows = _collected(config, domain, task, collect_key)
    seeds = jax.random.randint(evaluation_key, (count,), 0, np.iinfo(np.int32).max)
    states, shown = simulator.begin(np.asarray(seeds))
    return horizon_truth.of_policy(
        horizon_truth.still(simulator.action_size),
        rows=rows,
        states=jnp.asarray(shown, jnp.float32),
        reward_fn=lambda shown: jnp.asarray(simulator.rewards(np.asarray(shown)), jnp.float32),
        rollout=rollout_from(simulator, states),
    )


def _collected(config: DataConfig, domain: str, task: str, key: PRNGKeyArray) -> TransitionBatch:
    """Returns what comes of moving at random, kept beside the run: it takes minutes."""
    steps = -(-config.num_transitions // _NUM_ENVIRONMENTS)

    def collect():
        progress.say(f"collecting {config.num_transitions:,} transitions of {config.task}, once")
        environment = dm_control.make(domain, task)
        (size,) = environment.action_spec.shape
        table = collecting.collect(
            environment,
            lambda shown, key: jnp.zeros((*shown.shape[:-1], size)),
            key,
            num_steps=steps + steps // _EPISODE + 1,
            num_environments=_NUM_ENVIRONMENTS,
            noise=config.noise,
            correlation=config.correlation,
        )
        return transitions.TransitionTable(*(leaf[: config.num_transitions] for leaf in table[:3]))

    drawn = np.asarray(jax.random.key_data(key)).tolist()
    described = (config.task, config.num_transitions, config.noise, config.correlation, drawn)
    table = transitions.load(f"dm_control {described}", collect, pathlib.Path(config.cache_dir))
    return horizon_truth.on_host(table)


def rollout_from(simulator: dm_control_states.Simulator, states: np.ndarray) -> Rollout:
    """Returns rollouts from fixed states of MuJoCo, which stay on the host.

    Args:
      simulator: the task.
      states: to begin with, MuJoCo's. [E, S].

    Returns:
      `(what is seen there[E, D], policy, T) -> (what is seen after 1 to T steps[T, E, D],
      rewards[T, E])`.
    """
    held = states

    def begin() -> None:
        nonlocal held
        held = states

    def step(actions: Array) -> tuple[np.ndarray, np.ndarray]:
        nonlocal held
        steps = simulator.step(held, np.asarray(actions))
        held = steps.states
        return steps.observations.astype(np.float32), steps.rewards.astype(np.float32)

    def rollout(shown: Array, policy: Policy, num_steps: int) -> tuple[Array, Array]:
        shapes = (
            jax.ShapeDtypeStruct(shown.shape, jnp.float32),
            jax.ShapeDtypeStruct(shown.shape[:1], jnp.float32),
        )

        def move(shown, _):
            found = io_callback(step, shapes, policy(shown), ordered=True)
            return found[0], found

        io_callback(begin, None, ordered=True)
        return jax.lax.scan(move, shown, None, length=num_steps)[1]

    return rollout
