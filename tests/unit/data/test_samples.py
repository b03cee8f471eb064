"""Samples: what they hold, which documents, and where in a run a token was seen."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest

from mobillama.core import records
from mobillama.core.errors import UserError
from mobillama.data import Corpus, Samples
from mobillama.data.recipe import DataSection

LENGTH = 32


def whole_stream(corpus: Corpus, subset: str) -> np.ndarray:
    """Return a subset's training tokens straight from its files."""
    files = sorted((corpus.directory / "train" / subset).glob("*.tokens"))
    return np.concatenate([np.fromfile(file, dtype="<u2") for file in files]).astype(np.int64)


def test_every_sample_is_its_slice_of_the_joined_shard_files(small_corpus: Corpus):
    samples = Samples(small_corpus, DataSection(sequence_length=LENGTH), seed=1)
    streams = [whole_stream(small_corpus, name) for name in small_corpus.subsets]
    assert samples.samples_per_epoch == sum((len(stream) - 1) // LENGTH for stream in streams)
    indices = np.arange(samples.samples_per_epoch)
    batch = samples.fetch(indices)
    assert batch["input_ids"].shape == batch["labels"].shape == (len(indices), LENGTH)
    assert batch["input_ids"].dtype == batch["labels"].dtype == np.int64
    subsets, numbers = samples.locate(indices)
    for row, (subset, number) in enumerate(zip(subsets, numbers, strict=True)):
        expected = streams[subset][number * LENGTH : number * LENGTH + LENGTH + 1]
        assert np.array_equal(batch["input_ids"][row], expected[:-1])
        assert np.array_equal(batch["labels"][row], expected[1:])


def test_positions_restart_after_each_end_of_text(small_corpus: Corpus):
    samples = Samples(small_corpus, DataSection(sequence_length=200, document_mask=True), seed=1)
    batch = samples.fetch(np.arange(100))
    restarts = 0
    for tokens, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        expected, position = [], 0
        for token in tokens:
            expected.append(position)
            position = 0 if token == small_corpus.end_of_text_id else position + 1
        assert positions.tolist() == expected
        restarts += expected.count(0) - 1
    assert restarts > 10


def test_the_documents_of_a_sample_spell_its_tokens(small_corpus: Corpus):
    samples = Samples(small_corpus, DataSection(sequence_length=300), seed=3)
    several = 0
    for index in range(0, samples.samples_per_epoch, 7):
        spans = samples.documents(index)
        several += len(spans) > 1
        joined = np.concatenate(
            [
                small_corpus.tokens(span.document.subset).read(
                    span.document.start + span.first, span.document.start + span.stop
                )
                for span in spans
            ]
        )
        batch = samples.fetch([index])
        assert np.array_equal(joined[:-1], batch["input_ids"][0])
        assert joined[-1] == batch["labels"][0, -1]
    assert several > 3


def test_seen_finds_exactly_the_indices_whose_samples_hold_the_tokens(small_corpus: Corpus):
    section = DataSection(sequence_length=LENGTH, epochs={"novels": 0.5, "notes": 3})
    samples = Samples(small_corpus, section, seed=4)
    until = 2 * samples.samples_per_epoch + 5
    subsets, numbers = samples.locate(np.arange(until))
    for subset, first, last in [("novels", 0, 0), ("novels", 64, 64), ("notes", 31, 70), ("notes", 33, 40)]:
        number = small_corpus.subsets.index(subset)
        starts = numbers * LENGTH
        holds = (subsets == number) & (starts <= last) & (starts + LENGTH >= first)
        assert samples.seen(subset, first, last, until) == np.flatnonzero(holds).tolist()


def test_weights_give_their_share_without_a_new_preparation(small_corpus: Corpus):
    samples = Samples(
        small_corpus, DataSection(sequence_length=LENGTH, weights={"novels": 1, "notes": 3}), seed=0
    )
    subsets, _ = samples.locate(np.arange(samples.samples_per_epoch))
    assert (subsets == small_corpus.subsets.index("notes")).mean() == pytest.approx(0.75, abs=0.01)


def test_reading_takes_no_memory_for_the_size_of_the_corpus(small_corpus: Corpus, tmp_path: Path):
    """The same corpus with a shard of 8 GB (a sparse file): samples from all over it, a few megabytes."""
    shutil.copytree(small_corpus.directory, tmp_path / "large")
    manifest = json.loads((tmp_path / "large" / "manifest.json").read_text(encoding="utf-8"))
    entry = next(file for file in manifest["files"] if file["path"] == "train/notes/00000.tokens")
    entry["size_bytes"] = 8 << 30
    os.truncate(tmp_path / "large" / entry["path"], entry["size_bytes"])
    manifest["digest"] = records.digest(manifest)
    (tmp_path / "large" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    before = psutil.Process().memory_info().rss
    samples = Samples(Corpus(tmp_path / "large"), DataSection(sequence_length=LENGTH), seed=0)
    assert samples.samples_per_epoch > 100_000_000
    for step in range(10):
        samples.fetch(np.arange(step * 64, step * 64 + 64))
    assert psutil.Process().memory_info().rss - before < 50 << 20


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weights": {"novel": 1, "notes": 1}}, "no subset novel; did you mean novels?"),
        ({"weights": {"novels": 1}}, "does not name notes"),
        ({"sequence_length": 10**6}, "no subset has a sample"),
        ({"sequence_length": 10**6, "epochs": {"novels": 1, "notes": 1}}, "has no sample"),
    ],
)
def test_a_mixture_that_does_not_fit_is_explained(small_corpus: Corpus, section: dict, message: str):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        Samples(small_corpus, DataSection(**{"sequence_length": LENGTH} | section), seed=0)
