"""Networks as functions of a configuration and a plain tree of parameters."""

from bellmax.agents.networks import flow, mlp, value
from bellmax.agents.networks.checkpoints import load_config, load_pretrained, save_pretrained
from bellmax.agents.networks.transformer import (
    Cache,
    TransformerConfig,
    apply,
    decode_step,
    hidden_states,
    init,
    init_cache,
    num_parameters,
    stack_layers,
    unembedding,
    unstack_layers,
)

__all__ = [
    "Cache",
    "TransformerConfig",
    "apply",
    "decode_step",
    "flow",
    "hidden_states",
    "init",
    "init_cache",
    "load_config",
    "load_pretrained",
    "mlp",
    "num_parameters",
    "save_pretrained",
    "stack_layers",
    "unembedding",
    "unstack_layers",
    "value",
]
