"""Which spans of a text stand verbatim in the training data, longest first, each with its documents.

Source: the idea of OLMoTrace (Liu et al., 2025, arXiv 2504.07096). Here a span is exact in bytes, covers
whole words, and its occurrences are counted, not estimated.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, takewhile

import numpy as np

from mobillama.core.errors import UserError

from .index import Index, Match, Occurrence

# Shorter matches are common phrases rather than memory.
MIN_TOKENS = 8
# How many tokens around an occurrence are compared at the borders of a span.
BORDER_TOKENS = 8
# Never part of UTF-8.
NO_TEXT = b"\xff"


@dataclass(frozen=True)
class Span:
    """A piece of the text that stands in the training data, and where.

    Attributes:
        start, stop: characters of the text, the last one excluded.
        count: how often the piece stands in the training data.
        occurrences: the first of these places.
    """

    start: int
    stop: int
    count: int
    occurrences: list[Occurrence]


@dataclass(frozen=True)
class Trace:
    """A text and its spans, longest first.

    Attributes:
        covered: characters that lie in any span found, also in those beyond the limit.
        found: how many spans there are, also beyond the limit.
    """

    text: str
    spans: list[Span]
    covered: int
    found: int


def trace(
    index: Index, text: str, *, min_tokens: int = MIN_TOKENS, limit: int = 10, places: int = 5
) -> Trace:
    """Return the longest spans of ``text`` in the training data; none lies within another.

    A span may lack its first or last word where the text is tokenised otherwise than the training data: if it
    lies beside a longer span, or is so short that what is between stands in more places than are tried.

    Arguments:
        min_tokens: least length of a match, in tokens, to be looked at.
        limit: how many spans to return.
        places: how many occurrences of each to return; all are counted.

    Raises:
        UserError: the tokenizer does not keep the text as it is, so that it cannot be compared.
    """
    tokens = np.array(index.corpus.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    encoded = text.encode()
    if index.spelling.decode(tokens.tolist()) != encoded:
        raise UserError("the corpus's tokenizer changes this text, so it cannot be compared; give plain text")
    ends = np.concatenate([[0], np.cumsum(index.spelling.size_of[tokens])])
    borders = word_borders(text)
    spans = outermost(
        whole_words(borders, *span)
        for match in index.matches(tokens, min_tokens)
        for span in stretched(index, encoded, match, int(ends[match.first]), int(ends[match.stop]))
    )
    longest = sorted(spans, key=lambda span: (span[0] - span[1], span[0]))[:limit]
    character = characters(text)
    found = [
        Span(int(character[start]), int(character[stop]), *index.occurrences(encoded[start:stop], places))
        for start, stop in longest
    ]
    covered = np.zeros(len(text), np.bool_)
    for start, stop in spans:
        covered[character[start] : character[stop]] = True
    return Trace(text, found, int(covered.sum()), len(spans))


def stretched(index: Index, encoded: bytes, match: Match, start: int, stop: int) -> set[tuple[int, int]]:
    """Return a match, given in bytes, each time with the bytes around it that one occurrence shares as well.

    At its ends the text may be tokenised otherwise than the training data, so a match of tokens may
    stop short by part of a word.
    """
    spans = {(start, stop)}
    before, after = encoded[:start], encoded[stop:]
    for subset, place in match.starts:
        end = place + match.stop - match.first
        left = shared(before[::-1], text_of(index, subset, place - BORDER_TOKENS, place)[::-1])
        right = shared(after, text_of(index, subset, end, end + BORDER_TOKENS))
        spans.add((start - left, stop + right))
    return spans


def text_of(index: Index, subset: str, start: int, stop: int) -> bytes:
    """Return the bytes of some tokens of a stream; a byte that no text has ends each document."""
    stream = index.corpus.tokens(subset)
    tokens = stream.read(max(0, start), min(stop, len(stream))).tolist()
    return b"".join([index.spelling.bytes_of[token] or NO_TEXT for token in tokens])


def shared(ours: bytes, theirs: bytes) -> int:
    """Return how many first bytes two texts have in common."""
    equal = (a == b for a, b in zip(ours, theirs, strict=False))
    return sum(takewhile(bool, equal))


def word_borders(text: str) -> np.ndarray:
    """Return the byte positions, ascending, at which a word may begin or end."""
    inside = [left.isalnum() and right.isalnum() for left, right in pairwise(text)]
    sizes = np.cumsum([0, *(len(character.encode()) for character in text)])
    return sizes[np.flatnonzero(~np.array([False, *inside, False])[: len(sizes)])]


def whole_words(borders: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Return a span, in bytes, cut to whole words; empty where nothing is left."""
    first = int(borders[np.searchsorted(borders, start, "left")])
    last = int(borders[np.searchsorted(borders, stop, "right") - 1])
    return first, max(first, last)


def outermost(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans that are not empty and lie within no other, in order."""
    kept: list[tuple[int, int]] = []
    for start, stop in sorted(set(spans), key=lambda span: (span[0], -span[1])):
        if start < stop and (not kept or stop > kept[-1][1]):
            kept.append((start, stop))
    return kept


def characters(text: str) -> np.ndarray:
    """Return for each byte position of ``text`` (and its end) how many characters begin before it."""
    data = np.frombuffer(text.encode(), np.uint8)
    return np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
