"""Near-duplicates: shingles against plain Python, bands against the exact Jaccard similarity."""

import re

import numpy as np
import pytest

from mobillama.data import minhash


def python_shingles(text: str) -> list[tuple[str, ...]]:
    """Return the word 5-grams of ASCII text, the slow way."""
    words = re.findall("[a-z0-9]+", text.lower())
    return [tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))] if words else []


def words(generator: np.random.Generator, count: int) -> list[str]:
    return ["".join(generator.choice(list("abcdefghij"), 5)) for _ in range(count)]


def test_shingles_are_equal_just_where_five_words_are():
    text = "The cat, the CAT sat; the cat the cat sat the dog - a_b 12 ab1 a b 12 ab1 a"
    hashes, expected = minhash.shingles(text.encode()), python_shingles(text)
    assert len(hashes) == len(expected)
    for i in range(len(expected)):
        for j in range(len(expected)):
            assert (hashes[i] == hashes[j]) == (expected[i] == expected[j])


def test_words_differ_by_the_order_of_their_letters_and_scripts_count():
    hashes = minhash.word_hashes("abc acb bca ßtraße größe größe ab a b".encode())
    assert len(hashes) == 9
    assert len(set(hashes.tolist())) == 8
    assert len(minhash.word_hashes(b" ... \n")) == 0
    assert len(minhash.shingles(b"two words")) == 1


@pytest.mark.parametrize(("changed", "low", "high"), [(0, 1.0, 1.0), (2, 0.85, 1.0), (40, 0.0, 0.05)])
def test_bands_meet_for_near_duplicates_only(changed: int, low: float, high: float):
    """400 words, some replaced: Jaccard about 0.95 with 2, about 0.43 with 40 spread ones."""
    generator, met = np.random.default_rng(changed), 0
    for _ in range(40):
        one = words(generator, 400)
        other = list(one)
        for place in np.linspace(3, 396, changed, dtype=int):
            other[place] = "changed"
        keys = [minhash.bands(minhash.shingles(" ".join(text).encode())) for text in (one, other)]
        met += bool((keys[0] == keys[1]).any())
    assert low <= met / 40 <= high


def test_the_share_of_meeting_bands_follows_the_formula():
    """At Jaccard s two documents share a key with probability 1 - (1 - s**8)**14; here s is 0.72."""
    generator, met, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        common, *own = np.split(generator.integers(0, 2**63, 720 + 140 + 140).astype(np.uint64), [720, 860])
        keys = [minhash.bands(np.concatenate([common, part])) for part in own]
        met += bool((keys[0] == keys[1]).any())
    assert abs(met / trials - (1 - (1 - 0.72**8) ** 14)) < 0.1


def test_pairs_and_components_equal_brute_force():
    generator = np.random.default_rng(3)
    for _ in range(30):
        columns = [generator.integers(0, 6, 40), generator.integers(0, 3, 40)]
        pairs = minhash.pairs_of_equal(*columns)
        firsts = {row: min(r for r in range(40) if all(c[r] == c[row] for c in columns)) for row in range(40)}
        assert {(a, b) for a, b in pairs.tolist()} == {
            (first, row) for row, first in firsts.items() if first != row
        }
        edges = generator.integers(0, 60, (generator.integers(0, 50), 2))
        labels = list(range(60))
        for _ in range(60):
            for a, b in edges.tolist():
                labels[a] = labels[b] = min(labels[a], labels[b])
        assert minhash.components(60, edges).tolist() == labels
    assert len(minhash.pairs_of_equal(np.empty(0, dtype=np.uint64))) == 0
