"""What a run learns: the one part of training that knows whether its samples are text or something else."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from mobillama.core import records
from mobillama.core.errors import UserError
from mobillama.data import Corpus, Samples
from mobillama.model import MobiLlamaForCausalLM

from . import ancestry, heldout, speaking
from . import state as states
from .batches import Batches, TokenBatches
from .objectives import NextToken, Objective
from .parallel import World
from .precision import Precision
from .recipe import Recipe


class Work(Protocol):
    """The data, the model and the objective of a run, and how it is measured."""

    identity: str
    """Of the data: the hash of its manifest."""
    ancestors: dict[str, str]
    """The models it is made from, by role: the hash of their manifests."""
    tokens_per_sample: int
    """Exactly, or on average."""
    samples_per_epoch: int
    rates: dict[str, float]
    """Learning rates of their own, by the beginning of weights' names."""

    def model(self) -> PreTrainedModel:
        """Return the model before its first step; where it begins at random, the seed has been set."""
        ...

    def objective(self, model: Any) -> Objective:
        """Return what is minimised."""
        ...

    def batches(self, world: World) -> Batches:
        """Return a rank's micro-batches."""
        ...

    def measure(self, model: Any, precision: Precision, *, whole: bool) -> dict[str, Any]:
        """Return what to record of held-out data, ``whole`` or as much as the recipe says; {} without."""
        ...

    def left_out(self, record: dict[str, Any]) -> float:
        """Return how many times what a record measured the whole held-out data is."""
        ...

    def speak(self, model: Any) -> Iterator[tuple[str, str]]:
        """Yield prompts and what the model makes of them."""
        ...

    def dress(self, folder: Path) -> None:
        """Write what makes weights in a folder a model that can be used."""
        ...


class TextWork:
    """Learning from a prepared corpus: the next token, or a teacher's distribution of it.

    Raises:
        UserError: there is no corpus, it is damaged, or what the recipe names does not fit it.
    """

    def __init__(self, recipe: Recipe, *, check: bool = True):
        if not (recipe.corpus.directory / records.MANIFEST).exists():
            raise UserError(
                f"{recipe.corpus.directory}: no corpus here yet; run mobillama prepare with this recipe first"
            )
        if check:
            records.require_intact(recipe.corpus.directory, "corpus")
        if recipe.model.max_position_embeddings < recipe.data.sequence_length:
            raise UserError(
                f"data.sequence_length = {recipe.data.sequence_length} is over model.max_position_embeddings "
                f"= {recipe.model.max_position_embeddings}; raise that or lower this"
            )
        self.recipe = recipe
        self.corpus = Corpus(recipe.corpus.directory)
        self.samples = Samples(self.corpus, recipe.data, recipe.seed)
        self.identity = self.corpus.identity
        self.ancestors = ancestry.ancestors(recipe, self.corpus)
        self.tokens_per_sample = recipe.data.sequence_length
        self.samples_per_epoch = self.samples.samples_per_epoch
        self.rates: dict[str, float] = {}
        self.text = heldout.HeldoutText(self.corpus, recipe.data.sequence_length, recipe.evaluate.batch)

    def model(self) -> MobiLlamaForCausalLM:
        """Return a new model, or the one that the recipe starts from."""
        section, end = self.recipe.model, self.corpus.end_of_text_id
        if section.start_from is not None:
            return states.start(section.start_from, self.corpus.vocab_size)
        return MobiLlamaForCausalLM(
            section.config(self.corpus.vocab_size, bos_token_id=end, eos_token_id=end)
        )

    def objective(self, model: Any) -> Objective:
        """Return what the run minimises; a teacher is loaded beside the model."""
        if self.recipe.distill is None:
            return NextToken(self.recipe.train.z_loss)
        from .distillation import Distillation, open_teacher

        teacher = open_teacher(self.recipe.distill, model, states.compute_dtype(self.recipe))
        return Distillation(teacher, self.recipe.distill)

    def batches(self, world: World) -> TokenBatches:
        """Return a rank's micro-batches of tokens."""
        return TokenBatches(self.samples, self.recipe.train.micro_batch, world)

    def measure(self, model: Any, precision: Precision, *, whole: bool) -> dict[str, Any]:
        """Return bits per byte of held-out text, by subset and over the mixture."""
        most_bytes = None if whole else self.recipe.evaluate.bytes
        results = heldout.measure(model, self.text, precision, most_bytes=most_bytes)
        if not results:
            return {}
        shares = {share.name: share.quota for share in self.samples.order.shares}
        total = heldout.weighted(results, shares)
        return {"bits_per_byte": total, "whole": most_bytes is None, "subsets": results}

    def left_out(self, record: dict[str, Any]) -> float:
        """Return how many times the tokens that a record measured are held out."""
        measured = sum(result["tokens"] for result in record.get("subsets", {}).values())
        whole = sum(len(self.corpus.tokens(subset, "heldout")) for subset in self.corpus.subsets)
        return whole / max(1, measured)

    def speak(self, model: Any) -> Iterator[tuple[str, str]]:
        """Yield the recipe's prompts and how the model goes on from them."""
        for prompt in self.recipe.sample.prompts:
            yield prompt, speaking.complete(model, self.corpus, prompt, self.recipe.sample)

    def dress(self, folder: Path) -> None:
        """Put the tokenizer beside the weights."""
        for file in sorted((self.corpus.directory / "tokenizer").iterdir()):
            shutil.copyfile(file, folder / file.name)
