"""Benchmark items in every layout, and planted overlaps found where a plain search finds them."""

import json
import lzma
import random
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import WORDS, all_texts, make_corpus, sentences

from mobillama.core.errors import UserError
from mobillama.lineage.contamination import NGRAM_WORDS, contamination, summary
from mobillama.lineage.contamination_items import Item, read_items
from mobillama.lineage.index import open_or_build


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    corpus = make_corpus(tmp_path_factory.mktemp("contamination"), {"web": sentences(random.Random(2), 60)})
    return open_or_build(corpus)


@pytest.fixture(scope="module")
def texts(index):
    return all_texts(index.corpus)


def test_a_copied_passage_is_contamination_and_a_shorter_one_is_not(index, texts):
    words = next(text for text in texts if len(text.split()) > 40).split(" ")
    long, short = " ".join(words[5:25]), " ".join(words[5 : 5 + NGRAM_WORDS - 1])
    items = [
        Item("f", 1, [f"Zebra? {long} zebra"]),
        Item("f", 2, [f"Zebra? {short} zebra"]),
        Item("f", 3, [""]),
    ]
    first, second, third = contamination(index, items)
    assert first.contaminated and first.longest.split() == long.split()
    assert first.occurrences and first.ngrams_seen == len(long.split()) - NGRAM_WORDS + 1
    assert not second.contaminated and second.longest.split() == short.split()
    assert (third.ngrams, third.ngrams_seen, third.longest) == (0, 0, "")
    assert summary([first, second, third])[0]["contaminated"] == 1


@given(words=st.lists(st.sampled_from([*WORDS, "zebra"]), min_size=1, max_size=30), source=st.randoms())
@settings(max_examples=40, deadline=None)
def test_ngrams_are_those_that_a_search_by_text_finds(index, texts, words, source):
    text = source.choice(texts).split(" ")
    start = source.randrange(len(text))
    item = " ".join(words[:10] + text[start : start + 25] + words[10:])
    (match,) = contamination(index, [Item("f", 1, [item])])
    # By plain search: whole words, each with the white space that stands before it in the item.
    spans, at = [], 0
    for word in item.split():
        at = item.index(word, at)
        spans.append((at, at + len(word)))
        at += len(word)
    naive = 0
    for first in range(len(spans) - NGRAM_WORDS + 1):
        piece = item[spans[first][0] : spans[first + NGRAM_WORDS - 1][1]]
        naive += any(piece in text for text in texts)
    assert match.ngrams == max(0, len(spans) - NGRAM_WORDS + 1)
    # Text search also finds pieces that begin or end within a word of the document, or after a line's end.
    assert match.ngrams_seen <= naive
    assert match.ngrams_seen >= naive - item.count("\n") - 2


def test_every_layout_gives_its_items(tmp_path):
    record = {
        "q": "Why is it so?",
        "choices": [{"text": "because it is"}],
        "targets": {"an answer": 1},
        "id": 3,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n\n" + json.dumps(record) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([record]))
    (tmp_path / "c.csv").write_text('question,Best Answer\n"Why, is it so?","because it is"\n')
    (tmp_path / "d.csv").write_text('"Why, is it ever so?","because"\n"And what then, pray?","because"\n')
    (tmp_path / "e-labels.lst").write_text("0\n")
    with lzma.open(tmp_path / "f.jsonl.xz", "wt") as file:
        file.write(json.dumps(record) + "\n")
    with tarfile.open(tmp_path / "g.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "d.csv", "data/d.csv")
    found: dict[str, list[list[str]]] = {}
    for item in read_items(tmp_path):
        found.setdefault(item.file, []).append(item.texts)
    strings = ["Why is it so?", "because it is", "an answer"]
    rows = [["Why, is it ever so?", "because"], ["And what then, pray?", "because"]]
    assert found == {
        "a.jsonl": [strings, strings],
        "b.json": [strings],
        "c.csv": [["Why, is it so?", "because it is"]],
        "d.csv": rows,
        "f.jsonl.xz": [strings],
        "g.tar.xz/data/d.csv": rows,
    }


def test_a_folder_without_items_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \.jsonl, \.json or \.csv"):
        list(read_items(tmp_path))
    (tmp_path / "x.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match=r"x\.jsonl: cannot be read"):
        list(read_items(tmp_path))


def test_real_benchmarks_are_read_item_by_item(shared_data):
    counts: dict[str, int] = {}
    for name in ("arc_challenge", "crows_pairs", "piqa", "truthfulqa"):
        for item in read_items(shared_data / "benchmarks" / name):
            counts[f"{name}/{item.file}"] = counts.get(f"{name}/{item.file}", 0) + 1
    assert counts["arc_challenge/ARC-Challenge-Test.jsonl"] == 1172
    assert counts["crows_pairs/crows_pairs_anonymized.csv"] == 1508
    assert counts["piqa/valid.jsonl"] == 1838
    assert counts["truthfulqa/v1/mc_task.json"] == counts["truthfulqa/v1/TruthfulQA.csv"] == 817


def test_items_are_read_one_at_a_time(tmp_path):
    line = json.dumps({"text": "word " * 2000}) + "\n"
    (tmp_path / "long.jsonl").write_text(line * 2000)
    tracemalloc.start()
    for _ in read_items(tmp_path):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
