"""Samples of a corpus by global index: fetched, traced to their documents, and found again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mobillama.core.errors import UserError, did_you_mean

from .corpus import Corpus, Document
from .order import Indices, SampleOrder, SubsetShare
from .recipe import DataSection

Batch = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Span:
    """Part of a document inside a sample; token positions within the document, the last one excluded."""

    document: Document
    first: int
    stop: int


class Samples:
    """The samples of a run: a pure function of corpus, ``[data]`` section, seed and global index.

    Memory stays constant whatever the corpus's size; any process may fetch any index.

    Raises:
        UserError: the mixture does not fit the corpus.
    """

    def __init__(self, corpus: Corpus, section: DataSection, seed: int):
        self.corpus = corpus
        self.section = section
        self.sequence_length = section.sequence_length
        counts = {
            name: max(0, (len(corpus.tokens(name)) - 1) // section.sequence_length) for name in corpus.subsets
        }
        quotas = quotas_of(section, counts, where=str(corpus.directory))
        self.order = SampleOrder(
            [SubsetShare(name, counts[name], quotas[name]) for name in corpus.subsets], seed=seed
        )

    @property
    def samples_per_epoch(self) -> int:
        """Samples in one mixture epoch."""
        return self.order.samples_per_epoch

    def locate(self, indices: ArrayLike) -> tuple[Indices, Indices]:
        """Return subset number (into ``corpus.subsets``) and sample number of each global index, int64."""
        return self.order.locate(indices)

    def fetch(self, indices: ArrayLike) -> Batch:
        """Return the samples at ``indices`` (n,), each (n, L) int64.

        ``input_ids`` and ``labels`` (already shifted: ``labels[:, t]`` follows ``input_ids[:, t]``); with
        ``document_mask`` also ``position_ids``, which restart at 0 where a document begins.
        """
        subsets, samples = self.locate(indices)
        length = self.sequence_length
        tokens = np.empty((len(samples), length + 1), dtype=np.int64)
        for row, (subset, sample) in enumerate(zip(subsets, samples, strict=True)):
            stream = self.corpus.tokens(self.corpus.subsets[int(subset)])
            tokens[row] = stream.read(int(sample) * length, int(sample) * length + length + 1)
        batch = {"input_ids": tokens[:, :-1].copy(), "labels": tokens[:, 1:].copy()}
        if self.section.document_mask:
            batch["position_ids"] = document_positions(batch["input_ids"], self.corpus.end_of_text_id)
        return batch

    def documents(self, index: int) -> list[Span]:
        """Return what a sample is made of: its documents in order, with the tokens of each that it holds."""
        subsets, samples = self.locate([index])
        stream = self.corpus.tokens(self.corpus.subsets[int(subsets[0])])
        first = int(samples[0]) * self.sequence_length
        stop = first + self.sequence_length + 1
        return [
            Span(
                document,
                max(first, document.start) - document.start,
                min(stop, document.stop) - document.start,
            )
            for document in stream.documents(first, stop)
        ]

    def seen(self, subset: str, first_token: int, last_token: int, until_index: int) -> list[int]:
        """Return the global indices below ``until_index`` whose samples hold any token of
        ``first_token .. last_token`` (both included) of a subset's training stream, ascending."""
        self.corpus.tokens(subset)
        number = self.corpus.subsets.index(subset)
        length, share = self.sequence_length, self.order.shares[number]
        first_sample = max(0, (first_token - 1) // length)
        last_sample = min(share.samples - 1, last_token // length)
        return sorted(
            index
            for sample in range(first_sample, last_sample + 1)
            for index in self.order.indices_of(number, sample, until=until_index)
        )


def quotas_of(section: DataSection, counts: dict[str, int], *, where: str) -> dict[str, int]:
    """Return how many samples of each subset one mixture epoch takes.

    Raises:
        UserError: the mixture names other subsets than the corpus has, or takes from one without a sample.
    """
    key = "epochs" if section.weights is None else "weights"
    mixture = section.weights if section.weights is not None else section.epochs
    if mixture is None:
        mixture = {name: 1.0 for name, count in counts.items() if count}
    for name in mixture:
        if name not in counts:
            hint = did_you_mean(name, counts) or f"; it has {', '.join(counts)}"
            raise UserError(f"data.{key}: {where} has no subset {name}{hint}")
        if mixture[name] and not counts[name]:
            raise UserError(
                f"data.{key}: subset {name} has no sample of {section.sequence_length + 1} tokens; "
                "take a shorter data.sequence_length, or give it 0"
            )
    left_out = [name for name in counts if name not in mixture]
    if left_out and (section.weights or section.epochs):
        raise UserError(f"data.{key} does not name {', '.join(left_out)}; 0 leaves a subset out")
    if section.weights is None:
        quotas = {name: round(mixture.get(name, 0.0) * count) for name, count in counts.items()}
    else:
        scale = sum(counts.values()) / sum(mixture.values())
        quotas = {name: round(mixture.get(name, 0.0) * scale) for name in counts}
    if not any(quotas.values()):
        raise UserError(
            f"{where}: no subset has a sample of {section.sequence_length + 1} tokens; "
            "take a shorter data.sequence_length"
        )
    return quotas


def document_positions(input_ids: NDArray[np.int64], end_of_text_id: int) -> NDArray[np.int64]:
    """Return positions (n, L) that count from 0 again after each end-of-text token."""
    places = np.broadcast_to(np.arange(input_ids.shape[1], dtype=np.int64), input_ids.shape)
    begins = np.zeros_like(input_ids)
    begins[:, 1:] = np.where(input_ids[:, :-1] == end_of_text_id, places[:, 1:], 0)
    return places - np.maximum.accumulate(begins, axis=1)
