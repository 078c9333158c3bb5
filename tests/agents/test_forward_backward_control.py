"""Forward-backward representations with networks: control of a point on a circle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import TransitionBatch, forward_backward, task_sphere
from bellmax.agents.networks import mlp

WIDTH, TURN, RING = 6, 0.5, 0.8
ACTOR = mlp.MLPConfig(2 + WIDTH, 1, (32, 32), layer_norm=True, output_tanh=True)
FORWARD = mlp.MLPConfig(3 + WIDTH, WIDTH, (32, 32), layer_norm=True)
BACKWARD = mlp.MLPConfig(2, WIDTH, (32,))


def steer(params, observations, tasks):
    return mlp.apply(ACTOR, params, jnp.concatenate([observations, tasks], axis=-1))


def predict(params, observations, actions, tasks):
    inputs = jnp.concatenate([observations, actions, tasks], axis=-1)
    return mlp.apply_ensemble(FORWARD, params, inputs)


def embed(params, observations):
    return task_sphere.on_sphere(mlp.apply(BACKWARD, params, observations))


def on_circle(angle):
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


@pytest.mark.slow
def test_without_rewards_it_learns_to_go_where_they_are():
    steps = 4000
    agent = forward_backward.make(
        predict,
        embed,
        steer,
        optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
        init_params=lambda key: forward_backward.Networks(
            mlp.init(ACTOR, key), mlp.init_ensemble(FORWARD, key, 2), mlp.init(BACKWARD, key)
        ),
        discount=RING,
        target_decay=0.97,
    )

    def step(number, state):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), number), 3)
        angle = jax.random.uniform(keys[0], (128, 1), maxval=2 * jnp.pi)
        turn = jax.random.uniform(keys[1], (128, 1), minval=-1, maxval=1)
        batch = TransitionBatch(on_circle(angle), turn, on_circle(angle + TURN * turn))
        return agent.update(state, batch, keys[2])[0]

    state = jax.jit(lambda state: jax.lax.fori_loop(0, steps, step, state))(
        agent.init(jax.random.key(0))
    )
    act = agent.act
    assert act is not None
    everywhere = jnp.linspace(-jnp.pi, jnp.pi, 100, endpoint=False)[:, None]
    starts = np.linspace(-np.pi, np.pi, 16, endpoint=False)[:, None]

    @jax.jit
    def mean_return(goal):
        reward = jnp.cos(everywhere[:, 0] - goal)
        task = forward_backward.task_vector(state, on_circle(everywhere), reward, backward=embed)
        tasks = jnp.broadcast_to(task, (16, WIDTH))

        def move(angle, time):
            angle = angle + TURN * act(state, on_circle(angle), None, tasks)
            return angle, RING**time * jnp.cos(angle[:, 0] - goal).mean()

        _, rewards = jax.lax.scan(move, jnp.asarray(starts), jnp.arange(40.0))
        return rewards.sum()

    # The best is to turn towards the goal, and then to stay.
    best, angle = 0.0, starts
    for time in range(40):
        angle = angle - np.clip(angle, -TURN, TURN)
        best += RING**time * np.cos(angle).mean()
    for goal in (0.0, 1.5, 3.0, -1.5):
        assert float(mean_return(goal)) > 0.88 * best
