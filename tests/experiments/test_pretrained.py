"""Runs that begin from a folder in Hugging Face's layout, and leave their policies in one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from bellmax.agents import networks
from bellmax.experiments import align, align_stages, errors, mesh, pretrained, reason


@pytest.fixture
def groups(tmp_path, save_checkpoint, pairs_file):
    """The groups of a run on pairs that begins from a checkpoint, as it is."""
    save_checkpoint(tmp_path / "model")
    return {
        "model": {"checkpoint": str(tmp_path / "model")},
        "data": {"source": "jsonl", "path": str(pairs_file), "tokenizer": ""},
        "train": {"warm_start_steps": 0},
    }


def loaded(keys):
    return pretrained.network_shape(keys, 258), pretrained.load(keys, mesh.make_mesh())


def test_a_policy_is_written_as_it_came(tmp_path, groups, tiny_config):
    source, written = tmp_path / "model", tmp_path / "policies" / "logistic"
    (source / "generation_config.json").write_text('{"temperature": 0.7}')
    with safetensors.safe_open(source / "model.safetensors", "numpy") as file:
        where = dict.fromkeys(file.keys(), "model-00001-of-00001.safetensors")
    (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    index = json.dumps({"weight_map": where})
    (source / "model.safetensors.index.json").write_text(index)
    keys = tiny_config(**groups).model
    network, start = loaded(keys)
    pretrained.save(keys, network, start, written)
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in written.iterdir()} == names
    for name in names - {"model.safetensors"}:
        found, expected = ((folder / name).read_text() for folder in (written, source))
        assert json.loads(found) == json.loads(expected)
    policies = [networks.load_pretrained(folder)[1] for folder in (written, source)]
    jax.tree.map(np.testing.assert_array_equal, *policies)


@pytest.mark.parametrize("said", ["generation_config.json", "config.json"])
def test_completions_end_where_the_checkpoint_says(tmp_path, groups, tiny_config, said):
    """<|im_end|> is 257, which a base model of that vocabulary has never learnt to end with."""
    source, config = tmp_path / "model", tiny_config(**groups)
    assert pretrained.make_tokenizer(config).end_id == 257
    described = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(described | {"eos_token_id": 257}))
    (source / said).write_text(json.dumps(described | {"eos_token_id": [256, 257]}))
    assert pretrained.make_tokenizer(config).end_id == 256
    named = dataclasses.replace(config.data, end_token="<|im_end|>")
    tokenizer = pretrained.make_tokenizer(dataclasses.replace(config, data=named))
    assert tokenizer.end_id == 257
    # Whoever samples from the policy stops where it has learnt to.
    network, start = loaded(config.model)
    pretrained.save(config.model, network, start, tmp_path / "policy", tokenizer=tokenizer)
    for name in {said, "config.json"}:
        assert json.loads((tmp_path / "policy" / name).read_text())["eos_token_id"] == 257


def test_a_policy_keeps_the_tokenizer_it_has_learnt(tmp_path, groups, tiny_config):
    other = tmp_path / "other.json"
    (tmp_path / "model" / "tokenizer.json").rename(other)
    config = tiny_config(**groups | {"data": groups["data"] | {"tokenizer": str(other)}})
    tokenizer = pretrained.make_tokenizer(config)
    network, start = loaded(config.model)
    pretrained.save(config.model, network, start, tmp_path / "policy", tokenizer=tokenizer)
    assert (tmp_path / "policy" / "tokenizer.json").read_bytes() == other.read_bytes()


def test_without_a_checkpoint_nothing_is_written(tmp_path, tiny_config):
    keys = tiny_config().model
    assert pretrained.load(keys, mesh.make_mesh()) is None
    pretrained.save(keys, pretrained.network_shape(keys, 6), {}, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_a_policy_is_written_in_the_precision_it_computed_with(tmp_path, groups, tiny_config):
    config = tiny_config(**groups | {"model": groups["model"] | {"compute_dtype": "bfloat16"}})
    network, start = loaded(config.model)
    params = jax.tree.map(lambda leaf: leaf + 1e-3, start)
    pretrained.save(config.model, network, params, tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tmp_path / "half/model.safetensors").stat().st_size < (
        0.6 * (tmp_path / "model/model.safetensors").stat().st_size
    )
    # Eight bits: the relative error of rounding is at most 2 to the -8.
    read = networks.load_pretrained(tmp_path / "half")[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), read, params)


def test_the_reference_says_what_the_checkpoint_says(tmp_path, groups, tiny_config):
    """Log-probabilities of a pair's completion, by the network on unpadded text."""
    run = align_stages.prepare(tiny_config(**groups), tmp_path)
    chosen, _ = align_stages.cached_reference(run, pretrained.load(run.config.model, run.mesh))
    network, params = networks.load_pretrained(tmp_path / "model")
    pairs = run.data.train
    for row in range(3):
        prompt, completion = list(pairs.prompt_tokens(row)), list(pairs.chosen_tokens(row))
        tokens = jnp.array([prompt + completion])
        log_probs = jax.nn.log_softmax(networks.apply(network, params, tokens)[0])
        places = np.arange(len(prompt) - 1, tokens.shape[1] - 1)
        expected = log_probs[places, np.array(completion)].sum()
        assert chosen[row] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_runs_begin_and_end_in_such_folders(tmp_path, groups, tiny_config, tiny_reason_config):
    # So small a rate moves nothing but what is 0.
    slow = {"learning_rate": 1e-30, "warmup_steps": 0}
    rows = align.train(tiny_config(**groups, optimizer=slow), tmp_path)
    assert rows[0]["kl/reference"] == pytest.approx(0, abs=1e-6)
    groups["train"] |= {"judge_steps": 1, "num_evaluation_prompts": 2, "max_new_tokens": 4}
    config = tiny_reason_config(**groups, optimizer=slow, loss={"judge": "pairwise"})
    assert len(reason.train(config, tmp_path / "duels")) == 1 + len(config.loss.names)
    assert not (tmp_path / "checkpoints" / "warm_start").exists()
    expected = networks.load_pretrained(tmp_path / "model")[1]
    for folder in (tmp_path, tmp_path / "duels"):
        for policy in (folder / "policies").iterdir():
            found = networks.load_pretrained(policy)[1]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-20), found, expected)


def test_a_dry_run_reads_no_weights(tmp_path, groups, tiny_config):
    (tmp_path / "model" / "model.safetensors").unlink()
    keys = tiny_config(**groups).model
    assert pretrained.network_shape(keys, 258).embed_dim == 8
    with pytest.raises(errors.UserError, match=r"vocabulary of 300 tokens.* one of 301"):
        pretrained.network_shape(keys, 301)
    with pytest.raises(errors.UserError, match=r"model\.safetensors is not there"):
        loaded(keys)


def test_what_cannot_begin_is_refused(tmp_path, groups, tiny_config):
    with pytest.raises(errors.UserError, match=r"must be at least 1 without config\.model\.ch"):
        align_stages.prepare(tiny_config(train={"warm_start_steps": 0}), tmp_path)
    groups["data"]["tokenizer"] = "byte"
    with pytest.raises(errors.UserError, match=r"must be empty or a tokenizer\.json where"):
        align_stages.prepare(tiny_config(**groups), tmp_path)
    groups["model"]["checkpoint"] = str(tmp_path / "nowhere")
    with pytest.raises(errors.UserError, match=r"nowhere' cannot be read: .*config\.json"):
        align_stages.prepare(tiny_config(**groups), tmp_path)
