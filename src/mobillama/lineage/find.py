"""When a run saw a document, a source or a passage: the inverse of ``seen``."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mobillama.core.errors import UserError
from mobillama.data import Document

from .index import Index, Occurrence
from .seen import History

CONTEXT_BYTES = 160


@dataclass(frozen=True)
class Sighting:
    """A document, or a passage in it with the text around it, and the steps so far that saw it."""

    document: Document
    steps: list[int]
    before: str = ""
    passage: str = ""
    after: str = ""


@dataclass(frozen=True)
class Sightings:
    """How many there are, and the first of them."""

    count: int
    first: list[Sighting]


def find_document(history: History, name: str, limit: int) -> Sightings:
    """Return the documents whose id or source is ``name``, each with the steps that saw any of its tokens.

    Raises:
        UserError: the corpus has none.
    """
    documents = history.corpus.find(name)
    if not documents:
        raise UserError(f"{history.corpus.directory}: no document with id or source {name!r}; try --text")
    first = [Sighting(document, steps_of(history, document)) for document in documents[:limit]]
    return Sightings(len(documents), first)


def steps_of(history: History, document: Document) -> list[int]:
    """Return the steps that saw any token of a document; none saw a held-out one."""
    if document.split != "train":
        return []
    return history.steps_with(document.subset, document.start, document.stop - 1)


def find_text(history: History, index: Index, text: str, limit: int) -> Sightings:
    """Return where ``text`` stands in the training data, each with the steps that saw any of its tokens.

    Raises:
        UserError: there is nothing to look for.
    """
    if not text.strip():
        raise UserError("--text: give a passage to look for")
    count, occurrences = index.occurrences(text.encode(), limit)
    return Sightings(count, sightings(history, occurrences, len(text.encode())))


def sightings(history: History, occurrences: Iterable[Occurrence], size_bytes: int) -> list[Sighting]:
    """Return occurrences of a passage of ``size_bytes`` with their documents, surroundings and steps.

    Raises:
        UserError: a document was changed after preparation.
    """
    found = []
    for place in occurrences:
        stream = history.corpus.tokens(place.subset)
        document = stream.document_at(place.first_token)
        text = history.document_bytes(document)
        lead = history.spelling.decode(stream.read(document.start, place.first_token).tolist())
        start = len(lead) + place.skip
        stop = start + size_bytes
        pieces = (
            text[max(0, start - CONTEXT_BYTES) : start],
            text[start:stop],
            text[stop : stop + CONTEXT_BYTES],
        )
        # A character cut at the outer ends is left out.
        before, passage, after = (piece.decode("utf-8", errors="ignore") for piece in pieces)
        steps = history.steps_with(place.subset, place.first_token, place.last_token)
        found.append(Sighting(document, steps, before, passage, after))
    return found


def as_json(found: Sightings) -> dict[str, Any]:
    """Return what was found as plain values (docs/transparency.md)."""
    return {"count": found.count, "found": [sighting_json(sighting) for sighting in found.first]}


def sighting_json(sighting: Sighting) -> dict[str, Any]:
    """Return one sighting as plain values."""
    document = sighting.document
    return {
        "id": document.id,
        "source": document.source,
        "license": document.license,
        "subset": document.subset,
        "split": document.split,
        "first_token": document.start,
        "tokens": document.length,
        "steps": sighting.steps,
        "before": sighting.before,
        "passage": sighting.passage,
        "after": sighting.after,
    }
