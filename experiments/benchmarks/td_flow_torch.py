"""Temporal-difference flows in PyTorch: what the benchmark `td_flow` compares with, and no more."""

from typing import Any, NamedTuple

import jax
import numpy as np

from bellmax.agents.networks import flow


class Settings(NamedTuple):
    """What both sides share.

    Attributes:
      discount: gamma.
      decay: of the target's moving average.
      num_steps: midpoint steps from 0 to an end.
      learning_rate: of AdamW.
      betas: its decay rates.
      eps: added to the root of its average of squares.
      weight_decay: decoupled, of all parameters.
    """

    discount: float = 0.99
    decay: float = 0.999
    num_steps: int = 10
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-4
    weight_decay: float = 1e-3


SETTINGS = Settings()


class TorchNetwork:
    """The U-shaped network of `networks.flow` in PyTorch, with given parameters.

    Attributes:
      layers: linear layers by the names of ours, such as `down_0.film`.

    Args:
      torch: the library.
      config: the network's shape.
      params: of `networks.flow.init`; copied.
    """

    def __init__(self, torch: Any, config: flow.FlowNetworkConfig, params: Any):
        self._torch, self._config = torch, config
        low, high, count = config.min_frequency, config.max_frequency, config.time_features // 2
        self._frequencies = torch.tensor(np.geomspace(low, high, count, dtype=np.float32))
        self.layers: dict[str, Any] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if path[-1].key != "kernel":
                continue
            owner = params
            for key in path[:-1]:
                owner = owner[key.key]
            linear = torch.nn.Linear(*leaf.shape, bias="bias" in owner)
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(np.asarray(leaf).T))
                if "bias" in owner:
                    linear.bias.copy_(torch.tensor(np.asarray(owner["bias"])))
            self.layers[".".join(key.key for key in path[:-1])] = linear

    def parameters(self) -> list[Any]:
        """Returns all of its tensors."""
        return [tensor for layer in self.layers.values() for tensor in layer.parameters()]

    def _read(self, inputs: Any, name: str, count: int) -> Any:
        for place in range(count):
            inputs = self._torch.nn.functional.mish(self.layers[f"{name}_{place}"](inputs))
        return inputs

    def read_condition(self, condition: Any) -> Any:
        """Returns features of a condition, which no point and time changes."""
        return self._read(condition, "condition", len(self._config.condition_sizes))

    def read_time(self, time: Any) -> Any:
        """Returns features of a time."""
        angles = time[:, None] * self._frequencies
        features = self._torch.cat([angles.sin(), angles.cos()], -1)
        return self._read(features, "time", len(self._config.time_sizes))

    def _stage(self, name: str, inputs: Any, context: Any, size: int) -> Any:
        functional, layers = self._torch.nn.functional, self.layers
        # Flax's epsilon, not PyTorch's.
        hidden = functional.layer_norm(layers[f"{name}.input"](inputs), (size,), eps=1e-6)
        scale, shift = layers[f"{name}.film"](context).chunk(2, -1)
        hidden = layers[f"{name}.output"](functional.mish((1 + scale) * hidden + shift))
        skip = layers.get(f"{name}.skip")
        return hidden + (inputs if skip is None else skip(inputs))

    def __call__(self, point: Any, time_read: Any, condition_read: Any) -> Any:
        """Returns velocities, given what was read of time and condition. [B, D]."""
        context = self._torch.cat([time_read, condition_read], -1)
        hidden, kept = self.layers["point"](point), []
        sizes = list(enumerate(self._config.hidden_sizes))
        for place, size in sizes:
            hidden = self._stage(f"down_{place}", hidden, context, size)
            kept.append(hidden)
        for place, size in reversed(sizes):
            hidden = self._torch.cat([hidden, kept[place]], -1)
            hidden = self._stage(f"up_{place}", hidden, context, size)
        return self.layers["velocity"](hidden)

    def integrate(self, point: Any, condition_read: Any, end: Any) -> Any:
        """Carries points from time 0 to ends of their own by the midpoint rule. [B, D]."""
        step = (end / SETTINGS.num_steps)[:, None]
        for index in range(SETTINGS.num_steps):
            first, middle = ((index + offset) / SETTINGS.num_steps * end for offset in (0.0, 0.5))
            slope = self(point, self.read_time(first), condition_read)
            halfway = point + step / 2 * slope
            point = point + step * self(halfway, self.read_time(middle), condition_read)
        return point


class TorchLearner:
    """An update of TD2-CFM or TD-CFM in PyTorch.

    Attributes:
      network: what is trained.
      target: its moving average.
      squared: whether it is TD2-CFM, which takes no fresh noise.

    Args:
      torch: the library.
      config: the network's shape.
      params: the first ones, of network and target.
      name: `TD2-CFM` or `TD-CFM`.
    """

    def __init__(self, torch: Any, config: flow.FlowNetworkConfig, params: Any, name: str):
        self._torch, self.squared = torch, name == "TD2-CFM"
        self.network, self.target = (TorchNetwork(torch, config, params) for _ in range(2))
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=SETTINGS.learning_rate,
            betas=SETTINGS.betas,
            eps=SETTINGS.eps,
            weight_decay=SETTINGS.weight_decay,
            fused=True,
        )

    def update(self, rows: tuple[Any, Any, Any], draws: tuple[Any, Any, Any, Any]) -> Any:
        """Takes one step.

        Args:
          rows: next states, conditions and next conditions. [B, ...].
          draws: times, noise of the direct path, of the target's flow, and fresh. [B, ...].

        Returns:
          The loss before it.
        """
        torch = self._torch
        next_states, condition, next_condition = rows
        time, direct_noise, noise, fresh = draws
        weight = time[:, None]
        with torch.no_grad():
            read = self.target.read_condition(next_condition)
            if self.squared:
                point = self.target.integrate(noise, read, time)
                boot = self.target(point, self.target.read_time(time), read)
            else:
                end = self.target.integrate(noise, read, torch.ones_like(time))
                point, boot = weight * end + (1 - weight) * fresh, end - fresh
        direct = weight * next_states + (1 - weight) * direct_noise
        reads = self.network.read_time(time), self.network.read_condition(condition)
        first = (self.network(direct, *reads) - (next_states - direct_noise)).square().sum(-1)
        second = (self.network(point, *reads) - boot).square().sum(-1)
        loss = ((1 - SETTINGS.discount) * first + SETTINGS.discount * second).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                self.target.parameters(), self.network.parameters(), 1 - SETTINGS.decay
            )
        return loss.detach()
