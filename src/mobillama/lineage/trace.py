"""Which spans of a text stand verbatim in the training data, longest first, each with its documents.

Source: the idea of OLMoTrace (Liu et al., 2025, arXiv 2504.07096). Here a span is exact in bytes, covers
whole words, and its occurrences are counted, not estimated.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mobillama.core.errors import UserError

from .index import Index, Occurrence

# Shorter matches are common phrases rather than memory.
MIN_TOKENS = 8
# How many occurrences are compared at the borders of a span, and how many tokens around each are read.
BORDER_OCCURRENCES = 64
BORDER_TOKENS = 8


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


def trace(index: Index, text: str, *, min_tokens: int = MIN_TOKENS, limit: int = 10, places: int = 5) -> Trace:
    """Return the longest spans of ``text`` in the training data; none lies within another.

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
        for first, stop in maximal(index.longest(tokens), min_tokens)
        for span in stretched(index, encoded, int(ends[first]), int(ends[stop]))
    )
    longest = sorted(spans, key=lambda span: (span[0] - span[1], span[0]))[:limit]
    character = characters(text)
    found = [
        Span(int(character[start]), int(character[stop]), *index.occurrences(encoded[start:stop], places))
        for start, stop in longest
    ]
    return Trace(text, found, covered([(character[start], character[stop]) for start, stop in spans]), len(spans))


def maximal(lengths: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Return the matches ``i .. i + lengths[i]`` of at least ``least`` tokens that no other contains."""
    starts = np.arange(len(lengths))
    stops = starts + lengths
    before = np.maximum.accumulate(np.concatenate([[0], stops[:-1]])) if len(lengths) else stops
    kept = (stops > before) & (lengths >= least)
    return list(zip(starts[kept].tolist(), stops[kept].tolist(), strict=True))


def stretched(index: Index, encoded: bytes, start: int, stop: int) -> set[tuple[int, int]]:
    """Return a match, given in bytes, each time with the bytes around it that one occurrence shares as well.

    At its ends the text may be tokenised otherwise than the training data, so a match of tokens may
    stop short by part of a word.
    """
    spans = {(start, stop)}
    for place in index.occurrences(encoded[start:stop], BORDER_OCCURRENCES)[1]:
        before, after = surroundings(index, place, stop - start)
        left = shared(encoded[:start][::-1], before[::-1])
        right = shared(encoded[stop:], after)
        spans.add((start - left, stop + right))
    return spans


def surroundings(index: Index, place: Occurrence, size_bytes: int) -> tuple[bytes, bytes]:
    """Return the bytes before and after an occurrence of ``size_bytes`` bytes, within its document."""
    stream = index.corpus.tokens(place.subset)
    document = stream.document_at(place.first_token)
    first = max(document.start, place.first_token - BORDER_TOKENS)
    last = min(document.stop, place.last_token + 1 + BORDER_TOKENS)
    lead = index.spelling.decode(stream.read(first, place.first_token).tolist())
    rest = index.spelling.decode(stream.read(place.first_token, last).tolist())
    return lead + rest[: place.skip], rest[place.skip + size_bytes :]


def shared(ours: bytes, theirs: bytes) -> int:
    """Return how many first bytes two texts have in common."""
    length = min(len(ours), len(theirs))
    differing = (at for at in range(length) if ours[at] != theirs[at])
    return next(differing, length)


def word_borders(text: str) -> np.ndarray:
    """Return the byte positions, ascending, at which a word may begin or end."""
    inside = [left.isalnum() and right.isalnum() for left, right in zip(text, text[1:], strict=False)]
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


def covered(spans: Sequence[tuple[int, int]]) -> int:
    """Return how many positions lie in any of ``spans``, which are in order."""
    total, reached = 0, 0
    for start, stop in spans:
        total += max(0, int(stop) - max(int(start), reached))
        reached = max(reached, int(stop))
    return total
