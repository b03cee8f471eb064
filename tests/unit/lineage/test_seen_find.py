"""What a run saw, against the batches that training fetches, and both directions against each other."""

import json

import pytest
import torch
from small_corpora import occurrences_in
from small_runs import toy_corpus, toy_recipe

from mobillama.core.errors import UserError
from mobillama.lineage.find import find_document, find_text
from mobillama.lineage.index import build, open_or_build
from mobillama.lineage.seen import History, as_json, seen
from mobillama.train import train
from mobillama.train.batches import TokenBatches
from mobillama.train.parallel import World

STEPS = 60
"""Enough for three mixture epochs, and past the growing batches at the start."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seen")
    toy_corpus(folder)
    return train(toy_recipe(folder, max_steps=STEPS, batch_tokens=320))


@pytest.fixture(scope="module")
def history(run):
    return History(run)


@pytest.fixture(scope="module")
def index(history):
    build(history.corpus, part_tokens=1000)
    return open_or_build(history.corpus)


def tokens_of(history, span):
    stream = history.corpus.tokens(span.document.subset)
    return stream.read(span.document.start + span.first, span.document.start + span.stop).tolist()


def test_several_mixture_epochs_are_seen(history):
    assert history.batch.first_sample(STEPS + 1) > 2 * history.samples.samples_per_epoch


def test_the_samples_of_a_step_are_those_that_training_fetches(history):
    batches = TokenBatches(history.samples, micro_batch=3, world=World())
    for step in (1, 2, 5, STEPS):
        first, count = history.batch.first_sample(step), history.batch.samples(step)
        fetched = torch.cat([batch["input_ids"] for batch in batches.micro_batches(first, count)])
        shown = [
            [token for piece in sample.pieces for token in tokens_of(history, piece.span)]
            for sample in seen(history, step)
        ]
        assert [tokens[:-1] for tokens in shown] == fetched.tolist()


def test_the_text_of_a_sample_is_a_piece_of_its_documents(history):
    for sample in seen(history, 3):
        for piece in sample.pieces:
            assert piece.text.strip("\ufffd") in history.corpus.text(piece.span.document)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_a_step_in_order(history, world):
    whole = [sample.index for sample in seen(history, 7)]
    shares = [seen(history, 7, rank=rank, world=world) for rank in range(world)]
    assert [sample.index for share in shares for sample in share] == whole


def test_seen_and_find_are_each_others_inverse_over_the_whole_run(history):
    steps_by_document: dict[tuple[str, str], set[int]] = {}
    for step in range(1, STEPS + 1):
        for sample in seen(history, step):
            for piece in sample.pieces:
                key = (sample.subset, piece.span.document.id)
                steps_by_document.setdefault(key, set()).add(step)
    for subset in history.corpus.subsets:
        for document in history.corpus.tokens(subset).documents():
            (found,) = find_document(history, document.id, 5).first
            assert set(found.steps) == steps_by_document.get((subset, document.id), set())


def test_a_passage_is_found_in_its_documents_at_the_steps_that_hold_it(history, index):
    passage = "cat then"
    texts = {
        (subset, document.id): history.corpus.text(document)
        for subset in history.corpus.subsets
        for document in history.corpus.tokens(subset).documents()
    }
    found = find_text(history, index, passage, 1000)
    assert found.count == len(found.first) == occurrences_in(list(texts.values()), passage)
    for sighting in found.first:
        text = texts[sighting.document.subset, sighting.document.id]
        assert sighting.passage == passage
        assert sighting.before + sighting.passage + sighting.after in text
        for step in sighting.steps:
            shown = [piece for sample in seen(history, step) for piece in sample.pieces]
            assert any(piece.span.document == sighting.document for piece in shown)


def test_a_source_is_found_as_well_as_an_id(history):
    assert find_document(history, "https://book.org/3", 5).first[0].document.id == "book-3"


def test_every_global_index_belongs_to_the_step_that_takes_it(history):
    for step in range(1, 20):
        first = history.batch.first_sample(step)
        for index in (first, first + history.batch.samples(step) - 1):
            assert history.step_of(index) == step


def test_steps_to_come_are_shown_and_not_found(history):
    assert seen(history, STEPS + 5) and not as_json(history, STEPS + 5, [])["done"]
    assert all(step <= STEPS for step in find_document(history, "web-0", 1).first[0].steps)


def test_what_is_not_there_is_said(history, index):
    with pytest.raises(UserError, match="no document with id or source 'nowhere'"):
        find_document(history, "nowhere", 5)
    with pytest.raises(UserError, match="steps count from 1"):
        seen(history, 0)
    with pytest.raises(UserError, match="ranks count from 0 to 1"):
        seen(history, 1, rank=2, world=2)
    assert find_text(history, index, "no such passage", 5).count == 0


def test_the_json_of_a_step_is_plain_and_whole(history):
    values = json.loads(json.dumps(as_json(history, 2, seen(history, 2))))
    documents = [document for sample in values["samples"] for document in sample["documents"]]
    assert values["done"] and all(document["license"] == "CC0-1.0" for document in documents)
    assert all(document["stop_token"] > document["first_token"] for document in documents)
