"""Shapes of published language models by size: what `--model_size` of a dry run takes.

0.5b and 1.5b are Qwen2.5; 7b, 13b and 70b are Llama 2. The numbers are those of the models'
`config.json` files:

    huggingface.co/Qwen/Qwen2.5-0.5B    huggingface.co/meta-llama/Llama-2-7b-hf
    huggingface.co/Qwen/Qwen2.5-1.5B    huggingface.co/meta-llama/Llama-2-13b-hf
                                        huggingface.co/meta-llama/Llama-2-70b-hf

References:
  Qwen Team, Qwen2.5 technical report, 2024. https://arxiv.org/abs/2412.15115
  Touvron et al., Llama 2, 2023. https://arxiv.org/abs/2307.09288
"""

from bellmax.agents import networks
from bellmax.experiments import config as config_lib

# What every large model is trained with: products in bfloat16, one compiled layer for all, and
# activations recomputed layer by layer.
_LARGE = {"compute_dtype": "bfloat16", "remat": True, "scan_layers": True}
_QWEN = {
    "vocab_size": 151_936,
    "num_kv_heads": 2,
    "tied_embeddings": True,
    "rope_theta": 1e6,
    "norm_epsilon": 1e-6,
    "attention_bias": True,
    **_LARGE,
}
_LLAMA = {
    "vocab_size": 32_000,
    "head_dim": 128,
    "tied_embeddings": False,
    "rope_theta": 1e4,
    "norm_epsilon": 1e-5,
    **_LARGE,
}

SIZES: dict[str, networks.TransformerConfig] = {
    "0.5b": networks.TransformerConfig(
        num_layers=24, num_heads=14, head_dim=64, embed_dim=896, mlp_dim=4864, **_QWEN
    ),
    "1.5b": networks.TransformerConfig(
        num_layers=28, num_heads=12, head_dim=128, embed_dim=1536, mlp_dim=8960, **_QWEN
    ),
    "7b": networks.TransformerConfig(
        num_layers=32, num_heads=32, num_kv_heads=32, embed_dim=4096, mlp_dim=11_008, **_LLAMA
    ),
    "13b": networks.TransformerConfig(
        num_layers=40, num_heads=40, num_kv_heads=40, embed_dim=5120, mlp_dim=13_824, **_LLAMA
    ),
    "70b": networks.TransformerConfig(
        num_layers=80, num_heads=64, num_kv_heads=8, embed_dim=8192, mlp_dim=28_672, **_LLAMA
    ),
}


def shape(name: str) -> networks.TransformerConfig:
    """Returns the shape of a published model.

    Args:
      name: a key of `SIZES`; upper case is the same.

    Returns:
      The shape, with bfloat16 products, scanned layers and recomputed activations.

    Raises:
      UserError: there is no such size; the nearest is suggested.
    """
    if name.lower() not in SIZES:
        raise config_lib.unknown("--model_size", name, SIZES)
    return SIZES[name.lower()]
