"""Grouped-query attention with rotary positions, over a block of tokens or over a cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Far below any score and finite, so that a row with nothing to attend to gives a mean and not NaN.
_MASKED_SCORE = -1e30


def rotary_angles(
    positions: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T 1 H"], Float[Array, "B T 1 H"]]:
    """Returns cosines and sines that rotate the two halves of a head's vector.

    Args:
      positions: position of each token. [B, T].
      head_dim: size H of a head, even.
      theta: base of the wavelengths.

    Returns:
      Cosine and sine, the half repeated, float32. [B, T, 1, H] each.

    References:
      Su et al., RoFormer, 2021. https://arxiv.org/abs/2104.09864
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    vectors: Float[Array, "B T N H"], cos: Float[Array, "B T 1 H"], sin: Float[Array, "B T 1 H"]
) -> Float[Array, "B T N H"]:
    """Rotates the first half of each vector against the second, as Llama checkpoints expect.

    Args:
      vectors: queries or keys. [B, T, N, H].
      cos: from `rotary_angles`. [B, T, 1, H].
      sin: from `rotary_angles`. [B, T, 1, H].

    Returns:
      Rotated vectors in the dtype of `vectors`. [B, T, N, H].
    """
    first, second = jnp.split(vectors.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (vectors * cos + turned * sin).astype(vectors.dtype)


def attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B ..."],
    values: Float[Array, "B ..."],
    visible: Array,
    *,
    head_major: bool = False,
) -> Float[Array, "B T N H"]:
    """Returns softmax attention in which every N / M query heads share one key head.

    Args:
      queries: [B, T, N, H].
      keys: [B, S, M, H], with M dividing N; [B, M, S, H] if `head_major`.
      values: laid out as `keys`.
      visible: true where a query may see a key. [B, T, S].
      head_major: whether keys and values have their heads before their tokens, as a cache has:
        one token's queries then meet a matrix of keys that lies together in memory.

    Returns:
      Weighted values in the dtype of `values`; scores and softmax are float32. [B, T, N, H].

    References:
      Ainslie et al., GQA, 2023. https://arxiv.org/abs/2305.13245
    """
    batch, length, num_heads, head_dim = queries.shape
    num_kv_heads = keys.shape[1 if head_major else 2]
    stored = "bmsh" if head_major else "bsmh"
    grouped = queries.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = jnp.einsum(f"btmgh,{stored}->bmgts", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores * head_dim**-0.5, _MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    mixed = jnp.einsum(f"bmgts,{stored}->btmgh", weights, values)
    return mixed.reshape(batch, length, num_heads, head_dim)


class Attention(nn.Module):
    """Grouped-query self-attention.

    Attributes:
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: size of a head, even.
      output_scale: standard deviation of the output projection's start, relative to 1 /
        sqrt(fan-in).
      dtype: compute dtype.
      bias: whether queries, keys and values have one.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    output_scale: float
    dtype: jnp.dtype
    bias: bool = False

    @nn.compact
    def __call__(self, inputs, cache, rotary, visible, slot):
        """Attends over the block itself, or over a cache into which the block is written at `slot`.

        Args:
          inputs: [B, T, D].
          cache: (keys, values), each [B, M, S, H], or None.
          rotary: cosine and sine of the block's positions.
          visible: true where a token of the block may see a key. [B, T, T], or [B, T, S] with a
            cache.
          slot: where in the cache the block begins; unused without one.

        Returns:
          Outputs [B, T, D] and the new cache, or None.
        """
        batch, length, embed_dim = inputs.shape
        # One row a token: XLA's CPU gradient of a kernel is slow over two contracting axes.
        rows = inputs.reshape(batch * length, embed_dim)

        def project(name: str, heads: int):
            dense = nn.Dense(
                heads * self.head_dim,
                use_bias=self.bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
                name=name,
            )
            return dense(rows).reshape(batch, length, heads, self.head_dim)

        queries = rotate(project("query", self.num_heads), *rotary)
        keys = rotate(project("key", self.num_kv_heads), *rotary)
        values = project("value", self.num_kv_heads)
        if cache is not None:
            keys, values = cache = tuple(
                jax.lax.dynamic_update_slice_in_dim(
                    old, jnp.swapaxes(new, 1, 2).astype(old.dtype), slot, axis=2
                )
                for old, new in zip(cache, (keys, values), strict=True)
            )
        mixed = attend(queries, keys, values, visible, head_major=cache is not None)
        output = nn.Dense(
            embed_dim,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(self.output_scale, "fan_in", "normal"),
            name="output",
        )
        outputs = output(mixed.reshape(batch * length, self.num_heads * self.head_dim))
        return outputs.reshape(batch, length, embed_dim), cache
