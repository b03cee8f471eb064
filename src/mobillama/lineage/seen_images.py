"""What a run that learnt to see was shown at each step, and when it was shown an image: by hash."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute

from mobillama.core.errors import UserError
from mobillama.model.checkpoint import last_checkpoint
from mobillama.report.run import data_of
from mobillama.train.recipe import RunRecipe
from mobillama.vision.image_set import Example, ImageSet, Split
from mobillama.vision.images import ImageRules
from mobillama.vision.samples import ImageSamples

from .seen import RunHistory

SHORTEST_HASH = 8
pc: Any = pyarrow.compute  # its functions are made at run time


@dataclass(frozen=True)
class ImageSighting:
    """A conversation, and the steps so far that took it."""

    example: Example
    steps: list[int]


class ImageHistory(RunHistory):
    """What a run saw, by the image set it was trained on.

    Raises:
        UserError: as `RunHistory`, or the images are not here.
    """

    def __init__(self, run: Path, schema: type[RunRecipe]):
        super().__init__(run, schema)
        directory = data_of(run)
        # The recipe as the run's, with the images where they are now.
        images = self.recipe.images.model_copy(update={"directory": directory})
        self.recipe = self.recipe.model_copy(update={"images": images})
        self.set = ImageSet(directory)
        checkpoint = last_checkpoint(run)
        if checkpoint is None:
            raise UserError(f"{run}: no checkpoint here yet; train first")
        rules = ImageRules.read(checkpoint)
        step = self.recipe.samples_per_step
        self.samples = ImageSamples(self.set, self.recipe.data, rules, seed=self.recipe.seed, step=step)


def seen(history: ImageHistory, step: int, *, rank: int = 0, world: int = 1) -> list[tuple[int, Example]]:
    """Return global index and conversation of each sample of a step, or of ``rank``'s share among ``world``.

    Every image is checked against the SHA-256 that preparation recorded.

    Raises:
        UserError: there is no such step or rank, or an image was changed.
    """
    indices = history.indices(step, rank=rank, world=world)
    rows = history.samples.locate(indices).tolist()
    for image in sorted({image for row in rows for image in history.set.train.images_of(row)}):
        told = history.set.image(image)
        if hashlib.sha256(history.set.content(image)).hexdigest() != told.sha256:
            raise UserError(
                f"{history.set.directory}: image {told.name} is not what was prepared (its SHA-256 differs); "
                f"mobillama verify {history.set.directory} names the file"
            )
    examples = (history.set.example("train", row) for row in rows)
    return list(zip(indices.tolist(), examples, strict=True))


def find_image(history: ImageHistory, name: str) -> list[ImageSighting]:
    """Return the conversations about an image, each with the steps so far that took it.

    Arguments:
        name: an image's name or SHA-256 (its first eight digits suffice), an image file on this machine, or
            a conversation's id or source.

    Raises:
        UserError: there is none.
    """
    sha256 = hashlib.sha256(Path(name).read_bytes()).hexdigest() if Path(name).is_file() else name.lower()
    table = history.set.table
    by_hash = pc.starts_with(table["sha256"], sha256).to_numpy() if len(sha256) >= SHORTEST_HASH else False
    images = np.flatnonzero(pc.equal(table["name"], name).to_numpy() | by_hash)
    found = [
        sighting
        for split in ("train", "heldout")
        for sighting in sightings(history, split, rows_of(history, split, images, name))
    ]
    if not found:
        raise UserError(
            f"{history.set.directory}: no image or conversation {name!r}; try its SHA-256, or --text"
        )
    return found


def find_words(history: ImageHistory, text: str) -> list[ImageSighting]:
    """Return the conversations that hold ``text``, letter for letter, with the steps that took them."""
    if not text.strip():
        raise UserError("--text: give a passage to look for")
    found = []
    for split in ("train", "heldout"):
        messages = history.set.samples(split).table["messages"]
        holding = pc.match_substring(messages, json.dumps(text, ensure_ascii=False)[1:-1]).to_numpy()
        found += sightings(history, split, np.flatnonzero(holding).tolist())
    return found


def rows_of(history: ImageHistory, split: Split, images: np.ndarray, name: str) -> list[int]:
    """Return the conversations of a split about any of ``images``, or whose id or source is ``name``."""
    table = history.set.samples(split)
    about = np.isin(table.image_rows, images)
    ends = np.concatenate([[0], np.cumsum(about)])
    any_image = ends[table.first_images + table.image_counts] > ends[table.first_images]
    named = pc.equal(table.table["id"], name).to_numpy() | pc.equal(table.table["source"], name).to_numpy()
    return np.flatnonzero(any_image | named).tolist()


def sightings(history: ImageHistory, split: Split, rows: list[int]) -> Iterator[ImageSighting]:
    """Yield conversations with the steps so far that took them; none took a held-out one."""
    until = history.batch.first_sample(history.steps_done + 1)
    for row in rows:
        indices = history.samples.indices_of(row, until=until) if split == "train" else []
        yield ImageSighting(history.set.example(split, row), history.steps_of(indices))


def as_json(example: Example, **more: Any) -> dict[str, Any]:
    """Return a conversation as plain values (docs/vision.md)."""
    return {**more, **asdict(example)}


def lines(example: Example) -> Iterator[str]:
    """Yield a conversation as lines for people."""
    yield f"{example.subset}: {example.id}  {example.category}  {example.source}  {example.license}"
    for image in example.images:
        yield f"  image {image.name}  {image.width} x {image.height}  sha256 {image.sha256}"
    for message in example.messages:
        yield from (f"  {message['role']:>9} | {line}" for line in message["content"].splitlines())
