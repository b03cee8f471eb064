"""Samples of an image set by global index: the same for any number of ranks, found again by arithmetic."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mobillama.core.errors import UserError, did_you_mean
from mobillama.data.order import Indices, Permutation, SampleOrder, SubsetShare, round_keys

from .conversation import expand
from .image_set import Example, ImageSet, SampleTable
from .images import ImageRules, open_image
from .recipe import VisionDataSection

IGNORED = -100
"""Label of a position that does not count."""
CACHE_BYTES = 256 << 20
"""Decoded squares that are kept, for sets whose images come round often."""
WINDOWS_KEPT = 8
PHASE_SEEDS = 1_000_003
"""Between the seeds of two phases, so that each draws in an order of its own."""

Arrays = dict[str, NDArray[np.generic]]


class ImageSamples:
    """The samples of a run: a pure function of image set, ``[data]`` section, seed and global index.

    With ``length_groups`` > 1, the samples of that many steps, a window, are sorted by length, cut into
    steps, and the steps shuffled by a keyed permutation: each step's samples are about equally long.

    Raises:
        UserError: the mixture does not fit the set, or an image does not fit a sample.
    """

    def __init__(
        self, images: ImageSet, section: VisionDataSection, rules: ImageRules, *, seed: int, step: int
    ):
        self.set, self.section, self.rules, self.seed, self.step = images, section, rules, seed, step
        categories = images.train.categories
        self.rows = {name: np.flatnonzero(categories == name) for name in images.categories}
        counts = {name: len(rows) for name, rows in self.rows.items()}
        mixtures = [*(phase.weights for phase in section.phases), section.weights]
        self.starts = np.cumsum([0, *(phase.samples for phase in section.phases)])
        self.orders = [
            SampleOrder(shares_of(weights, counts, str(images.directory)), seed=seed + number * PHASE_SEEDS)
            for number, weights in enumerate(mixtures)
        ]
        self.squares = squares_by_image(images, rules)
        self.lengths = expanded_lengths(images.train, self.squares, rules.tokens)
        self.window = step * section.length_groups
        self._ordered = lru_cache(WINDOWS_KEPT)(self._sorted_window)
        per_square = 3 * rules.image_size**2
        self._decoded = lru_cache(max(1, CACHE_BYTES // per_square))(self._decode)
        self.pool = ThreadPoolExecutor(section.workers)
        self.features: NDArray[np.float16] | None = None
        """Of a frozen tower, (squares of all images, tokens, width), where they are to stand for pixels."""

    @property
    def samples_per_epoch(self) -> int:
        """Samples in one mixture epoch."""
        return self.orders[-1].samples_per_epoch

    def locate(self, indices: ArrayLike) -> Indices:
        """Return the row in the set's training samples of each global index."""
        wanted = np.asarray(indices, dtype=np.int64)
        if self.section.length_groups > 1:
            windows, places = np.divmod(wanted, self.window)
            drawn = [self._ordered(int(window))[place] for window, place in zip(windows, places, strict=True)]
            wanted = np.asarray(drawn, dtype=np.int64)
        return self.rows_at(wanted)

    def rows_at(self, drawn: Indices) -> Indices:
        """Return the row of each index of the order before lengths are grouped."""
        rows = list(self.rows.values())
        found = np.empty_like(drawn)
        phases = np.searchsorted(self.starts, drawn, side="right") - 1
        for phase in np.unique(phases):
            chosen = phases == phase
            located = self.orders[phase].locate(drawn[chosen] - self.starts[phase])
            found[chosen] = [rows[category][sample] for category, sample in zip(*located, strict=True)]
        return found

    def indices_of(self, row: int, *, until: int) -> list[int]:
        """Return, ascending, the global indices below ``until`` at which a training sample is read."""
        category = str(self.set.train.categories[row])
        number, place = list(self.rows).index(category), int(np.searchsorted(self.rows[category], row))
        grouped = self.section.length_groups > 1
        end = -(-until // self.window) * self.window if grouped else until
        drawn: list[int] = []
        for order, start, stop in zip(self.orders, self.starts, [*self.starts[1:], end], strict=True):
            last = min(int(stop), end) - int(start)
            drawn += [int(start) + index for index in order.indices_of(number, place, until=last)]
        if grouped:
            drawn = [self._grouped_place(index) for index in drawn]
        return sorted(index for index in drawn if index < until)

    def _grouped_place(self, drawn: int) -> int:
        window = drawn // self.window
        return window * self.window + int(np.flatnonzero(self._ordered(window) == drawn)[0])

    def _sorted_window(self, window: int) -> Indices:
        """Return which index of the order stands at each place of a window."""
        first = window * self.window
        drawn = np.arange(first, first + self.window, dtype=np.int64)
        by_length = drawn[np.argsort(self.lengths[self.rows_at(drawn)], kind="stable")]
        groups = self.section.length_groups
        keys = round_keys(self.seed, "length groups", window)
        shuffled = Permutation(groups, keys).forward(np.arange(groups))
        return by_length.reshape(groups, self.step)[shuffled].ravel()

    def examples(self, indices: ArrayLike) -> Iterator[Example]:
        """Yield what stands at global indices, with all that is known of it."""
        for row in self.locate(indices).tolist():
            yield self.set.example("train", row)

    def fetch(self, indices: ArrayLike) -> Arrays:
        """Return the training samples at global indices as one batch (see ``collate``)."""
        return self.collate(self.set.train, self.locate(indices))

    def collate(self, table: SampleTable, rows: ArrayLike) -> Arrays:
        """Return samples of a table as a batch, padded on the right.

        ``input_ids`` (n, T), each image as many tokens as the model sees of it; ``labels`` (n, T), already
        shifted, which count in answers only; ``pixel_values`` (squares, 3, S, S) where there are images.
        """
        chosen = np.asarray(rows, dtype=np.int64).tolist()
        images = [table.images_of(row) for row in chosen]
        spelled = [
            expand(table.spelled(row), self.set.image_id, self.squares[numbers] * self.rules.tokens)
            for row, numbers in zip(chosen, images, strict=True)
        ]
        longest = min(self.section.sequence_length, max(len(one.ids) for one in spelled) - 1)
        ids = np.full((len(chosen), longest), self.set.end_of_text_id, dtype=np.int64)
        labels = np.full((len(chosen), longest), IGNORED, dtype=np.int64)
        for place, one in enumerate(spelled):
            inputs, targets = one.ids[:-1][:longest], one.ids[1:][:longest]
            if (one.ids[longest:] == self.set.image_id).any():
                raise UserError(
                    f"{self.set.directory}: sample {chosen[place]} is cut within an image; "
                    f"data.sequence_length = {self.section.sequence_length} is too short for it"
                )
            ids[place, : len(inputs)] = inputs
            labels[place, : len(targets)] = np.where(one.answers[1:][:longest], targets, IGNORED)
        batch: Arrays = {"input_ids": ids, "labels": labels}
        if shown := [number for numbers in images for number in numbers]:
            batch["pixel_values"] = self.pixels(shown) if self.features is None else self.ready(shown)
        return batch

    def pixels(self, images: list[int]) -> NDArray[np.float32]:
        """Return what the tower sees of images, (squares, 3, S, S)."""
        if self.section.blind:
            shape = (int(self.squares[images].sum()), 3, self.rules.image_size, self.rules.image_size)
            return np.zeros(shape, dtype=np.float32)
        squares = list(self.pool.map(self._decoded, images))
        return self.rules.normalised(np.concatenate(squares))

    def ready(self, images: list[int]) -> NDArray[np.float32]:
        """Return the features of images, (squares, tokens, width), that were computed before."""
        assert self.features is not None
        ends = np.cumsum(self.squares)
        rows = [np.arange(ends[image] - self.squares[image], ends[image]) for image in images]
        return self.features[np.concatenate(rows)].astype(np.float32)

    def _decode(self, image: int) -> NDArray[np.uint8]:
        opened = open_image(self.set.content(image), where=f"{self.set.directory}: image {image}")
        return np.stack([np.asarray(square) for square in self.rules.squares(opened)])


def shares_of(weights: dict[str, float] | None, counts: dict[str, int], where: str) -> list[SubsetShare]:
    """Return the part of each category in one mixture epoch.

    Raises:
        UserError: the mixture names other categories than the set has, or takes from an empty one.
    """
    given = weights or {name: float(count) for name, count in counts.items()}
    for name in given:
        if name not in counts:
            hint = did_you_mean(name, counts) or f"; it has {', '.join(counts)}"
            raise UserError(f"data.weights: {where} has no category {name}{hint}")
        if given[name] and not counts[name]:
            raise UserError(f"data.weights: category {name} has no sample to train on; give it 0")
    if not any(given.values()):
        raise UserError(f"data.weights: every category of {where} has weight 0; give at least one a share")
    scale = sum(counts.values()) / sum(given.values())
    return [SubsetShare(name, counts[name], round(given.get(name, 0.0) * scale)) for name in counts]


def squares_by_image(images: ImageSet, rules: ImageRules) -> NDArray[np.int64]:
    """Return how many squares each image of a set is shown as."""
    if not rules.tiles:
        return np.ones(len(images.widths), dtype=np.int64)
    sizes = zip(images.widths.tolist(), images.heights.tolist(), strict=True)
    return np.asarray([rules.squares_of(size) for size in sizes], dtype=np.int64)


def expanded_lengths(table: SampleTable, squares: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """Return the tokens of each sample, with all that the model sees of its images."""
    more = np.concatenate([[0], np.cumsum(squares[table.image_rows] * tokens - 1)])
    first = table.first_images
    return table.lengths + more[first + table.image_counts] - more[first]
