"""What a step would take on a TPU v5e slice, from the bytes its program sends and published rates.

Assumptions, none of them measured here:

- The matrix units run at their published peak, and collectives at the published bandwidth of all
  four links of a chip. Both are limits: times are lower bounds, throughputs upper ones.
- Bytes are those of the program that XLA compiles for as many simulated hosts, halved: hosts
  compute bfloat16 in float32 and send it so, and the compiler for v5e sends it as bfloat16
  (gathered parameters and summed gradients alike, as its program for v5e:16x16 shows).
- Memory is read and written once a step for the state; activations are not counted there.
- Two bounds frame what is unknown: collectives wholly behind computation, and not at all.

References:
  Google Cloud, TPU v5e. https://cloud.google.com/tpu/docs/v5e
"""

from typing import Any, NamedTuple

from bellmax.agents import networks
from bellmax.experiments import dry_run

_HOST_BYTES_OVER_CHIP_BYTES = 2.0
# Of a parameter: AdamW reads it, its reference and two averages, and writes all but the reference,
# float32.
_STATE_BYTES = 4 * (4 + 3)


class Chip(NamedTuple):
    """Published rates of one chip.

    Attributes:
      flops: bfloat16 operations a second.
      memory: bytes.
      memory_rate: bytes a second.
      link_rate: bytes a second that a chip receives over all of its links.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float


# 197 TFLOP/s, 16 GB at 819 GB/s, 1600 Gbit/s between chips.
V5E = Chip(197e12, 16e9, 819e9, 1600e9 / 8)


class Operations(NamedTuple):
    """Operations of a step over all devices.

    Attributes:
      model: of the mathematics: policy forward and backward, reference forward.
      computed: those and the recomputed activations.
    """

    model: float
    computed: float


def operations(shape: networks.TransformerConfig, params: int, pairs: int, length: int):
    """Returns the operations of a preference step with a live reference.

    With P parameters in products, N tokens, L layers and W the width of all heads: 8 P N, and
    16 L N T W of attention, whose whole square is computed; a quarter of both again to recompute.

    Args:
      shape: the network's.
      params: its parameters, the embedding included.
      pairs: pairs of completions, over all devices.
      length: tokens T of each.

    Returns:
      The operations.
    """
    tokens = 2 * pairs * (length - 1)
    products = params - (0 if shape.tied_embeddings else shape.vocab_size * shape.embed_dim)
    attention = shape.num_layers * tokens * length * shape.num_heads * shape.head_dim
    model = 8.0 * products * tokens + 16.0 * attention
    return Operations(model, model * (1.25 if shape.remat else 1.0))


def row(
    name: str,
    shape: networks.TransformerConfig,
    params: int,
    found: dict[str, Any],
    request: dict[str, Any],
    chip: Chip = V5E,
) -> dict[str, Any]:
    """Projects one step.

    Args:
      name: of the model.
      shape: its network.
      params: its parameters.
      found: `received`, bytes that a simulated host receives in a step, and `needs`, its memory.
      request: `data`, `fsdp`, `tensor`, `pairs` and `length`.
      chip: published rates.

    Returns:
      A row of a table.
    """
    devices = request["data"] * request["fsdp"] * request["tensor"]
    counted = operations(shape, params, request["pairs"], request["length"])
    compute = counted.computed / devices / chip.flops
    memory = _STATE_BYTES * params / (request["fsdp"] * request["tensor"]) / chip.memory_rate
    links = found["received"] / _HOST_BYTES_OVER_CHIP_BYTES / chip.link_rate
    hidden, shown = max(compute + memory, links), compute + memory + links
    tokens = 2 * request["pairs"] * request["length"]
    model = counted.model / devices / chip.flops
    return {
        "model": name,
        "data x fsdp x tensor": f"{request['data']} x {request['fsdp']} x {request['tensor']}",
        "pairs x tokens": f"{request['pairs']} x {request['length']}",
        "state a chip": dry_run.readable(found["state"]),
        "host's plan": dry_run.readable(found["needs"]),
        "compute s": compute,
        "memory s": memory,
        "links s": links,
        "step s": f"{hidden:.3g}-{shown:.3g}",
        "tokens/s": f"{tokens / shown:,.0f}-{tokens / hidden:,.0f}",
        "of peak": f"{model / shown:.0%}-{model / hidden:.0%}",
    }
