"""Search in one part of the index: a suffix array over a run of whole documents.

All positions of a query go through the binary search together, as NumPy arrays, so that a thousand
positions cost about as many Python steps as one. Each keeps how many tokens it shares with both ends
of its interval and compares only from there on (Manber and Myers, 1993).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# Past the end of the query, and past the end of the part: below every token, and the query's below the
# text's, so that a query sorts before every suffix that it begins.
QUERY_END = -2
PART_END = -1
NEVER = 1 << 40

BLOCK_TOKENS = 8
WIDEST_BLOCK_TOKENS = 256


@dataclass(frozen=True)
class Ranges:
    """Intervals ``low .. high`` (high excluded) of a part's suffix array; three equal-length arrays.

    All suffixes of one interval share their first ``depth`` tokens.
    """

    low: Integers
    high: Integers
    depth: Integers


class Part:
    """A suffix array and its text, both memory-mapped.

    Arguments:
        tokens: (n,) unsigned integers, the text.
        suffixes: (n,) int32, the starts of all suffixes of ``tokens`` in lexicographic order.
        first: (vocabulary + 1,) int64, where in ``suffixes`` those that begin with each token start.
    """

    def __init__(self, tokens: NDArray[Any], suffixes: NDArray[Any], first: NDArray[Any]):
        assert len(tokens) == len(suffixes) == first[-1]
        self.tokens = tokens
        self.suffixes = suffixes
        self.first = first

    def beginning(self, tokens: Integers) -> Ranges:
        """Return the intervals of the suffixes that begin with each of ``tokens``; empty for no token."""
        known = (tokens >= 0) & (tokens < len(self.first) - 1)
        row = np.where(known, tokens, 0)
        low = self.first[row].astype(np.int64)
        return Ranges(low, np.where(known, self.first[row + 1], low), np.ones_like(low))

    def token_at(self, positions: Integers) -> Integers:
        """Return the tokens at ``positions`` (any shape), ``PART_END`` past the end."""
        inside = positions < len(self.tokens)
        found = self.tokens[np.where(inside, positions, 0)].astype(np.int64)
        return np.where(inside, found, PART_END)

    def longest(self, query: Integers, positions: Integers) -> tuple[Integers, Integers]:
        """Return how many tokens of ``query[i:]`` the part contains verbatim, for all ``i`` at once.

        Arguments:
            query: (Q,) tokens; ``NEVER`` where a match must not go on.
            positions: (P,) the ``i`` that are asked for.

        Returns:
            (P,) lengths in tokens, and (P,) where in the suffix array ``query[i:]`` would stand.
        """
        padded = np.append(query, QUERY_END)
        begin = self.beginning(query[positions])
        low, high = begin.low.copy(), begin.high.copy()
        # Tokens shared with the suffix just below `low` and with the one at `high`; inside the interval
        # of the first token any suffix shares that one, outside of it none.
        known = (low < high).astype(np.int64)
        shared_low, shared_high = np.zeros_like(low), np.zeros_like(low)
        while len(rows := np.flatnonzero(low < high)):
            middle = (low[rows] + high[rows]) // 2
            shared, below = self._compare(
                self.suffixes[middle].astype(np.int64),
                padded,
                positions[rows],
                np.maximum(known[rows], np.minimum(shared_low[rows], shared_high[rows])),
            )
            up, down = rows[below], rows[~below]
            low[up], shared_low[up] = middle[below] + 1, shared[below]
            high[down], shared_high[down] = middle[~below], shared[~below]
        return np.maximum(shared_low, shared_high), low

    def nearby(
        self, query: Integers, position: int, length: int, *, rank: int, limit: int
    ) -> NDArray[np.int64]:
        """Return where some occurrences of ``query[position : position + length]`` begin.

        Of the suffixes around ``rank``, where the query would stand, at most ``limit`` on either side.
        """
        ranks = np.arange(max(0, rank - limit), min(len(self.suffixes), rank + limit))
        starts = self.suffixes[ranks].astype(np.int64)
        padded = np.append(query[position : position + length], QUERY_END)
        shared, _ = self._compare(starts, padded, np.zeros_like(starts), np.zeros_like(starts))
        return starts[shared >= length]

    def _compare(
        self, starts: Integers, padded: Integers, positions: Integers, shared: Integers
    ) -> tuple[Integers, NDArray[np.bool_]]:
        """Compare suffixes with query suffixes of which the first ``shared`` tokens are known to agree.

        Returns:
            (rows,) tokens in common, and (rows,) whether the part's suffix sorts below the query's.
        """
        shared = shared.copy()
        below = np.zeros(len(starts), np.bool_)
        rows, width = np.arange(len(starts)), BLOCK_TOKENS
        while len(rows):
            ahead = shared[rows, None] + np.arange(width)
            theirs = self.token_at(starts[rows, None] + ahead)
            ours = padded[np.minimum(positions[rows, None] + ahead, len(padded) - 1)]
            differs = theirs != ours
            first = differs.argmax(axis=1)
            decided = differs[np.arange(len(rows)), first]
            shared[rows] += np.where(decided, first, width)
            below[rows] = (theirs < ours)[np.arange(len(rows)), first]
            rows, width = rows[~decided], min(2 * width, WIDEST_BLOCK_TOKENS)
        return shared, below

    def narrow(self, ranges: Ranges, tokens: Integers) -> Ranges:
        """Return the intervals of those suffixes that go on with ``tokens`` (one for each interval)."""
        return Ranges(
            self._lower_bound(ranges, tokens), self._lower_bound(ranges, tokens + 1), ranges.depth + 1
        )

    def _lower_bound(self, ranges: Ranges, tokens: Integers) -> Integers:
        """Return in each interval the first suffix whose next token is not below the wanted one."""
        low, high = ranges.low.copy(), ranges.high.copy()
        while len(rows := np.flatnonzero(low < high)):
            middle = (low[rows] + high[rows]) // 2
            below = self.token_at(self.suffixes[middle] + ranges.depth[rows]) < tokens[rows]
            low[rows[below]] = middle[below] + 1
            high[rows[~below]] = middle[~below]
        return low
