"""What a run saw at each step, and at which steps it saw what: computed from the recipe, not looked up."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mobillama.core import config
from mobillama.core.errors import UserError
from mobillama.core.records import LEDGER, Ledger
from mobillama.data import Corpus, Document, Samples, Span, rank_slice
from mobillama.data.order import Indices
from mobillama.report.run import data_of
from mobillama.train.recipe import Recipe, RunRecipe
from mobillama.train.schedule import BatchPlan

from .index_spelling import Spelling

TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Piece:
    """Part of a document inside a sample, with its text (the last token of a sample is only predicted)."""

    span: Span
    text: str


@dataclass(frozen=True)
class SeenSample:
    """One sample of a step: its global index, its subset and number there, and what it is made of."""

    index: int
    subset: str
    sample: int
    pieces: list[Piece]


class RunHistory:
    """A run's recipe and records, from which follows what each step took.

    Raises:
        UserError: not a run directory, or its records were changed.
    """

    def __init__(self, run: Path, schema: type[RunRecipe]):
        if not (run / "run.toml").is_file():
            raise UserError(f"{run}: no run.toml here; give the directory that mobillama train wrote")
        Ledger(run / LEDGER).require_intact()
        self.run = run
        self.recipe: Any = config.load(run / "run.toml", schema).recipe
        ramp = self.recipe.train.schedule.batch_ramp_steps
        self.batch = BatchPlan(self.recipe.samples_per_step, ramp)

    @cached_property
    def steps_done(self) -> int:
        """The newest step that the run's records tell of."""
        told = [entry.get("step", 0) for entry in Ledger(self.run / LEDGER).entries()]
        return max([0, *told, last_step(self.run / "metrics.jsonl")])

    def indices(self, step: int, *, rank: int = 0, world: int = 1) -> Indices:
        """Return the global indices of a step's samples, or of ``rank``'s share among ``world``, (n,) int64.

        Raises:
            UserError: there is no such step or rank.
        """
        if step < 1:
            raise UserError(f"--step {step}: steps count from 1")
        if not 0 <= rank < world:
            raise UserError(f"--rank {rank}/{world}: ranks count from 0 to {world - 1}")
        first, count = self.batch.first_sample(step), self.batch.samples(step)
        return rank_slice(first, count, rank=rank, world=world)

    def step_of(self, index: int) -> int:
        """Return the step, from 1, that the sample with this global index belongs to."""
        ramp = self.batch.ramp_steps
        steady = self.batch.first_sample(ramp + 1)
        if index >= steady:
            return ramp + 1 + (index - steady) // self.batch.batch
        return bisect_right(range(1, ramp + 1), index, key=self.batch.first_sample)

    def steps_of(self, indices: Iterable[int]) -> list[int]:
        """Return the steps, ascending, that global indices belong to."""
        return sorted({self.step_of(index) for index in indices})


class History(RunHistory):
    """What a run of text saw, by the corpus it was trained on.

    Raises:
        UserError: as `RunHistory`, or its corpus is not here.
    """

    def __init__(self, run: Path):
        super().__init__(run, Recipe)
        directory = data_of(run)
        # The recipe as the run's, with the corpus where it is now.
        corpus = self.recipe.corpus.model_copy(update={"directory": directory})
        self.recipe = self.recipe.model_copy(update={"corpus": corpus})
        self.corpus = Corpus(directory)
        self.samples = Samples(self.corpus, self.recipe.data, self.recipe.seed)

    @cached_property
    def spelling(self) -> Spelling:
        """What the corpus's tokens stand for."""
        return Spelling(self.corpus.tokenizer)

    def steps_with(self, subset: str, first_token: int, last_token: int) -> list[int]:
        """Return the steps so far that saw any of the tokens ``first_token .. last_token``, both included."""
        until = self.batch.first_sample(self.steps_done + 1)
        return self.steps_of(self.samples.seen(subset, first_token, last_token, until))

    def document_bytes(self, document: Document) -> bytes:
        """Return a document's text as UTF-8.

        Raises:
            UserError: its tokens no longer spell the text that was prepared.
        """
        stream = self.corpus.tokens(document.subset, document.split)
        text = self.spelling.decode(stream.read(document.start, document.stop - 1).tolist())
        if hashlib.sha256(text).hexdigest() != document.sha256:
            raise UserError(
                f"{stream.directory}: document {document.id} is not what was prepared (its SHA-256 differs); "
                f"mobillama verify {self.corpus.directory} names the file"
            )
        return text


def last_step(metrics: Path) -> int:
    """Return the step of the last whole line of ``metrics.jsonl``, read from its end; 0 without one."""
    if not metrics.is_file():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        whole = file.read().rpartition(b"\n")[0]
    return int(json.loads(whole.rpartition(b"\n")[2])["step"]) if whole else 0


def seen(history: History, step: int, *, rank: int = 0, world: int = 1) -> list[SeenSample]:
    """Return the samples of an optimizer step, or ``rank``'s share of them among ``world`` ranks, in order.

    Each document is checked against the SHA-256 that preparation recorded.

    Raises:
        UserError: there is no such step or rank, or a document was changed.
    """
    indices = history.indices(step, rank=rank, world=world)
    subsets, samples = history.samples.locate(indices)
    checked: set[tuple[str, int]] = set()
    found = []
    for index, subset, sample in zip(indices.tolist(), subsets.tolist(), samples.tolist(), strict=True):
        spans = history.samples.documents(index)
        for document in (span.document for span in spans):
            if (document.subset, document.start) not in checked:
                history.document_bytes(document)
                checked.add((document.subset, document.start))
        pieces = [Piece(span, text_of(history, span)) for span in spans]
        found.append(SeenSample(index, history.corpus.subsets[subset], sample, pieces))
    return found


def text_of(history: History, span: Span) -> str:
    """Return the text of part of a document; a character cut at an end shows as U+FFFD."""
    stream = history.corpus.tokens(span.document.subset, span.document.split)
    tokens = stream.read(span.document.start + span.first, span.document.start + span.stop)
    return history.spelling.decode(tokens.tolist()).decode("utf-8", errors="replace")


def as_json(history: History, step: int, samples: list[SeenSample]) -> dict[str, Any]:
    """Return the samples of a step as plain values (docs/transparency.md)."""
    return {
        "run": str(history.run),
        "step": step,
        "done": step <= history.steps_done,
        "samples": [
            {
                "index": sample.index,
                "subset": sample.subset,
                "sample": sample.sample,
                "documents": [
                    {
                        "id": piece.span.document.id,
                        "source": piece.span.document.source,
                        "license": piece.span.document.license,
                        "first_token": piece.span.first,
                        "stop_token": piece.span.stop,
                        "text": piece.text,
                    }
                    for piece in sample.pieces
                ],
            }
            for sample in samples
        ],
    }
