"""Micro-batches of images and conversations for the training loop, and what a model does on held-out ones."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mobillama.data import rank_slice

from .samples import IGNORED, Arrays, ImageSamples

Tensors = dict[str, torch.Tensor]


class VisionBatches:
    """A rank's samples as micro-batches of tensors on its device.

    Arguments:
        world: this process among those that train: ``rank``, ``size`` and ``device``.
    """

    def __init__(self, samples: ImageSamples, micro_batch: int, world: Any):
        self.samples, self.micro_batch, self.world = samples, micro_batch, world

    def micro_batches(self, first: int, count: int) -> list[Tensors]:
        """Return this rank's share of samples ``first .. first + count - 1``."""
        mine = rank_slice(first, count, rank=self.world.rank, world=self.world.size)
        cuts = range(0, len(mine), self.micro_batch)
        return [
            tensors(self.samples.fetch(mine[cut : cut + self.micro_batch]), self.world.device) for cut in cuts
        ]

    def describe(self, first: int, count: int) -> list[str]:
        """Return the images and conversations behind samples ``first .. first + count - 1``."""
        examples = self.samples.examples(np.arange(first, first + count))
        return sorted(
            {f"{one.subset}: {one.id} ({', '.join(image.name for image in one.images)})" for one in examples}
        )


def tensors(batch: Arrays, device: torch.device) -> Tensors:
    """Return arrays as tensors on a device."""
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


@torch.inference_mode()
def measure_heldout(
    model: Any, samples: ImageSamples, precision: Any, *, batch: int, most: int | None
) -> dict[str, dict[str, float]]:
    """Return by category of the held-out conversations ``nats_per_token`` of the answers, and their ``exact``
    share: answers whose every token is the model's first choice after the ones before it.

    Arguments:
        precision: gives the context of forward passes (``context()``).
        most: conversations to measure, spread evenly over all; all of them where None.
    """
    table = samples.set.heldout
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])
    for rows in chunks(spread(len(table), most), batch):
        given = tensors(samples.collate(table, rows), device)
        labels = given.pop("labels")
        with precision.context():
            hidden = model.model(**given, use_cache=False).last_hidden_state
            counted = labels != IGNORED
            logits = (hidden[counted] @ model.lm_head.weight.to(hidden.dtype).T).float()
        wanted = labels[counted]
        losses = functional.cross_entropy(logits, wanted, reduction="none").double().cpu()
        hits = (logits.argmax(-1) == wanted).cpu()
        for place, (loss, hit) in enumerate(zip(*(split(x, counted) for x in (losses, hits)), strict=True)):
            told = sums[str(table.categories[rows[place]])]
            told[0] += float(loss.sum())
            told[1] += len(loss)
            told[2] += float(bool(hit.all()))
            told[3] += 1
    model.train(was_training)
    return {
        name: {
            "nats_per_token": nats / max(1, tokens),
            "exact": exact / answers,
            "tokens": tokens,
            "answers": answers,
        }
        for name, (nats, tokens, exact, answers) in sorted(sums.items())
    }


def split(values: torch.Tensor, counted: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return values of counted positions, by row of (n, T) ``counted``."""
    return values.split(counted.sum(1).tolist())


def spread(count: int, most: int | None) -> list[int]:
    """Return up to ``most`` of ``count`` rows, evenly spread."""
    if most is None or most >= count:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def chunks(rows: list[int], size: int) -> Iterator[list[int]]:
    """Yield lists of up to ``size`` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
