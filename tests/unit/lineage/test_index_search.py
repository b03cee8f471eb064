"""Search in a suffix array, against plain loops over the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama.lineage.index import first_ranks, suffix_array
from mobillama.lineage.index_search import NEVER, Part

texts = st.lists(st.integers(0, 4), min_size=1, max_size=80)
queries = st.lists(st.one_of(st.integers(0, 5), st.just(NEVER)), max_size=60)


def part_of(tokens, dtype=np.uint16):
    array = np.array(tokens, dtype)
    return Part(array, suffix_array(array), first_ranks(array, 10))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@given(tokens=st.lists(st.integers(0, 65535), min_size=1, max_size=60) | texts)
@settings(max_examples=60, deadline=None)
def test_suffix_array_sorts_suffixes_as_token_sequences(dtype, tokens):
    naive = sorted(range(len(tokens)), key=lambda start: tokens[start:])
    assert suffix_array(np.array(tokens, dtype)).tolist() == naive


@given(tokens=texts, query=queries)
@settings(max_examples=200, deadline=None)
def test_longest_match_from_every_position_equals_a_scan(tokens, query):
    def longest_from(at):
        lengths = [0]
        for start in range(len(tokens)):
            pairs = zip(tokens[start:], query[at:], strict=False)
            lengths.append(
                next(
                    (n for n, (a, b) in enumerate(pairs) if a != b), min(len(tokens) - start, len(query) - at)
                )
            )
        return max(lengths)

    found, _ = part_of(tokens).longest(np.array(query, np.int64), np.arange(len(query)))
    assert found.tolist() == [longest_from(at) for at in range(len(query))]


def test_long_matches_go_past_the_widest_block():
    random = np.random.default_rng(0)
    tokens = random.integers(0, 3, 5000)
    query = np.concatenate([tokens[100:3100], [7], tokens[4000:]])
    found, _ = part_of(tokens).longest(query, np.arange(len(query)))
    assert found[0] == 3000 and found[3001] == 1000 and found[3000] == 0


@given(tokens=texts, pattern=st.lists(st.integers(0, 5), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_narrowing_token_by_token_finds_exactly_the_occurrences(tokens, pattern):
    part = part_of(tokens)
    ranges = part.beginning(np.array(pattern[:1], np.int64))
    for token in pattern[1:]:
        ranges = part.narrow(ranges, np.array([token], np.int64))
    found = part.suffixes[ranges.low[0] : ranges.high[0]]
    naive = [at for at in range(len(tokens)) if tokens[at : at + len(pattern)] == pattern]
    assert sorted(found.tolist()) == naive


def test_nearby_finds_places_where_the_match_stands():
    tokens = [1, 2, 3, 1, 2, 3, 1, 2, 4]
    query = np.array([9, 1, 2, 3, 7])
    part = part_of(tokens)
    lengths, ranks = part.longest(query, np.arange(len(query)))
    near = part.nearby(query, 1, int(lengths[1]), rank=int(ranks[1]), limit=10)
    assert lengths[1] == 3 and sorted(near.tolist()) == [0, 3]
