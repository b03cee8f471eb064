"""Near-duplicates: word 5-gram shingles and their MinHash bands, on whole arrays.

Our own step where datatrove has one, because its signatures call a word tokenizer and a hash function from
Python for every word. Here a document's words are found and hashed with a dozen array operations.
Source: Broder 1997 for MinHash; bands as in datatrove's and FineWeb's settings (14 of 8, 5-grams).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .order import Words, mix

NGRAM_WORDS = 5
BANDS = 14
ROWS = 8
HASH_SEED = 1
BLOCK_SHINGLES = 512
"""Shingles hashed at once: all 112 hashes of a block stay in the processor's cache."""

# ASCII letters fold to lower case, digits stay, other ASCII parts words; bytes of other scripts are letters.
_FOLD = bytes(
    byte if byte >= 128 else ord(chr(byte).lower()) if chr(byte).isalnum() else 0 for byte in range(256)
)
_STEP = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: bytes) -> Words:
    """Return a 64-bit hash of every run of 5 words, in order; of all words where there are fewer."""
    return ngrams(word_hashes(text), NGRAM_WORDS)


def word_hashes(text: bytes) -> Words:
    """Return a 64-bit hash of each word of UTF-8 ``text``, whatever its case and punctuation."""
    letters = np.frombuffer(text.translate(_FOLD), dtype=np.uint8)
    inside = np.concatenate([[False], letters != 0, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, stops = edges[::2], edges[1::2]
    if not starts.size:
        return np.empty(0, dtype=np.uint64)
    lengths = stops - starts
    # A letter's weight depends on its place in the word, so that anagrams differ.
    first_letters = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    kept = letters[letters != 0].astype(np.uint64)
    places = (np.arange(len(kept)) - np.repeat(first_letters, lengths)).astype(np.uint64)
    return mix(np.add.reduceat(mix(kept + places * _STEP), first_letters))


def ngrams(words: Words, size: int) -> Words:
    """Return a hash of each run of ``size`` words."""
    size = min(size, len(words))
    if size == 0:
        return np.empty(0, dtype=np.uint64)
    count = len(words) - size + 1
    total = np.zeros(count, dtype=np.uint64)
    for place in range(size):
        total = mix(total + _STEP + words[place : place + count])
    return total


def bands(hashes: Words) -> Words:
    """Return the 14 band keys of a document's shingles; documents with an equal key are near-duplicates.

    Two documents of Jaccard similarity ``s`` share a key with probability ``1 - (1 - s**8)**14``.
    """
    smallest = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(hashes), BLOCK_SHINGLES):
        hashed = hashes[start : start + BLOCK_SHINGLES] * _FACTORS + _OFFSETS  # (hash functions, shingles)
        smallest = np.minimum(smallest, hashed.min(axis=1))
    rows = smallest.reshape(BANDS, ROWS)
    keys = np.arange(BANDS, dtype=np.uint64)
    for place in range(ROWS):
        keys = mix(keys + _STEP + rows[:, place])
    return keys


def pairs_of_equal(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """Return pairs (first, other), (n, 2), of rows equal in all ``columns``; ``first`` is the earliest."""
    order = np.lexsort(columns)  # stable: equal rows stay in their order
    equal = np.ones(max(0, len(order) - 1), dtype=bool)
    for column in columns:
        ordered = column[order]
        equal &= ordered[1:] == ordered[:-1]
    heads = np.concatenate([[0], np.where(equal, 0, np.arange(1, len(order)))]) if len(order) else order
    firsts = order[np.maximum.accumulate(heads)] if len(order) else order
    repeated = np.flatnonzero(equal) + 1
    return np.stack([firsts[repeated], order[repeated]], axis=1).astype(np.int64)


def components(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each of ``count`` documents the smallest document it is linked to through ``pairs``."""
    labels = np.arange(count, dtype=np.int64)
    while True:
        lowest = np.minimum(labels[pairs[:, 0]], labels[pairs[:, 1]])
        before = labels.copy()
        for side in (0, 1):
            np.minimum.at(labels, before[pairs[:, side]], lowest)
            np.minimum.at(labels, pairs[:, side], lowest)
        while (jumped := labels[labels]).tobytes() != labels.tobytes():
            labels = jumped
        if np.array_equal(labels, before):
            return labels


# Hash functions x * factor + offset modulo 2**64, fixed for ever by the seed.
_WORDS = mix(np.arange(HASH_SEED, HASH_SEED + 2 * BANDS * ROWS, dtype=np.uint64) * _STEP).reshape(2, -1, 1)
_FACTORS, _OFFSETS = _WORDS[0] | np.uint64(1), _WORDS[1]
