"""Checkpoints in Hugging Face's layout: read, written, and refused where they do not fit."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bellmax.agents import networks

CONFIG = networks.TransformerConfig(
    vocab_size=11,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    embed_dim=16,
    mlp_dim=20,
    rope_theta=5000.0,
    norm_epsilon=1e-5,
)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 9))


def random_params(config, seed=0):
    """Everything random: fresh norms and biases would hide what is mixed up."""
    shapes = jax.eval_shape(functools.partial(networks.init, config), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )


def logits(config, params):
    return np.asarray(jax.jit(networks.apply, static_argnums=0)(config, params, TOKENS))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_written_is_read(tmp_path, tied, scanned, bias):
    config = dataclasses.replace(
        CONFIG, tied_embeddings=tied, scan_layers=scanned, attention_bias=bias
    )
    params = random_params(config)
    networks.save_pretrained(tmp_path / "new", config, params)
    read_config, read = networks.load_pretrained(tmp_path / "new", scan_layers=scanned)
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(read))


def test_names_are_hugging_faces(tmp_path):
    config = dataclasses.replace(CONFIG, tied_embeddings=False, attention_bias=True)
    params = random_params(config)
    networks.save_pretrained(tmp_path, config, params)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert len(tensors) == len(jax.tree.leaves(params))
    # Matrices are [outputs, inputs] there.
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (12, 16)
    np.testing.assert_array_equal(
        tensors["model.layers.1.mlp.down_proj.weight"].T,
        params["layers_1"]["mlp"]["down"]["kernel"],
    )
    assert tensors["lm_head.weight"].shape == (11, 16)
    assert tensors["model.layers.0.self_attn.v_proj.bias"].shape == (12,)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_hugging_face_is_the_same_function(tmp_path, kind):
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    transformers = pytest.importorskip("transformers", reason="needs the extra 'peers'")
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }[kind]
    torch.manual_seed(0)
    theirs = model_class(
        config_class(
            vocab_size=11,
            hidden_size=24,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            tie_word_embeddings=kind != "llama",
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            **({"sliding_window": None} if kind == "mistral" else {}),
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="4KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    config, params = networks.load_pretrained(tmp_path / "theirs")
    assert config.attention_bias == (kind == "qwen2")
    np.testing.assert_allclose(logits(config, params), expected, rtol=1e-4, atol=1e-4)
    # And back: what is written here is read there.
    networks.save_pretrained(tmp_path / "ours", config, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        np.testing.assert_allclose(
            again(torch.tensor(TOKENS)).logits.numpy(), expected, rtol=1e-4, atol=1e-4
        )


def test_half_precision_files_become_float32(tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(CONFIG))
    networks.save_pretrained(tmp_path, CONFIG, params)
    config, read = networks.load_pretrained(tmp_path, compute_dtype="bfloat16")
    assert config.compute_dtype == "bfloat16"
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(read))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float32(b)), read, params)


@pytest.fixture
def saved(tmp_path):
    networks.save_pretrained(tmp_path, CONFIG, random_params(CONFIG))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gemma"}, "model_type = 'gemma'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window = 4096"),
        ({"hidden_size": None}, "hidden_size must be an integer"),
        ({"intermediate_size": 21}, r"mlp.gate_proj.weight must have shape \(21, 16\)"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2.input_layernorm.weight"),
    ],
)
def test_what_does_not_fit_is_named(saved, change, named):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=named):
        networks.load_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        networks.load_pretrained(saved)


def test_a_cap_on_logits_cannot_be_written(tmp_path):
    config = dataclasses.replace(CONFIG, logit_softcap=30.0)
    with pytest.raises(ValueError, match="logit_softcap must be None"):
        networks.save_pretrained(tmp_path, config, random_params(config))
