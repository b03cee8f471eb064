"""Learning to see, as the training loop asks for it: data, model, measurements."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from mobillama.core.checked import require_checked
from mobillama.core.errors import UserError
from mobillama.core.records import MANIFEST, manifest_hash, require_intact
from mobillama.model import checkpoint

from .batches import VisionBatches, measure_heldout
from .building import build_model, image_rules, rates_of
from .conversation import MARKER
from .features import use_cached
from .image_set import KIND, ImageSet
from .recipe import VisionSections
from .samples import ImageSamples

STARTED_FROM = "started_from"


class VisionWork:
    """Conversations about images, learnt by a tower, a projector and a language model.

    Arguments:
        recipe: a run's, with `VisionSections`.
        objective: makes of a model what is minimised, as for text (the loss counts answers only).

    Raises:
        UserError: the images are not prepared or damaged, or what the recipe names does not fit them.
    """

    def __init__(self, recipe: Any, objective: Any, *, check: bool = True):
        sections: VisionSections = recipe
        directory = sections.images.directory
        if not (directory / MANIFEST).exists():
            raise UserError(f"{directory}: no images here yet; run mobillama prepare with this recipe first")
        if check:
            require_checked(directory, KIND)
        self.recipe, self.objective = recipe, objective
        self.set = ImageSet(directory)
        self.identity = self.set.identity
        self.ancestors = ancestors(sections, self.set)
        self.rules = image_rules(sections)
        if sections.model.max_position_embeddings < sections.data.sequence_length:
            raise UserError(
                f"data.sequence_length = {sections.data.sequence_length} is over "
                f"model.max_position_embeddings = {sections.model.max_position_embeddings}; lower it"
            )
        self.samples = ImageSamples(
            self.set, sections.data, self.rules, seed=recipe.seed, step=recipe.samples_per_step
        )
        self.tokens_per_sample = max(1, round(float(self.samples.lengths.mean())))
        self.samples_per_epoch = self.samples.samples_per_epoch
        self.rates = rates_of(sections.learn)

    def model(self) -> LlavaForConditionalGeneration:
        """Return the model before its first step."""
        numbers = {"vocab_size": self.set.vocab_size, "image_id": self.set.image_id}
        model = build_model(self.recipe, **numbers, end_id=self.set.end_of_text_id)
        if self.recipe.data.cache_features:
            use_cached(model, self.samples)
        return model

    def batches(self, world: Any) -> VisionBatches:
        """Return a rank's micro-batches."""
        return VisionBatches(self.samples, self.recipe.train.micro_batch, world)

    def measure(self, model: Any, precision: Any, *, whole: bool) -> dict[str, Any]:
        """Return how well held-out answers are told, by category and over all; {} without any."""
        most, batch = self.recipe.evaluate.samples, self.recipe.train.micro_batch
        told = measure_heldout(model, self.samples, precision, batch=batch, most=None if whole else most)
        if not told:
            return {}
        answers, tokens = (sum(row[key] for row in told.values()) for key in ("answers", "tokens"))
        return {
            "nats_per_token": sum(row["nats_per_token"] * row["tokens"] for row in told.values()) / tokens,
            "exact": sum(row["exact"] * row["answers"] for row in told.values()) / answers,
            "whole": whole or most is None,
            "subsets": told,
        }

    def left_out(self, record: dict[str, Any]) -> float:
        """Return how many times what a record measured all held-out conversations are."""
        measured = sum(row["answers"] for row in record.get("subsets", {}).values())
        return len(self.set.heldout) / max(1, measured)

    def speak(self, model: Any) -> Iterator[tuple[str, str]]:
        """Yield nothing: a model that sees is shown by its gallery."""
        yield from ()

    def dress(self, folder: Path) -> None:
        """Put tokenizer, chat template and image rules beside the weights."""
        for file in sorted((self.set.directory / "tokenizer").iterdir()):
            shutil.copyfile(file, folder / file.name)
        self.rules.write(folder)


def ancestors(recipe: VisionSections, images: ImageSet) -> dict[str, str]:
    """Return the manifest hash of the model that a recipe starts from, after checking every file of it.

    Raises:
        UserError: it is not there, not whole, or its tokens are not those of the images.
    """
    if recipe.model.start_from is None:
        return {}
    folder = checkpoint.locate(recipe.model.start_from)
    require_intact(folder)
    theirs, ours = (
        Tokenizer.from_file(str(place / "tokenizer.json")).get_vocab()
        for place in (folder, images.directory / "tokenizer")
    )
    if {**theirs, MARKER: ours[MARKER]} != ours:
        raise UserError(
            f"{folder}/tokenizer.json: not the tokenizer of {images.directory}; prepare the images with "
            f'images.tokenizer.path = "{folder}/tokenizer.json"'
        )
    return {STARTED_FROM: manifest_hash(folder)}
