"""What bytes each token stands for, so that search by tokens can answer for text.

The same passage is tokenised differently at its borders: "cat sat" alone begins with `cat`, in a
sentence with ` cat`, and `sat` may go on as `satin`. Inside a passage nothing changes. So the index
holds tokens (a quarter of the size of an index of bytes) and every border is settled by bytes, here.
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from mobillama.core.errors import UserError
from mobillama.engine.tokenizer import byte_alphabet


class Spelling:
    """The bytes of every token of a byte-level vocabulary.

    Arguments:
        tokenizer: the corpus's tokenizer, set to read what spells a special token as plain text.

    Raises:
        UserError: the vocabulary is not byte-level.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        bytes_of = byte_alphabet()
        # Special tokens stand for no text: nothing that is searched may run through one.
        special = {
            identity for identity, added in tokenizer.get_added_tokens_decoder().items() if added.special
        }
        self.bytes_of: list[bytes] = [b""] * tokenizer.get_vocab_size()
        for piece, identity in tokenizer.get_vocab().items():
            if identity in special:
                continue
            try:
                self.bytes_of[identity] = bytes(bytes_of[character] for character in piece)
            except KeyError:
                raise UserError(
                    f"token {piece!r} is not byte-level; only corpora with a byte-level BPE can be searched"
                ) from None
        self.token_of = {spelled: token for token, spelled in enumerate(self.bytes_of) if spelled}
        self.size_of = np.array([len(spelled) for spelled in self.bytes_of], np.int64)
        self.longest_bytes = max(map(len, self.token_of), default=0)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes that ``tokens`` stand for; special tokens stand for none."""
        bytes_of = self.bytes_of
        return b"".join([bytes_of[token] for token in tokens])

    @cached_property
    def _endings(self) -> list[tuple[bytes, int, int]]:
        """All endings of all tokens, sorted: (ending, token, bytes before it)."""
        return sorted(
            (spelled[skip:], token, skip)
            for spelled, token in self.token_of.items()
            for skip in range(len(spelled))
        )

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int, int]]:
        """All tokens in byte order, in the form of ``_endings``."""
        return [entry for entry in self._endings if entry[2] == 0]

    def beginnings(self, text: bytes) -> list[tuple[int, int]]:
        """Return each (token, skip) such that ``text`` can begin after ``skip`` bytes of the token."""
        return [(token, skip) for _, token, skip in agreeing(self._endings, text, self.longest_bytes)]

    def continuations(self, text: bytes) -> list[int]:
        """Return each token that can stand at the beginning of ``text`` or holds it and more."""
        return [token for _, token, _ in agreeing(self._sorted, text, self.longest_bytes)]


def agreeing(
    entries: list[tuple[bytes, int, int]], text: bytes, longest_bytes: int
) -> list[tuple[bytes, int, int]]:
    """Return the entries of a sorted list that begin ``text`` or that ``text`` begins."""
    found = []
    for length in range(1, min(len(text), longest_bytes + 1)):
        at = bisect_left(entries, (text[:length], -1, -1))
        while at < len(entries) and entries[at][0] == text[:length]:
            found.append(entries[at])
            at += 1
    at = bisect_left(entries, (text, -1, -1))
    while at < len(entries) and entries[at][0].startswith(text):
        found.append(entries[at])
        at += 1
    return found
