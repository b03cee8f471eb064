"""Held-out text: bits per byte by subset, beside what general compressors need for it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mobillama.data import Corpus

from .precision import Precision


@dataclass(frozen=True)
class HeldoutText:
    """What is measured: windows of held-out documents, and the bytes they stand for."""

    corpus: Corpus
    sequence_length: int
    batch: int

    def windows(self, subset: str, most_bytes: int | None) -> Iterator[tuple[np.ndarray, int]]:
        """Yield windows (L + 1,) of tokens, -1 after the end, each with the bytes of a document it finishes.

        A document begins with the end-of-text token that precedes it in training, and its windows follow
        each other without overlap: every token is predicted once, from within its own window.
        """
        length, total = self.sequence_length, 0
        for held in self.corpus.heldout(subset):
            if most_bytes is not None and total >= most_bytes:
                return
            tokens = np.concatenate([[self.corpus.end_of_text_id], held.tokens[:-1]]).astype(np.int64)
            starts = range(0, len(tokens) - 1, length)
            for start in starts:
                window = tokens[start : start + length + 1]
                padded = np.pad(window, (0, length + 1 - len(window)), constant_values=-1)
                yield padded, held.size_bytes if start == starts[-1] else 0
            total += held.size_bytes


@torch.inference_mode()
def measure(
    model: nn.Module, text: HeldoutText, precision: Precision, *, most_bytes: int | None = None
) -> dict[str, dict[str, float]]:
    """Return by subset ``nats_per_token``, ``bits_per_byte``, ``tokens`` and ``bytes``."""
    was_training = model.training
    model.eval()
    results = {}
    for subset in text.corpus.subsets:
        nats, tokens, size_bytes = 0.0, 0, 0
        for windows, finished in batched(text.windows(subset, most_bytes), text.batch):
            window = torch.from_numpy(windows).to(next(model.parameters()).device)
            inputs, labels = window[:, :-1].clamp(min=0), window[:, 1:]
            with precision.context():
                logits = model(input_ids=inputs, use_cache=False).logits
            losses = functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-1, reduction="sum"
            )
            nats += float(losses)
            tokens += int((labels >= 0).sum())
            size_bytes += finished
        if tokens:
            results[subset] = {
                "nats_per_token": nats / tokens,
                "bits_per_byte": nats / math.log(2) / size_bytes,
                "tokens": tokens,
                "bytes": size_bytes,
            }
    model.train(was_training)
    return results


def batched(windows: Iterator[tuple[np.ndarray, int]], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield up to ``size`` windows at a time, stacked, with the sum of their bytes."""
    rows, finished = [], 0
    for window, size_bytes in windows:
        rows.append(window)
        finished += size_bytes
        if len(rows) == size:
            yield np.stack(rows), finished
            rows, finished = [], 0
    if rows:
        yield np.stack(rows), finished


def weighted(results: dict[str, dict[str, float]], shares: Mapping[str, float]) -> float:
    """Return bits per byte averaged over the subsets by their share of the training mixture."""
    total = sum(shares[subset] for subset in results)
    return sum(result["bits_per_byte"] * shares[subset] for subset, result in results.items()) / total
