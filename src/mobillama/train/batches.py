"""Batches for the loop: micro-batches of a step on this rank, fetched ahead in a thread."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from mobillama.data import Samples, rank_slice

from .objectives import Batch
from .parallel import World


class Batches(Protocol):
    """What the loop asks of its data: this rank's micro-batches of a step, given its global samples."""

    def micro_batches(self, first: int, count: int) -> list[Batch]: ...

    def describe(self, first: int, count: int) -> list[str]: ...


class TokenBatches:
    """Samples of a corpus as micro-batches of tensors on the device."""

    def __init__(self, samples: Samples, micro_batch: int, world: World):
        self.samples = samples
        self.micro_batch = micro_batch
        self.world = world

    def micro_batches(self, first: int, count: int) -> list[Batch]:
        """Return this rank's share of samples ``first .. first + count - 1``, in their order."""
        mine = rank_slice(first, count, rank=self.world.rank, world=self.world.size)
        cuts = range(0, len(mine), self.micro_batch)
        return [self.tensors(mine[cut : cut + self.micro_batch]) for cut in cuts]

    def tensors(self, indices: np.ndarray) -> Batch:
        """Return the samples at global ``indices`` as int64 tensors (n, L)."""
        return {
            key: torch.from_numpy(value).to(self.world.device)
            for key, value in self.samples.fetch(indices).items()
        }

    def describe(self, first: int, count: int) -> list[str]:
        """Return the documents behind samples ``first .. first + count - 1``."""
        spans = (span for index in range(first, first + count) for span in self.samples.documents(index))
        return sorted({f"{span.document.subset}: {span.document.id}" for span in spans})


def ahead(batches: Batches, ranges: Iterator[tuple[int, int]]) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each range of samples while the next are being fetched."""
    with ThreadPoolExecutor(1) as fetcher:
        pending = None
        for first, count in ranges:
            upcoming = fetcher.submit(batches.micro_batches, first, count)
            if pending is not None:
                yield pending.result()
            pending = upcoming
        if pending is not None:
            yield pending.result()
