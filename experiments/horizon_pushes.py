"""The maze moved by pushes of half a second, 25 steps of ExoRL's.

So long a push makes a difference that small networks can learn.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.envs import maze

# Five steps of a tenth of a second to a push.
PHYSICS = maze.EXORL._replace(time_step=0.1)
_HELD = 5
# Environments side by side, and pushes after which all begin anew.
_NUM_ENVIRONMENTS, _EPISODE = 64, 100


def advance(
    states: Float[Array, "*B 4"], policy: Callable[[Array], Array], *, reacts: bool = False
) -> Float[Array, "*B 4"]:
    """Returns the states half a second later.

    Args:
      states: in metres and metres per second. [..., 4].
      policy: `states[..., 4] -> actions[..., 2]`.
      reacts: whether the policy is asked every tenth of a second; else its first push is held.

    Returns:
      States. [..., 4].
    """
    held = policy(states)

    def moved(_, states):
        return maze.next_state(states, policy(states) if reacts else held, PHYSICS)

    # A loop, which compiles in a fifth of the time.
    return jax.lax.fori_loop(0, _HELD, moved, states)


def collect(num_transitions: int, key: PRNGKeyArray) -> maze.Transitions:
    """Pushes 64 masses around at random, from everywhere in the maze.

    Args:
      num_transitions: how many, a multiple of 64.
      key: randomness; consumed.

    Returns:
      Transitions, in metres and metres per second.

    Raises:
      ValueError: the number is no multiple.
    """
    if num_transitions < 1 or num_transitions % _NUM_ENVIRONMENTS:
        raise ValueError(
            f"num_transitions must be a multiple of {_NUM_ENVIRONMENTS}, got {num_transitions}."
        )

    def begun(key):
        first, second = jax.random.split(key)
        states = maze.sample_states(first, _NUM_ENVIRONMENTS, PHYSICS, speed=0.05)
        return states, jax.random.normal(second, (_NUM_ENVIRONMENTS, 2))

    def step(carry, number):
        start_key, push_key = jax.random.split(jax.random.fold_in(key, number))
        states, wander = jax.lax.cond(
            number % _EPISODE == 0, lambda _: begun(start_key), lambda held: held, carry
        )
        # A random walk of pushes whose deviation stays 1.
        fresh = jax.random.normal(push_key, wander.shape)
        actions = jnp.clip(wander, -1.0, 1.0)
        moved = advance(states, lambda _: actions)
        wander = 0.5 * wander + 0.75**0.5 * fresh
        return (moved, wander), maze.Transitions(states, actions, moved)

    numbers = jnp.arange(num_transitions // _NUM_ENVIRONMENTS)
    start = (jnp.zeros((_NUM_ENVIRONMENTS, 4)), jnp.zeros((_NUM_ENVIRONMENTS, 2)))
    found = jax.jit(lambda: jax.lax.scan(step, start, numbers)[1])()
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), found)
