"""Value networks: an observation to one law of returns an action."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Params = Any


@dataclasses.dataclass(frozen=True)
class ValueNetworkConfig:
    """Shape of a value network; hashable, and checked when it is made.

    Attributes:
      observation_shape: of one observation; [height, width, channels] with convolutions.
      num_actions: actions A.
      num_outputs: numbers K an action: atoms' logits, or quantiles.
      hidden_sizes: widths of the hidden layers after the convolutions.
      conv_channels: channels of each convolution, without padding; () for none.
      conv_kernels: their sides; () for 3 everywhere.
      conv_strides: their strides; () for 1 everywhere.
      observation_scale: observations are multiplied by it, as by 1 / 255 for images of bytes.
      dueling: split into a value and advantages that average to 0 over the actions.
      noisy: learn the scale of Gaussian noise on the dense layers' weights, which explores.
    """

    observation_shape: tuple[int, ...]
    num_actions: int
    num_outputs: int
    hidden_sizes: tuple[int, ...] = (128,)
    conv_channels: tuple[int, ...] = ()
    conv_kernels: tuple[int, ...] = ()
    conv_strides: tuple[int, ...] = ()
    observation_scale: float = 1.0
    dueling: bool = False
    noisy: bool = False

    def __post_init__(self):
        for name in ("num_actions", "num_outputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("conv_kernels", "conv_strides"):
            given = len(getattr(self, name))
            if given not in (0, len(self.conv_channels)):
                raise ValueError(
                    f"{name} must hold one number for each of {len(self.conv_channels)} "
                    f"conv_channels, or none, got {given}."
                )
        lists = ("observation_shape", "hidden_sizes", "conv_channels", "conv_kernels")
        for name in (*lists, "conv_strides"):
            sizes = getattr(self, name)
            if any(size < 1 for size in sizes):
                raise ValueError(f"{name} must hold sizes of at least 1, got {sizes}.")
        if self.conv_channels and len(self.observation_shape) != 3:
            raise ValueError(
                "observation_shape must be [height, width, channels] with conv_channels, got "
                f"{self.observation_shape}."
            )
        sides = self.observation_shape[:2]
        for _, side, stride in self.convolutions():
            sides = tuple((size - side) // stride + 1 for size in sides)
        if min(sides, default=1) < 1:
            raise ValueError(
                f"observation_shape must be large enough for the convolutions, got "
                f"{self.observation_shape}."
            )

    def convolutions(self) -> list[tuple[int, int, int]]:
        """Returns channels, side and stride of every convolution."""
        count = len(self.conv_channels)
        sides, strides = self.conv_kernels or (3,) * count, self.conv_strides or (1,) * count
        return list(zip(self.conv_channels, sides, strides, strict=True))


class _Convolution(nn.Module):
    """A square convolution without padding, as one product of patches.

    Mapped over seeds that have their own kernels, XLA's convolution becomes a grouped one, which is
    an order of magnitude slower on CPU.

    Attributes:
      features: channels of the output.
      side: of the kernel.
      stride: between patches.
    """

    features: int
    side: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, images):
        """Returns the filtered images. [B, H, W, C] to [B, H', W', features]."""
        channels = images.shape[3]
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(),
            (self.side, self.side, channels, self.features),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        ends = [size - self.side + 1 for size in images.shape[1:3]]
        rows, columns = (
            [slice(first, first + end, self.stride) for first in range(self.side)] for end in ends
        )
        patches = jnp.concatenate(
            [images[:, row, column] for row in rows for column in columns], axis=-1
        )
        return patches @ kernel.reshape(-1, self.features) + bias


def _factor(key: PRNGKeyArray, size: int) -> Array:
    noise = jax.random.normal(key, (size,))
    return jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))


class _NoisyDense(nn.Module):
    """A dense layer whose weights have factorised Gaussian noise of a scale that is learnt.

    Attributes:
      features: width of the output.
    """

    features: int

    @nn.compact
    def __call__(self, inputs, key):
        """Returns the outputs; without a key those of the mean weights. [B, D] to [B, features]."""
        width = inputs.shape[-1]
        # Initial values of Fortunato et al., section 3.2, for factorised noise.
        bound = width**-0.5

        def uniform(key, shape):
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        spread = nn.initializers.constant(0.5 * bound)
        kernel = self.param("kernel", uniform, (width, self.features))
        bias = self.param("bias", uniform, (self.features,))
        kernel_scale = self.param("kernel_scale", spread, (width, self.features))
        bias_scale = self.param("bias_scale", spread, (self.features,))
        if key is not None:
            input_key, output_key = jax.random.split(key)
            outer = _factor(output_key, self.features)
            kernel = kernel + kernel_scale * _factor(input_key, width)[:, None] * outer
            bias = bias + bias_scale * outer
        return inputs @ kernel + bias


class _ValueNetwork(nn.Module):
    """The Linen module; [B, *observation_shape] to [B, A, K]."""

    config: ValueNetworkConfig

    @nn.compact
    def __call__(self, observations, key=None):
        """Returns the outputs of every action. [B, A, K]."""
        config = self.config
        hidden = observations * config.observation_scale
        for place, (channels, side, stride) in enumerate(config.convolutions()):
            layer = _Convolution(channels, side, stride, name=f"conv_{place}")
            hidden = nn.relu(layer(hidden))
        hidden = hidden.reshape(hidden.shape[0], -1)
        keys = iter([None] * (len(config.hidden_sizes) + 2))
        if key is not None:
            keys = iter(jax.random.split(key, len(config.hidden_sizes) + 2))

        def dense(size, name, inputs):
            if config.noisy:
                return _NoisyDense(size, name=name)(inputs, next(keys))
            return nn.Dense(size, name=name)(inputs)

        for place, size in enumerate(config.hidden_sizes):
            hidden = nn.relu(dense(size, f"hidden_{place}", hidden))
        count = config.num_actions * config.num_outputs
        outputs = dense(count, "output", hidden)
        outputs = outputs.reshape(-1, config.num_actions, config.num_outputs)
        if not config.dueling:
            return outputs
        value = dense(config.num_outputs, "value", hidden)[:, None]
        return value + outputs - outputs.mean(axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def init(config: ValueNetworkConfig, key: PRNGKeyArray) -> Params:
    """Returns fresh parameters: Flax's defaults, LeCun normal kernels and biases at 0.

    Noisy layers begin as their paper says.

    Args:
      config: the network's shape.
      key: randomness; consumed.

    Returns:
      A nested dict of float32 arrays.
    """
    observation = jnp.zeros((1, *config.observation_shape), jnp.float32)
    return _ValueNetwork(config).init(key, observation)["params"]


def apply(
    config: ValueNetworkConfig,
    params: Params,
    observations: Float[Array, "..."],
    key: PRNGKeyArray | None = None,
) -> Float[Array, "... A K"]:
    """Returns the outputs of every action.

    Args:
      config: the network's shape.
      params: its parameters.
      observations: [..., *observation_shape].
      key: randomness of noisy layers, one draw for all rows; consumed. None for the mean weights.

    Returns:
      Outputs: logits of atoms, or quantiles. [..., A, K].

    Raises:
      ValueError: the observations have another shape.

    References:
      Wang et al., Dueling Network Architectures, 2015. https://arxiv.org/abs/1511.06581
      Fortunato et al., Noisy Networks for Exploration, 2017. https://arxiv.org/abs/1706.10295
    """
    own = len(config.observation_shape)
    leading = observations.shape[: observations.ndim - own]
    if observations.shape[len(leading) :] != config.observation_shape:
        raise ValueError(
            f"observations must end in {config.observation_shape}, got {observations.shape}."
        )
    rows = observations.reshape(-1, *config.observation_shape)
    outputs: Any = _ValueNetwork(config).apply({"params": params}, rows, key)
    return outputs.reshape(*leading, config.num_actions, config.num_outputs)
