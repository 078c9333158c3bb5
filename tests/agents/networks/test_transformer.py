"""The transformer against a NumPy reading of its definition, and against its own symmetries."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import networks
from bellmax.agents.networks import TransformerConfig, attention

CONFIG = TransformerConfig(
    vocab_size=11,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    embed_dim=16,
    mlp_dim=20,
    tied_embeddings=False,
)

apply = jax.jit(networks.apply, static_argnums=0)
init = jax.jit(networks.init, static_argnums=0)


def with_options(**options):
    return dataclasses.replace(CONFIG, **options)


def make_params(config, seed=0):
    """Parameters of the network's shapes but large random values, so that no effect is near 0."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: networks.init(config, jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.4, s.dtype), shapes)


def make_tokens(batch=2, length=7, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (batch, length)))


def paths(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}


def numpy_logits(config, params, tokens):
    """One row of tokens through the network, written from the papers, one position at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2) + config.norm_epsilon) * scale

    def turn(vector, position):
        # Coordinate j of the first half and j of the second are one complex number, which
        # position p turns by p theta^(-2 j / H).
        half = config.head_dim // 2
        number = vector[:half] + 1j * vector[half:]
        angle = position * config.rope_theta ** (-2 * np.arange(half) / config.head_dim)
        number = number * np.exp(1j * angle)
        return np.concatenate([number.real, number.imag])

    stream = [params["embedder"]["embedding"][token] for token in tokens]
    for i in range(config.num_layers):
        layer = params[f"layers_{i}"]
        kernels = {name: leaf["kernel"] for name, leaf in layer["attention"].items()}
        normed = [norm(x, layer["attention_norm"]["scale"]) for x in stream]

        def heads(name, x, kernels=kernels):
            return (x @ kernels[name]).reshape(-1, config.head_dim)

        keys = [[turn(h, s) for h in heads("key", x)] for s, x in enumerate(normed)]
        values = [heads("value", x) for x in normed]
        for t, x in enumerate(normed):
            outputs = []
            for n, query in enumerate(heads("query", x)):
                m = n * config.num_kv_heads // config.num_heads
                scores = [turn(query, t) @ keys[s][m] for s in range(t + 1)]
                weights = np.exp(np.array(scores) / np.sqrt(config.head_dim))
                weights /= weights.sum()
                outputs.append(sum(w * values[s][m] for s, w in enumerate(weights)))
            stream[t] = stream[t] + np.concatenate(outputs) @ kernels["output"]
        for t, x in enumerate(stream):
            y = norm(x, layer["mlp_norm"]["scale"])
            gate, up = y @ layer["mlp"]["gate"]["kernel"], y @ layer["mlp"]["up"]["kernel"]
            stream[t] = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp"]["down"]["kernel"]
    hidden = np.stack([norm(x, params["final_norm"]["scale"]) for x in stream])
    if config.tied_embeddings:
        return hidden @ params["embedder"]["embedding"].T
    return hidden @ params["unembedder"]["kernel"]


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_equals_numpy(num_layers, tied):
    config = with_options(num_layers=num_layers, tied_embeddings=tied, rope_theta=50.0)
    params, tokens = make_params(config), make_tokens()
    logits = apply(config, params, tokens)
    expected = np.stack([numpy_logits(config, params, row) for row in np.asarray(tokens)])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-5)


def test_a_later_token_changes_no_earlier_logits():
    params, tokens = make_params(CONFIG), make_tokens()
    changed = tokens.at[:, 4].set((tokens[:, 4] + 1) % CONFIG.vocab_size)
    before = apply(CONFIG, params, tokens)
    after = apply(CONFIG, params, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (jnp.abs(before[:, 4:] - after[:, 4:]).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize("padding", [(3, 0), (0, 3), (2, 2)], ids=["left", "right", "both"])
@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_padding_changes_no_logits(padding, dtype):
    params, tokens = make_params(CONFIG), make_tokens()
    padded = jnp.pad(tokens, ((0, 0), padding), constant_values=5)
    mask = jnp.pad(jnp.ones(tokens.shape, dtype), ((0, 0), padding))
    real = slice(padding[0], padding[0] + tokens.shape[1])
    logits = apply(CONFIG, params, padded, mask=mask)
    expected = apply(CONFIG, params, tokens)
    np.testing.assert_allclose(logits[:, real], expected, rtol=1e-5, atol=1e-5)
    # What padding holds is never looked at, an id outside the vocabulary included.
    odd_ids = jnp.where(mask != 0, padded, -100)
    other = apply(CONFIG, params, odd_ids, mask=mask)
    np.testing.assert_array_equal(logits[:, real], other[:, real])
    assert jnp.isfinite(other).all()


def test_rows_of_padding_alone_are_finite():
    params, tokens = make_params(CONFIG), make_tokens()
    mask = jnp.zeros(tokens.shape).at[0].set(1)

    def total(params):
        return apply(CONFIG, params, tokens, mask=mask).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_gap_in_the_mask_counts_no_position():
    params, tokens = make_params(CONFIG), make_tokens()
    spread = jnp.insert(tokens, 3, 0, axis=1)
    mask = jnp.ones(spread.shape).at[:, 3].set(0)
    logits = jnp.delete(apply(CONFIG, params, spread, mask=mask), 3, axis=1)
    expected = apply(CONFIG, params, tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_only_differences_of_positions_matter():
    params, tokens = make_params(CONFIG), make_tokens()
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    first = apply(CONFIG, params, tokens, positions=places)
    np.testing.assert_array_equal(first, apply(CONFIG, params, tokens))
    shifted = apply(CONFIG, params, tokens, positions=places + 13)
    np.testing.assert_allclose(first, shifted, rtol=1e-4, atol=1e-4)
    stretched = apply(CONFIG, params, tokens, positions=2 * places)
    assert jnp.abs(first - stretched).max() > 1e-2


def test_rotation_keeps_length_and_relative_position():
    rng = np.random.default_rng(0)
    query, key = jnp.asarray(rng.normal(size=(2, 1, 1, 1, 8)), jnp.float32)

    def product(query_position, key_position):
        turned = [
            attention.rotate(vector, *attention.rotary_angles(jnp.array([[position]]), 8, 100.0))
            for vector, position in ((query, query_position), (key, key_position))
        ]
        np.testing.assert_allclose(jnp.linalg.norm(turned[0]), jnp.linalg.norm(query), rtol=1e-6)
        return jnp.vdot(*turned)

    np.testing.assert_allclose(product(9, 4), product(25, 20), rtol=1e-5)
    assert abs(product(9, 4) - product(4, 9)) > 1e-3


def test_grouped_queries_equal_repeated_keys():
    grouped, full = with_options(num_kv_heads=2), with_options(num_kv_heads=4)
    params, tokens = make_params(grouped), make_tokens()

    def repeat(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not re.search("attention/(key|value)/kernel", name):
            return leaf
        # Query heads 0 and 1 share key head 0, as Hugging Face repeats them.
        heads = leaf.reshape(CONFIG.embed_dim, 2, CONFIG.head_dim)
        return jnp.repeat(heads, 2, axis=1).reshape(CONFIG.embed_dim, -1)

    repeated = jax.tree_util.tree_map_with_path(repeat, params)
    np.testing.assert_allclose(
        apply(grouped, params, tokens),
        apply(full, repeated, tokens),
        rtol=1e-5,
        atol=1e-5,
    )


def test_tied_equals_untied_with_the_same_matrix():
    tied = with_options(tied_embeddings=True)
    params, tokens = make_params(tied), make_tokens()
    untied = {**params, "unembedder": {"kernel": params["embedder"]["embedding"].T}}
    np.testing.assert_array_equal(apply(tied, params, tokens), apply(CONFIG, untied, tokens))
    assert "unembedder" not in networks.init(tied, jax.random.key(0))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_logits_are_hidden_states_times_the_unembedding(tied, softcap):
    config = with_options(tied_embeddings=tied, logit_softcap=softcap)
    params, tokens = make_params(config), make_tokens()
    hidden = networks.hidden_states(config, params, tokens)
    matrix = networks.unembedding(config, params)
    assert hidden.shape == (2, 7, CONFIG.embed_dim)
    assert matrix.shape == (CONFIG.embed_dim, CONFIG.vocab_size)
    expected = np.asarray(hidden) @ np.asarray(matrix)
    if softcap is not None:
        expected = softcap * np.tanh(expected / softcap)
    logits = apply(config, params, tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"remat": True}, {"scan_layers": True}, {"remat": True, "scan_layers": True}]
)
def test_remat_and_scan_change_no_value_and_no_gradient(options):
    config = with_options(**options)
    params, tokens = make_params(CONFIG), make_tokens()

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=1)
    def total(config, params):
        return jnp.sum(jnp.sin(apply(config, params, tokens)))

    plain_value, plain_gradient = total(CONFIG, params)
    own = networks.stack_layers(params) if config.scan_layers else params
    value, gradient = total(config, own)
    if config.scan_layers:
        gradient = networks.unstack_layers(gradient)
    np.testing.assert_allclose(value, plain_value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient,
        plain_gradient,
    )


def test_stacking_layers_is_undone_by_unstacking():
    # More than ten layers: layers_10 comes after layers_9, not after layers_1.
    params = make_params(with_options(num_layers=12))
    stacked = networks.stack_layers(params)
    config = with_options(num_layers=12, scan_layers=True)
    own = jax.eval_shape(lambda: networks.init(config, jax.random.key(0)))
    assert paths(stacked) == paths(own)
    kernel = stacked["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel[10], params["layers_10"]["mlp"]["up"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, networks.unstack_layers(stacked), params)


def test_bfloat16_is_near_float32_and_keeps_what_must_be_float32():
    config = with_options(compute_dtype="bfloat16")
    params, tokens = make_params(CONFIG), make_tokens()
    logits = apply(config, params, tokens)
    exact = apply(CONFIG, params, tokens)
    assert logits.dtype == jnp.float32
    assert networks.hidden_states(config, params, tokens).dtype == jnp.bfloat16
    # bfloat16 has 8 bits: relative errors of 2^-8 add up over a few layers.
    assert jnp.abs(logits - exact).max() < 0.03 * jnp.abs(exact).max()
    assert (logits != exact).any()
    own = jax.eval_shape(lambda: networks.init(config, jax.random.key(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(own))
    gradient = jax.eval_shape(jax.grad(lambda p: apply(config, p, tokens).sum()), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_parameter_paths(scan_layers):
    config = with_options(scan_layers=scan_layers)
    params = jax.eval_shape(lambda: networks.init(config, jax.random.key(0)))
    assert type(params) is dict
    layer = "layers" if scan_layers else r"layers_\d+"
    patterns = {
        "embedder/embedding": (11, 16),
        "unembedder/kernel": (16, 11),
        "final_norm/scale": (16,),
        f"{layer}/(attention|mlp)_norm/scale": (16,),
        f"{layer}/attention/query/kernel": (16, 24),
        f"{layer}/attention/(key|value)/kernel": (16, 12),
        f"{layer}/attention/output/kernel": (24, 16),
        f"{layer}/mlp/(gate|up)/kernel": (16, 20),
        f"{layer}/mlp/down/kernel": (20, 16),
    }
    found = paths(params)
    assert len(found) == 3 + 9 * (1 if scan_layers else CONFIG.num_layers)
    for path, shape in found.items():
        [expected] = [s for pattern, s in patterns.items() if re.fullmatch(pattern, path)]
        stacked = scan_layers and path.startswith("layers/")
        assert shape == ((CONFIG.num_layers, *expected) if stacked else expected), path
    per_layer = 2 * 16 + 16 * 24 + 2 * 16 * 12 + 24 * 16 + 3 * 16 * 20
    total = 2 * 11 * 16 + 16 + CONFIG.num_layers * per_layer
    assert networks.num_parameters(params) == total


def test_initial_sizes():
    config = with_options(vocab_size=200, embed_dim=64, mlp_dim=128)
    params = init(config, jax.random.key(0))
    layer = params["layers_1"]
    for leaf, expected in (
        (params["embedder"]["embedding"], 0.02),
        (params["unembedder"]["kernel"], 0.02),
        (layer["attention"]["query"]["kernel"], 64**-0.5),
        (layer["mlp"]["up"]["kernel"], 64**-0.5),
        # These end a residual branch, of which there are 2 a layer.
        (layer["mlp"]["down"]["kernel"], (128 * 4) ** -0.5),
        (layer["attention"]["output"]["kernel"], (24 * 4) ** -0.5),
    ):
        # The deviation of n samples has a relative error of 1 / sqrt(2 n) < 2%.
        assert float(jnp.std(leaf)) == pytest.approx(expected, rel=0.08)
    np.testing.assert_array_equal(params["final_norm"]["scale"], 1)
    again = init(config, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_same_shapes_compile_once():
    traces = []

    @jax.jit
    def run(params, tokens):
        traces.append(tokens.shape)
        return networks.apply(CONFIG, params, tokens)

    params = make_params(CONFIG)
    eager = networks.apply(CONFIG, params, make_tokens(seed=1))
    run(params, make_tokens(seed=0))
    np.testing.assert_allclose(run(params, make_tokens(seed=1)), eager, rtol=1e-5, atol=1e-5)
    assert len(traces) == 1
    # Hashable and compared by value, so that it can be a static argument.
    assert hash(with_options()) == hash(CONFIG)
    assert with_options() == CONFIG


def test_vmap_over_parameters():
    members = [make_params(CONFIG, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    tokens = make_tokens()
    logits = jax.vmap(lambda params: apply(CONFIG, params, tokens))(stacked)
    for member, own in zip(members, logits, strict=True):
        np.testing.assert_allclose(own, apply(CONFIG, member, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("num_layers", -1),
        ("mlp_dim", 0),
        ("embed_dim", 16.0),
        ("num_heads", None),
        ("num_kv_heads", 3),
        ("head_dim", 5),
        ("rope_theta", 0.0),
        ("rope_theta", None),
        ("norm_epsilon", -1e-6),
        ("logit_softcap", 0.0),
        ("logit_softcap", float("nan")),
        ("compute_dtype", "float16"),
    ],
)
def test_bad_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        with_options(**{field: value})


def test_bad_shapes_name_the_argument():
    params, tokens = make_params(CONFIG), make_tokens()
    with pytest.raises(ValueError, match=r"tokens .*\(7,\)"):
        networks.apply(CONFIG, params, tokens[0])
    with pytest.raises(ValueError, match=r"mask .*\(2, 6\)"):
        networks.apply(CONFIG, params, tokens, mask=jnp.ones((2, 6)))
    with pytest.raises(ValueError, match=r"positions .*\(1, 7\)"):
        networks.apply(CONFIG, params, tokens, positions=jnp.zeros((1, 7), int))
