"""Held-out perplexity through a session: the same windows for a device file and for its checkpoint."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobillama.data import Corpus
from mobillama.engine.session import Session, as_tokens


@dataclass(frozen=True)
class Perplexity:
    """What a model loses on held-out text.

    Attributes:
        nats: (windows,) the summed loss of each window.
        tokens: how many tokens were predicted.
    """

    nats: NDArray[np.float64]
    tokens: int

    @property
    def value(self) -> float:
        """The perplexity."""
        return math.exp(self.nats.sum() / self.tokens)

    def increase_over(self, reference: "Perplexity") -> tuple[float, float]:
        """Return by which share this exceeds ``reference``, and the standard error over the windows.

        Both are of the same windows, so what makes a window hard cancels out.
        """
        assert len(self.nats) == len(reference.nats) and self.tokens == reference.tokens
        difference = (self.nats - reference.nats) * len(self.nats) / self.tokens  # nats a token, by window
        error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.nan
        return math.expm1(difference.mean()), error


def perplexity(session: Session, windows: Iterable[NDArray[np.integer]]) -> Perplexity:
    """Measure a model on windows (T + 1,) of tokens; each is predicted from within its window alone."""
    nats, tokens = [], 0
    for window in windows:
        session.reset()
        logits = session.forward(as_tokens(window[:-1].tolist()), all_logits=True).astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        nats.append(float((log_total - logits[np.arange(len(logits)), window[1:]]).sum()))
        tokens += len(window) - 1
    return Perplexity(np.array(nats), tokens)


def heldout_windows(corpus: Path, length: int, most_tokens: int) -> Iterator[NDArray[np.integer]]:
    """Yield windows (length + 1,) from all over the held-out text, each subset by its share of tokens."""
    opened = Corpus(corpus)
    streams = [opened.tokens(subset, "heldout") for subset in opened.subsets]
    total = sum(map(len, streams))
    for stream in streams:
        count = min(len(stream) * most_tokens // total, len(stream) - 1) // length
        for start in np.linspace(0, len(stream) - length - 1, max(count, 1)).astype(int):
            yield stream.read(int(start), int(start) + length + 1)
