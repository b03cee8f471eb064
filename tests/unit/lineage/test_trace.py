"""Passages and spans, against plain string search over the documents."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import WORDS, all_texts, make_corpus, occurrences_in, sentences

from mobillama.lineage.index import Index, build
from mobillama.lineage.trace import trace

PART_TOKENS = 900


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    source = random.Random(1)
    corpus = make_corpus(folder, {"web": sentences(source, 60), "book": sentences(source, 40)})
    build(corpus, part_tokens=PART_TOKENS)
    return Index(corpus)


@pytest.fixture(scope="module")
def texts(index):
    return all_texts(index.corpus)


def test_the_corpus_is_large_enough_to_have_several_parts(index):
    assert len([place for place in index.places if place.subset == "web"]) > 1


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_passage_is_found_wherever_it_stands(index, texts, data):
    text = data.draw(st.sampled_from(texts))
    start = data.draw(st.integers(0, len(text) - 1))
    passage = text[start : start + data.draw(st.integers(1, 40))]
    assert index.occurrences(passage.encode(), 0)[0] == occurrences_in(texts, passage)


@given(
    passage=st.lists(st.sampled_from([*WORDS, "zebra", "sat", "n", ""]), min_size=1, max_size=4)
    .map(" ".join)
    .filter(len)
)
@settings(max_examples=100, deadline=None)
def test_a_passage_is_counted_also_where_it_does_not_stand(index, texts, passage):
    assert index.occurrences(passage.encode(), 0)[0] == occurrences_in(texts, passage)


def test_an_occurrence_names_the_tokens_that_spell_it(index):
    passage = "at and the"
    count, places = index.occurrences(passage.encode(), 1000)
    assert count == len(places) > 0
    for place in places:
        tokens = index.corpus.tokens(place.subset).read(place.first_token, place.last_token + 1)
        assert index.spelling.decode(tokens.tolist())[place.skip :].startswith(passage.encode())
        shorter = index.spelling.decode(tokens[:-1].tolist())[place.skip :]
        assert len(shorter) < len(passage)


def naive_spans(texts, answer):
    """All spans of whole words in the documents that lie within no other, as (start, stop) characters."""
    borders = [
        at
        for at in range(len(answer) + 1)
        if not (0 < at < len(answer) and answer[at - 1].isalnum() and answer[at].isalnum())
    ]
    spans = []
    for start in borders:
        stops = [
            stop for stop in borders if stop > start and any(answer[start:stop] in text for text in texts)
        ]
        if stops and (not spans or stops[-1] > spans[-1][1]):
            spans.append((start, stops[-1]))
    return spans


@given(
    words=st.lists(st.sampled_from([*WORDS, "zebra", "tables", "sa"]), min_size=1, max_size=25),
    source=st.randoms(),
)
@settings(max_examples=30, deadline=None)
def test_spans_are_those_of_a_search_by_text(index, texts, words, source):
    text = source.choice(texts)
    start = source.randrange(len(text))
    answer = " ".join(words[:8]) + text[start : start + 40] + " ".join(words[8:])
    found = {(span.start, span.stop) for span in trace(index, answer, min_tokens=1, limit=1000).spans}
    naive = naive_spans(texts, answer)
    assert all(any(start <= first and last <= stop for start, stop in naive) for first, last in found)
    # A span may be cut short by its first or last word where that is tokenised otherwise, never by more.
    for start, stop in naive:
        words = list(re.finditer(r"\S+", answer[start:stop]))
        if len(words) >= 3:
            first, last = start + words[1].start(), start + words[-2].end()
            assert any(a <= first and last <= b for a, b in found)
    # The longest one is not, unless so short that what is between stands in too many places to try each.
    whole = max(naive, key=lambda span: span[1] - span[0], default=(0, 0))
    assert len(answer[slice(*whole)].split()) < 6 or whole in found


def test_spans_come_longest_first_with_exact_counts(index, texts):
    answer = texts[3][:50] + " zebra " + texts[7][10:40]
    result = trace(index, answer, min_tokens=2, limit=5, places=3)
    lengths = [span.stop - span.start for span in result.spans]
    assert lengths == sorted(lengths, reverse=True)
    for span in result.spans:
        assert span.count == occurrences_in(texts, answer[span.start : span.stop])
        assert len(span.occurrences) == min(3, span.count)


def test_no_span_crosses_from_one_document_into_the_next(index, texts):
    answer = texts[0] + texts[1]
    for span in trace(index, answer, min_tokens=1, limit=100).spans:
        assert any(answer[span.start : span.stop] in text for text in texts)


def test_text_that_spells_the_end_of_text_token_is_plain_text(index):
    result = trace(index, "cat<|endoftext|>sat", min_tokens=1)
    assert all("|" not in result.text[span.start : span.stop] for span in result.spans)


def test_an_empty_text_has_no_spans(index):
    assert trace(index, "").spans == []


def test_covered_counts_characters_once(index, texts):
    assert trace(index, texts[5], min_tokens=1).covered == len(texts[5])


def test_matches_are_looked_for_in_all_parts(index):
    place = index.places[-1]
    tokens = index.corpus.tokens(place.subset).read(place.start, min(place.start + 30, place.stop))
    (match,) = index.matches(np.asarray(tokens, np.int64), len(tokens))
    assert (place.subset, place.start) in match.starts
