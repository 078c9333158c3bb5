"""Text to token ids and back: bytes, the letters of an alphabet, or a Hugging Face tokenizer."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from bellmax.experiments import errors

# Names under which published tokenizers keep the token that ends a completion, the likelier first.
END_TOKENS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|end|>",
    "[SEP]",
)
PAD_TOKENS = ("<pad>", "<|pad|>", "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>")


class Tokenizer(Protocol):
    """What the pipeline needs of a tokenizer; no method adds special tokens of its own.

    Attributes:
      vocab_size: number of ids, 0 to vocab_size - 1.
      pad_id: id that fills rows; masks leave it out, so it may be the end token's.
      end_id: id that ends a completion.
    """

    vocab_size: int
    pad_id: int
    end_id: int

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without an end token."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; end and padding tokens are left out."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255, then the end token and padding: any text, without loss."""

    vocab_size = 258
    end_id = 256
    pad_id = 257

    def encode(self, text: str) -> list[int]:
        """Returns the UTF-8 bytes of a text."""
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; bytes that are no UTF-8 (a cut character) become U+FFFD.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        return bytes(i for i in _checked(ids, self.vocab_size) if i < 256).decode(errors="replace")


class CharacterTokenizer:
    """One id a character of a small alphabet; the end token follows them and serves as padding.

    Args:
      alphabet: the characters, each once; the first has id 0.

    Raises:
      ValueError: `alphabet` is empty or repeats a character.
    """

    def __init__(self, alphabet: str):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(f"alphabet must be different characters, got {alphabet!r}.")
        self.alphabet = alphabet
        self.end_id = self.pad_id = len(alphabet)
        self.vocab_size = len(alphabet) + 1
        self._ids = {character: i for i, character in enumerate(alphabet)}

    def encode(self, text: str) -> list[int]:
        """Returns one id a character.

        Raises:
          UserError: a character is not in the alphabet.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise errors.UserError(
                f"The character {error.args[0]!r} is not in the tokenizer's alphabet "
                f"{self.alphabet!r}; it is in the text {text[:60]!r}."
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the characters of ids.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        return "".join(self.alphabet[i] for i in _checked(ids, self.vocab_size) if i < self.end_id)


class HuggingFaceTokenizer:
    """A tokenizer.json, as the `tokenizers` library reads it.

    Special tokens are not added, since the pipeline adds the end token where it belongs; those
    spelt out in a text are recognised.

    Args:
      path: a tokenizer.json.
      end_token: the token that ends a completion, or its id; None for the first of `END_TOKENS`
        that the vocabulary has.

    Attributes:
      path: the file.

    Raises:
      UserError: the file is missing or no tokenizer, or has no such end token.
    """

    def __init__(self, path: str | pathlib.Path, end_token: str | int | None = None):
        # Imported here: most runs are byte-level and need no tokenizer library.
        import tokenizers

        if not pathlib.Path(path).is_file():
            raise errors.UserError(f"There is no tokenizer file {path}.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises a bare Exception on a malformed file.
            raise errors.UserError(f"{path} is not a tokenizer.json ({error}).") from None
        # Cutting and padding belong to the pipeline, whatever the file says.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.path = pathlib.Path(path)
        if isinstance(end_token, int):
            named = self._tokenizer.id_to_token(end_token)
            candidates = (f"the id {end_token}" if named is None else named,)
        else:
            candidates = END_TOKENS if end_token is None else (end_token,)
        end_id = self._first_id(candidates)
        if end_id is None:
            raise errors.UserError(
                f"{path} has no token that ends a completion; looked for: {', '.join(candidates)}."
            )
        pad_id = self._first_id(PAD_TOKENS)
        self.end_id = end_id
        self.pad_id = end_id if pad_id is None else pad_id
        # Ids may have gaps (added tokens above a padded vocabulary): the largest one counts.
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def _first_id(self, names: Sequence[str]) -> int | None:
        ids = (self._tokenizer.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special tokens are left out.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        drop = {self.end_id, self.pad_id}
        return self._tokenizer.decode([i for i in _checked(ids, self.vocab_size) if i not in drop])


def _checked(ids: Iterable[int], vocab_size: int) -> list[int]:
    ids = [int(i) for i in ids]
    for i in ids:
        if not 0 <= i < vocab_size:
            raise ValueError(f"ids must be from 0 to {vocab_size - 1}, got {i}.")
    return ids


def make_tokenizer(spec: str) -> Tokenizer:
    """Makes the tokenizer that a config names.

    Args:
      spec: "byte", "characters:LETTERS", or the path of a tokenizer.json.

    Returns:
      The tokenizer.

    Raises:
      UserError: the letters repeat, or there is no such file.
    """
    if spec == "byte":
        return ByteTokenizer()
    kind, colon, alphabet = spec.partition(":")
    if kind == "characters" and colon:
        try:
            return CharacterTokenizer(alphabet)
        except ValueError as error:
            raise errors.UserError(f"The tokenizer {spec!r} cannot be made: {error}") from None
    if not pathlib.Path(spec).exists():
        raise errors.UserError(
            f"The tokenizer must be 'byte', 'characters:LETTERS' or the path of a tokenizer.json; "
            f"there is no file {spec!r}."
        )
    return HuggingFaceTokenizer(spec)
