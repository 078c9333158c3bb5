"""Value networks: an observation to one law of returns an action."""

import dataclasses
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
      conv_channels: channels of each 3 x 3 convolution of stride 1; () for none.
      dueling: split into a value and advantages that average to 0 over the actions.
    """

    observation_shape: tuple[int, ...]
    num_actions: int
    num_outputs: int
    hidden_sizes: tuple[int, ...] = (128,)
    conv_channels: tuple[int, ...] = ()
    dueling: bool = False

    def __post_init__(self):
        for name in ("num_actions", "num_outputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("observation_shape", "hidden_sizes", "conv_channels"):
            sizes = getattr(self, name)
            if any(size < 1 for size in sizes):
                raise ValueError(f"{name} must hold sizes of at least 1, got {sizes}.")
        if self.conv_channels and len(self.observation_shape) != 3:
            raise ValueError(
                "observation_shape must be [height, width, channels] with conv_channels, got "
                f"{self.observation_shape}."
            )


class _ValueNetwork(nn.Module):
    """The Linen module; [B, *observation_shape] to [B, A, K]."""

    config: ValueNetworkConfig

    @nn.compact
    def __call__(self, observations):
        """Returns the outputs of every action. [B, A, K]."""
        config = self.config
        hidden = observations
        for place, channels in enumerate(config.conv_channels):
            hidden = nn.relu(
                nn.Conv(channels, (3, 3), padding="VALID", name=f"conv_{place}")(hidden)
            )
        hidden = hidden.reshape(hidden.shape[0], -1)
        for place, size in enumerate(config.hidden_sizes):
            hidden = nn.relu(nn.Dense(size, name=f"hidden_{place}")(hidden))
        count = config.num_actions * config.num_outputs
        outputs = nn.Dense(count, name="output")(hidden)
        outputs = outputs.reshape(-1, config.num_actions, config.num_outputs)
        if not config.dueling:
            return outputs
        value = nn.Dense(config.num_outputs, name="value")(hidden)[:, None]
        return value + outputs - outputs.mean(axis=1, keepdims=True)


def init(config: ValueNetworkConfig, key: PRNGKeyArray) -> Params:
    """Returns fresh parameters: Flax's defaults, LeCun normal kernels and biases at 0.

    Args:
      config: the network's shape.
      key: randomness; consumed.

    Returns:
      A nested dict of float32 arrays.
    """
    observation = jnp.zeros((1, *config.observation_shape), jnp.float32)
    return jax.jit(_ValueNetwork(config).init)(key, observation)["params"]


def apply(
    config: ValueNetworkConfig, params: Params, observations: Float[Array, "..."]
) -> Float[Array, "... A K"]:
    """Returns the outputs of every action.

    Args:
      config: the network's shape.
      params: its parameters.
      observations: [..., *observation_shape].

    Returns:
      Outputs: logits of atoms, or quantiles. [..., A, K].

    Raises:
      ValueError: the observations have another shape.

    References:
      Wang et al., Dueling Network Architectures, 2015. https://arxiv.org/abs/1511.06581
    """
    own = len(config.observation_shape)
    leading = observations.shape[: observations.ndim - own]
    if observations.shape[len(leading) :] != config.observation_shape:
        raise ValueError(
            f"observations must end in {config.observation_shape}, got {observations.shape}."
        )
    rows = observations.reshape(-1, *config.observation_shape)
    outputs: Any = _ValueNetwork(config).apply({"params": params}, rows)
    return outputs.reshape(*leading, config.num_actions, config.num_outputs)
