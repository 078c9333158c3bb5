"""Tasks of a family of policies, as vectors on a sphere: how they are drawn and scaled."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def on_sphere(vectors: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
    """Returns vectors scaled to length sqrt(W); 0 stays 0.

    Args:
      vectors: [..., W].

    Returns:
      The scaled vectors. [..., W].
    """
    # The floor keeps a vector of 0 and its gradient finite.
    square = jnp.maximum(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True), 1e-16)
    return vectors * (vectors.shape[-1] ** 0.5 * jax.lax.rsqrt(square))


def sample_tasks(key: PRNGKeyArray, count: int, size: int) -> Float[Array, "count W"]:
    """Draws tasks uniformly from the sphere of radius sqrt(W).

    Args:
      key: randomness; consumed.
      count: how many.
      size: their size W.

    Returns:
      Tasks. [count, W].
    """
    return on_sphere(jax.random.normal(key, (count, size)))


def training_tasks(
    key: PRNGKeyArray,
    rows: Int[Array, " B"],
    embeddings: Float[Array, "N W"],
    weight: Float[Array, " N"],
    *,
    state_fraction: float,
) -> Float[Array, "B W"]:
    """Draws a task for each example: to reach some state of a pool, or uniform on the sphere.

    Args:
      key: randomness; consumed.
      rows: number of each example; equal numbers give equal tasks, on any layout of devices.
      embeddings: B of the pool's states. [N, W].
      weight: of the pool's states, which are drawn in proportion to it. [N].
      state_fraction: probability of a state's task.

    Returns:
      Tasks on the sphere of radius sqrt(W). [B, W].
    """
    size = embeddings.shape[-1]
    bounds = jnp.cumsum(weight)

    def draw(row):
        keys = jax.random.split(jax.random.fold_in(key, row), 3)
        # The first whose bound is above: never a state of weight 0.
        place = jnp.searchsorted(bounds, jax.random.uniform(keys[0]) * bounds[-1], side="right")
        state = embeddings[jnp.minimum(place, weight.shape[0] - 1)]
        anywhere = jax.random.normal(keys[1], (size,))
        return jnp.where(jax.random.uniform(keys[2]) < state_fraction, state, anywhere)

    return on_sphere(jax.vmap(draw)(rows))
