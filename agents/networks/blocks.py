"""The Linen modules of the transformer, and the configuration that shapes them."""

import dataclasses
import numbers
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bellmax.agents.networks import attention


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a transformer; hashable, and checked when it is made.

    Attributes:
      vocab_size: tokens V.
      num_layers: blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: size of a head, even.
      embed_dim: width D of the residual stream.
      mlp_dim: width of the gated MLP.
      tied_embeddings: whether the unembedding is the transposed embedding.
      rope_theta: base of the rotary wavelengths.
      norm_epsilon: added to the mean square in RMSNorm.
      compute_dtype: "float32" or "bfloat16".
      logit_softcap: c > 0 of the cap c tanh(logits / c); None for none.
      remat: recompute each block's activations in the backward pass.
      scan_layers: compile one block and scan it over the layers.
      attention_bias: whether queries, keys and values have biases, as in Qwen2.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    embed_dim: int
    mlp_dim: int
    tied_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    compute_dtype: str = "float32"
    logit_softcap: float | None = None
    remat: bool = False
    scan_layers: bool = False
    attention_bias: bool = False

    def __post_init__(self):
        sizes = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "embed_dim")
        for name in (*sizes, "mlp_dim"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads = {self.num_heads}, got {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}.")
        for name in ("rope_theta", "norm_epsilon", "logit_softcap"):
            value = getattr(self, name)
            absent = value is None and name == "logit_softcap"
            if not absent and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f'compute_dtype must be "float32" or "bfloat16", got {self.compute_dtype!r}.'
            )


class RMSNorm(nn.Module):
    """Divides by the root mean square, in float32, and multiplies by a learnt scale.

    Attributes:
      epsilon: added to the mean square.

    References:
      Zhang and Sennrich, RMSNorm, 2019. https://arxiv.org/abs/1910.07467
    """

    epsilon: float

    @nn.compact
    def __call__(self, inputs):
        """Returns normed inputs in their own dtype. [..., D]."""
        scale = self.param("scale", nn.initializers.ones, (inputs.shape[-1],))
        wide = inputs.astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(power + self.epsilon) * scale).astype(inputs.dtype)


class GatedMLP(nn.Module):
    """The gated MLP down(silu(gate(x)) * up(x)).

    Attributes:
      config: the network's shape.

    References:
      Shazeer, GLU variants, 2020. https://arxiv.org/abs/2002.05202
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, inputs):
        """Returns outputs in the compute dtype. [B, T, D]."""
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        rows = inputs.reshape(-1, inputs.shape[-1])

        def dense(width: int, name: str, scale: float = 1.0):
            init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
            return nn.Dense(width, use_bias=False, dtype=dtype, kernel_init=init, name=name)

        gated = nn.silu(dense(config.mlp_dim, "gate")(rows)) * dense(config.mlp_dim, "up")(rows)
        outputs = dense(config.embed_dim, "down", _residual_scale(config))(gated)
        return outputs.reshape(inputs.shape)


class Block(nn.Module):
    """One layer: attention and a gated MLP, each after a norm and added to the stream.

    Attributes:
      config: the network's shape.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, inputs, cache, context):
        """Returns the stream [B, T, D] and the layer's new cache; see `attention.Attention`."""
        config = self.config
        attended, cache = attention.Attention(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            output_scale=_residual_scale(config),
            dtype=jnp.dtype(config.compute_dtype),
            bias=config.attention_bias,
            name="attention",
        )(RMSNorm(config.norm_epsilon, name="attention_norm")(inputs), cache, *context)
        hidden = inputs + attended
        normed = RMSNorm(config.norm_epsilon, name="mlp_norm")(hidden)
        return hidden + GatedMLP(config, name="mlp")(normed), cache


class Unembedder(nn.Module):
    """Holds the untied unembedding; logits are made outside, so that a chunked head can be used.

    Attributes:
      shape: D and V.
    """

    shape: tuple[int, int]

    @nn.compact
    def __call__(self):
        """Returns the matrix. [D, V]."""
        return self.param("kernel", nn.initializers.normal(0.02), self.shape)


class Transformer(nn.Module):
    """Embedding, blocks and the last norm: tokens to hidden states.

    Attributes:
      config: the network's shape.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens, positions, visible, cache, slot):
        """Maps tokens to hidden states.

        Args:
          tokens: [B, T].
          positions: positions for the rotary embedding. [B, T].
          visible: true where a token may see a key. [B, T, T], or [B, T, S] with a cache.
          cache: keys and values of all layers, or None: two tuples of L arrays [B, M, S, H], or
            with `scan_layers` two arrays [L, B, M, S, H].
          slot: where in the cache the tokens begin; unused without one.

        Returns:
          Hidden states after the last norm [B, T, D], and the new cache or None.
        """
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        embedder = nn.Embed(
            config.vocab_size,
            config.embed_dim,
            dtype=dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embedder",
        )
        hidden = embedder(tokens)
        rotary = attention.rotary_angles(positions, config.head_dim, config.rope_theta)
        context = (rotary, visible, slot)
        block = nn.remat(Block, prevent_cse=not config.scan_layers) if config.remat else Block
        if config.scan_layers:
            in_axes: Any = (0, nn.broadcast)
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=in_axes,
                length=config.num_layers,
            )
            hidden, cache = scanned(config, name="layers")(hidden, cache, context)
        else:
            caches = []
            for i in range(config.num_layers):
                own = None if cache is None else (cache[0][i], cache[1][i])
                hidden, own = block(config, name=f"layers_{i}")(hidden, own, context)
                caches.append(own)
            cache = None if cache is None else tuple(zip(*caches, strict=True))
        if not config.tied_embeddings:
            Unembedder((config.embed_dim, config.vocab_size), name="unembedder")()
        return RMSNorm(config.norm_epsilon, name="final_norm")(hidden), cache


def _residual_scale(config: TransformerConfig) -> float:
    # Variance, so that the sum of 2 L branches keeps the residual stream's size at the start.
    return 1.0 / (2 * config.num_layers)
