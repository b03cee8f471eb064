"""Encoding text with a byte-level BPE quickly: each distinct piece once.

A byte-level BPE merges within pieces (a word with its space, a number, punctuation) and never across them, so
a text's tokens are the joined tokens of its pieces, and most pieces of a corpus were seen before. The tokens
are those of ``tokenizers``; a text with characters newer than both libraries know goes to it whole.
"""

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import regex
from tokenizers import Tokenizer

PIECES_KEPT = 1 << 20

# GPT-2's pattern; its \s is Unicode's White_Space, which the regex module reads differently.
_SPACE = r"\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PIECE = regex.compile(
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^{_SPACE}\p{{L}}\p{{N}}]+"
    rf"|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
)
_SPLIT_AS_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def encoder(tokenizer: Tokenizer, dtype: np.dtype[Any]) -> Callable[[str], bytes]:
    """Return the function from a text to its tokens' bytes, without special tokens."""
    tokenizer.encode_special_tokens = True  # text that spells a special token stays text

    def whole(text: str) -> bytes:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=dtype).tobytes()

    parts = json.loads(tokenizer.to_str())
    splits_as_gpt2 = _SPLIT_AS_GPT2.items() <= (parts["pre_tokenizer"] or {}).items()
    if not splits_as_gpt2 or parts["normalizer"] or parts["model"]["type"] != "BPE":
        return whole
    known = _Pieces(whole)
    return lambda text: (
        b"".join(map(known.__getitem__, _PIECE.findall(text))) if is_known(text) else whole(text)
    )


def is_known(text: str) -> bool:
    """Return whether all characters have been in Unicode for long enough to be split the same everywhere."""
    return text.isascii() or all(unicodedata.category(character) != "Cn" for character in set(text))


class _Pieces(dict[str, bytes]):
    """Tokens by piece, encoded when first asked for; bounded, so that garbage text cannot fill memory."""

    def __init__(self, encode: Callable[[str], bytes]):
        super().__init__()
        self._encode = encode

    def __missing__(self, piece: str) -> bytes:
        tokens = self._encode(piece)
        if len(self) < PIECES_KEPT:
            self[piece] = tokens
        return tokens
