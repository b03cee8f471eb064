"""Find text in a suffix array of tokens, exactly, whatever tokens its borders fall into.

A passage may begin inside a token and end inside one, and the tokens between may be any that spell it.
The search follows all of these at once, level by level; since each corpus is tokenised in one way, all
but a few die out after two or three tokens.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .index_search import Integers, Part, Ranges
from .index_spelling import Spelling


@dataclass(frozen=True)
class Passages:
    """Where a text occurs in a part: intervals of its suffix array; four equal-length arrays."""

    low: Integers
    high: Integers
    depth: Integers
    """Tokens that the text touches."""
    skip: Integers
    """Bytes of the first token that come before the text."""

    @property
    def count(self) -> int:
        """How often the text occurs."""
        return int((self.high - self.low).sum())

    def positions(self, part: Part) -> tuple[Integers, Integers, Integers]:
        """Return first token (within the part), token count and skipped bytes of every occurrence.

        In order of the text; three equal-length arrays.
        """
        starts = [part.suffixes[low:high] for low, high in zip(self.low, self.high, strict=True)]
        starts = np.concatenate([np.empty(0, np.int64), *starts])
        counts = self.high - self.low
        order = np.argsort(starts, kind="stable")
        return starts[order], np.repeat(self.depth, counts)[order], np.repeat(self.skip, counts)[order]


def find_passages(part: Part, spelling: Spelling, text: bytes) -> Passages:
    """Return every occurrence of ``text`` in ``part``, overlapping ones too; never across documents."""
    assert text

    @lru_cache(None)
    def next_tokens(done: int) -> tuple[Integers, Integers]:
        """Return the tokens that may follow once ``done`` bytes are spelled, and the bytes spelled then."""
        tokens = np.array(spelling.continuations(text[done:]), np.int64)
        return tokens, np.minimum(done + spelling.size_of[tokens], len(text))

    begin = np.array(spelling.beginnings(text), np.int64).reshape(-1, 2)
    tokens, skip = begin[:, 0], begin[:, 1]
    done = np.minimum(spelling.size_of[tokens] - skip, len(text))
    everything = Ranges(
        np.zeros_like(tokens), np.full_like(tokens, len(part.suffixes)), np.zeros_like(tokens)
    )
    ranges = part.narrow(everything, tokens)
    found: list[tuple[Integers, ...]] = []
    while True:
        alive = ranges.low < ranges.high
        whole = alive & (done == len(text))
        found.append((ranges.low[whole], ranges.high[whole], ranges.depth[whole], skip[whole]))
        rows = np.flatnonzero(alive & ~whole)
        if not len(rows):
            break
        following = [next_tokens(int(spelled)) for spelled in done[rows]]
        rows = np.repeat(rows, [len(tokens) for tokens, _ in following])
        tokens = np.concatenate([tokens for tokens, _ in following])
        done = np.concatenate([spelled for _, spelled in following])
        skip = skip[rows]
        ranges = part.narrow(Ranges(ranges.low[rows], ranges.high[rows], ranges.depth[rows]), tokens)
    return Passages(*(np.concatenate(column) for column in zip(*found, strict=True)))
