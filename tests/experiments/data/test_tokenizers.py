"""Round trips of the three tokenizers, and the errors of bad files."""

import numpy as np
import pytest
import tokenizers as hf_tokenizers

from bellmax.experiments import errors
from bellmax.experiments.data import tokenizers


def random_text(seed):
    generator = np.random.default_rng(seed)
    points = generator.integers(0, 0x110000, 200)
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


@pytest.mark.parametrize("text", ["", "a\x00b\r\n", "雪 ß 🙂", *map(random_text, range(5))])
def test_bytes_lose_nothing(text):
    tokenizer = tokenizers.ByteTokenizer()
    ids = tokenizer.encode(text)
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.end_id, tokenizer.pad_id]) == text


def test_byte_specials_are_no_bytes():
    tokenizer = tokenizers.ByteTokenizer()
    assert {tokenizer.end_id, tokenizer.pad_id} == {256, 257}
    assert tokenizer.vocab_size == 258


def test_a_cut_character_decodes_to_the_replacement_character():
    tokenizer = tokenizers.ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("a雪")[:-1]) == "a\ufffd"


def test_characters_are_numbered_by_the_alphabet():
    tokenizer = tokenizers.CharacterTokenizer("abcde")
    assert tokenizer.encode("cabbage".replace("g", "e")) == [2, 0, 1, 1, 0, 4, 4]
    assert (tokenizer.end_id, tokenizer.pad_id, tokenizer.vocab_size) == (5, 5, 6)
    assert tokenizer.decode([2, 0, 1, 5, 5]) == "cab"


def test_unknown_character_is_named():
    with pytest.raises(errors.UserError, match=r"'z'.*'abc'"):
        tokenizers.CharacterTokenizer("abc").encode("abz")


@pytest.mark.parametrize("ids", [[6], [-1]])
def test_unknown_ids_are_refused(ids):
    with pytest.raises(ValueError, match="from 0 to 5"):
        tokenizers.CharacterTokenizer("abcde").decode(ids)


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_bad_alphabets_are_refused(alphabet):
    with pytest.raises(ValueError, match="alphabet"):
        tokenizers.CharacterTokenizer(alphabet)


def save_tokenizer(path, special_tokens):
    """Saves a byte-level BPE whose file asks for special tokens, cutting and padding."""
    tokenizer = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE())
    tokenizer.pre_tokenizer = hf_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf_tokenizers.decoders.ByteLevel()
    trainer = hf_tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special_tokens,
        initial_alphabet=hf_tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 20, trainer)
    if special_tokens:
        tokenizer.post_processor = hf_tokenizers.processors.TemplateProcessing(
            single=f"{special_tokens[0]} $A", special_tokens=[(special_tokens[0], 0)]
        )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(path))
    return str(path)


def test_hugging_face_round_trip(tmp_path):
    path = save_tokenizer(tmp_path / "tokenizer.json", ["<s>", "</s>", "<pad>"])
    tokenizer = tokenizers.make_tokenizer(path)
    text = "the cat sat\n\n on 雪, twice  "
    ids = tokenizer.encode(text)
    # Neither the file's template nor its truncation and padding have a say.
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)
    assert (tokenizer.end_id, tokenizer.pad_id) == (1, 2)
    assert max(ids) < tokenizer.vocab_size
    # Its merges were used: fewer tokens than bytes.
    assert len(ids) < len(text.encode())
    assert tokenizer.decode([*ids, 1, 2, 2]) == text


def test_hugging_face_end_token_may_be_named(tmp_path):
    path = save_tokenizer(tmp_path / "tokenizer.json", ["<stop>"])
    assert tokenizers.HuggingFaceTokenizer(path, end_token="<stop>").end_id == 0
    # Without a padding token the end token pads: masks leave it out.
    assert tokenizers.HuggingFaceTokenizer(path, end_token="<stop>").pad_id == 0
    with pytest.raises(errors.UserError, match=r"tokenizer\.json has no token that ends"):
        tokenizers.make_tokenizer(path)


def test_bad_tokenizer_specs_are_named(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(errors.UserError, match=r"broken\.json is not a tokenizer\.json"):
        tokenizers.make_tokenizer(str(broken))
    with pytest.raises(errors.UserError, match=r"no tokenizer file .*none\.json"):
        tokenizers.HuggingFaceTokenizer(tmp_path / "none.json")
    with pytest.raises(errors.UserError, match="'byts'"):
        tokenizers.make_tokenizer("byts")
    with pytest.raises(errors.UserError, match="characters:aba"):
        tokenizers.make_tokenizer("characters:aba")


def test_make_tokenizer_by_name():
    assert isinstance(tokenizers.make_tokenizer("byte"), tokenizers.ByteTokenizer)
    assert tokenizers.make_tokenizer("characters:a:b").encode(":ba") == [1, 2, 0]
