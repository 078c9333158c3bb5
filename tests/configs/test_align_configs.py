import io
import pathlib
import re
import tokenize

import pytest

from bellmax.configs.align import base, gpo
from bellmax.experiments import (
    align_config,
    config,
    errors,
    language_config,
    preference_losses,
)

VARIANTS = [None, *gpo.BETAS, *gpo.OTHERS]


@pytest.mark.parametrize("name", config.config_names("align"))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_config_and_variant_is_a_valid_run(name, variant):
    loaded = config.load("align", name if variant is None else f"{name}:{variant}")
    parsed = config.to_dataclass(align_config.AlignConfig, loaded)
    align_config.check(parsed)
    assert set(parsed.loss.names) <= set(preference_losses.PAIR_LOSSES)
    if variant is not None:
        assert parsed.loss.names == (variant,)
    assert max(parsed.data.bucket_lengths) >= parsed.data.max_length
    language_config.make_network(parsed.model, vocab_size=6)


def test_there_is_a_variant_for_every_loss():
    assert set(gpo.BETAS) == set(preference_losses.CONVEX_FUNCTIONS)
    assert set(gpo.BETAS) | set(gpo.OTHERS) == set(preference_losses.PAIR_LOSSES)
    assert config.load("align", "gpo").to_dict()["loss"]["names"] == tuple(gpo.BETAS)


@pytest.mark.parametrize("name", ["gpo", "gpo_hh"])
def test_an_unknown_variant_lists_the_options(name):
    with pytest.raises(errors.UserError) as raised:
        config.load("align", f"{name}:hing")
    for option in (*gpo.BETAS, *gpo.OTHERS):
        assert option in str(raised.value)
    assert "Did you mean 'hinge'?" in str(raised.value)


def test_every_key_is_described_somewhere():
    """A comment beside it, a sentence in a docstring, or a name that says all."""
    plain = {"seed", "num_layers", "num_heads", "head_dim", "embed_dim", "mlp_dim"}
    plain |= {"tied_embeddings", "learning_rate", "warmup_steps", "eps", "b1", "b2"}
    plain |= {"log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints"}
    plain |= {"warm_start_steps", "warm_start_learning_rate", "mesh_fsdp", "mesh_tensor"}
    text = pathlib.Path(base.__file__).read_text()
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    for number, line in enumerate(text.splitlines(), start=1):
        key = re.match(r'\s+"(\w+)": (?!\{)', line)
        if key and key[1] not in plain:
            assert number in commented, f"{key[1]} has no comment"


def test_configs_do_not_share_state():
    config.load("align", "gpo:hinge").update({"model": {"num_layers": 99}})
    assert config.load("align", "gpo:hinge").to_dict()["model"]["num_layers"] != 99
