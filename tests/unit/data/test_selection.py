"""Deciding: what is held out is like nothing in training, whatever deduplication is switched on."""

from typing import Any

import numpy as np
import pytest

from mobillama.data.recipe import CorpusSection
from mobillama.data.selection import Documents, decide, equal_parts, packed


def section(**changes: Any) -> CorpusSection:
    """Return a recipe with subsets ``a`` and ``b``."""
    subsets = [{"name": n, "kind": "jsonl", "paths": ["x"], "license": "CC0"} for n in "ab"]
    values = {"directory": "x", "subsets": subsets, "heldout_bytes": 300}
    return CorpusSection.model_validate(values | changes)


def documents(count: int, seed: int = 0, **changes: Any) -> Documents:
    """Return documents of 100 bytes, half in each subset, none like another."""
    generator = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "subset": np.repeat([0, 1], count // 2),
        "size_bytes": np.full(count, 100),
        "group": generator.integers(0, 2**62, count).astype(np.uint64),
        "digest": generator.integers(0, 2**62, (count, 2)).astype(np.uint64),
        "first_of_task": np.array([0, count]),
    }
    return Documents(**values | changes)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("near", [True, False])
def test_nothing_in_training_is_like_what_is_held_out(exact: bool, near: bool):
    generator = np.random.default_rng(8)
    count, leaks_without_care = 400, 0
    digest = documents(count).digest.copy()
    copies = generator.choice(count, (60, 2), replace=False)
    digest[copies[:, 1]] = digest[copies[:, 0]]
    pairs = np.sort(generator.choice(count, (100, 2), replace=False), axis=1)
    given = documents(count, digest=digest)
    fates = decide(given, pairs, section(heldout_bytes=2000, deduplication={"exact": exact, "near": near}))
    assert fates.heldout.sum() >= 20
    for one, other in [*copies.tolist(), *pairs.tolist()]:
        for a, b in ((one, other), (other, one)):
            assert not (fates.heldout[a] and fates.train[b])
            leaks_without_care += fates.heldout[a] and fates.reason[b] == "like_heldout"
    assert not (fates.train & fates.heldout).any()
    assert ((fates.reason != "") == (~fates.train & ~fates.heldout)).all()
    assert (leaks_without_care > 0) == (not near)


def test_the_first_of_similar_documents_stays():
    fates = decide(documents(10), np.array([[2, 7], [7, 9]]), section(heldout_bytes=0))
    assert np.flatnonzero(fates.train).tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    assert fates.like[[7, 9]].tolist() == [2, 2]
    assert fates.reason[9] == "near_duplicate"


def test_a_group_is_held_out_in_every_subset_or_in_none():
    groups = np.arange(100, dtype=np.uint64) % np.uint64(50)
    fates = decide(documents(100, group=groups), np.empty((0, 2), int), section())
    assert np.array_equal(fates.heldout[:50], fates.heldout[50:])
    assert fates.heldout.sum() == 6


def test_held_out_is_a_tenth_at_most_but_for_whole_documents_and_never_half():
    # The target of 300 bytes is more than a tenth of 10 documents; one whole document reaches that tenth.
    fates = decide(documents(20), np.empty((0, 2), int), section())
    assert np.bincount(np.repeat([0, 1], 10)[fates.heldout], minlength=2).tolist() == [1, 1]
    # A subset that is one document keeps it.
    lonely = documents(20, subset=np.array([0] + [1] * 19))
    assert not decide(lonely, np.empty((0, 2), int), section()).heldout[0]


def test_shards_are_consecutive_and_hold_every_document_once():
    sizes = np.array([40, 70, 10, 500, 30, 30, 30, 5])
    runs = packed(np.array([0, 1, 2, 3, 4, 6, 7]), sizes, 100)
    assert [run.tolist() for run in runs] == [[0, 1], [2, 3], [4, 6, 7]]
    assert packed(np.empty(0, int), sizes, 100) == []


def test_the_tokenizer_sample_is_shared_equally_by_those_who_can_give():
    assert equal_parts(np.array([100, 5, 50]), 90).tolist() == [42.5, 5, 42.5]
    assert equal_parts(np.array([10, 20]), 90).tolist() == [10, 20]
