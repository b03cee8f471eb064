"""Encoding by pieces gives the tokens of ``tokenizers`` itself, also where the two split text differently."""

import numpy as np
import pytest
from conftest import ODD_TEXTS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from mobillama.data import pieces
from mobillama.data.recipe import TokenizerSection
from mobillama.data.vocabulary import train_tokenizer

END = "<|endoftext|>"
# A letter of Unicode 17: a letter to the regex module, and to tokenizers a sign that joins others.
NEW_LETTER = "\U0001e6c0"
assert pieces._PIECE.findall(f"{NEW_LETTER}!") == [NEW_LETTER, "!"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level BPE that has learnt to join the new letter with what follows it."""
    texts = [f"{NEW_LETTER}! said the {NEW_LETTER}! of it, don't we'll" for _ in range(50)] + list(ODD_TEXTS)
    return train_tokenizer(iter(texts), TokenizerSection(vocab_size=500))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of our encoder."""
    return np.frombuffer(pieces.encoder(tokenizer, np.dtype("<u2"))(text), dtype="<u2").tolist()


@pytest.mark.parametrize(
    "text", [*ODD_TEXTS, "", " ", "\n\n a\n", f"a {NEW_LETTER}! b", f"{END} {NEW_LETTER} {END}"]
)
def test_tokens_are_those_of_the_library(tokenizer: Tokenizer, text: str):
    tokens = encode(tokenizer, text)
    tokenizer.encode_special_tokens = True
    assert tokens == tokenizer.encode(text).ids
    assert tokenizer.token_to_id(END) not in tokens
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text


def test_a_tokenizer_that_splits_or_normalises_otherwise_is_used_as_it_is():
    other = Tokenizer(models.BPE(unk_token="?"))
    other.normalizer = normalizers.Lowercase()
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    other.train_from_iterator(
        ["one two three ab12"] * 9, trainers.BpeTrainer(vocab_size=60, special_tokens=["?", END])
    )
    text = f"One TWO ab12 {END}"
    tokens = encode(other, text)
    other.encode_special_tokens = True
    assert tokens == other.encode(text).ids
    assert other.token_to_id(END) not in tokens


def test_garbage_cannot_fill_memory(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pieces, "PIECES_KEPT", 3)
    text = " ".join(f"w{n}" for n in range(50))
    known = pieces._Pieces(lambda piece: piece.encode())
    assert b"".join(map(known.__getitem__, pieces._PIECE.findall(text))) == text.encode()
    assert len(known) == 3
