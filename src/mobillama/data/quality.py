"""Which documents are worth keeping: each filter names why it drops one."""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from datatrove.data import Document

from mobillama.core.errors import UserError

from .order import Words
from .recipe import FilterSection

Reason = tuple[str, str]


def reason_to_drop(document: Document, hashes: Words, filters: FilterSection) -> Reason | None:
    """Return (reason, detail) when a filter rejects a document, else None.

    Arguments:
        hashes: the document's shingles.
    """
    size_bytes = len(document.text.encode())
    if size_bytes < filters.min_bytes:
        return "too_short", f"{size_bytes} bytes, at least {filters.min_bytes} wanted"
    lines = duplicate_lines(document.text)
    if lines > filters.max_duplicate_lines:
        return "repeated_lines", f"{lines:.3f} of the text, at most {filters.max_duplicate_lines} wanted"
    grams = duplicate_ngrams(hashes)
    if grams > filters.max_duplicate_ngrams:
        return "repeated_ngrams", f"{grams:.3f} of the 5-grams, at most {filters.max_duplicate_ngrams} wanted"
    if filters.languages:
        language, score = language_of(document)
        if language not in filters.languages or score < filters.language_threshold:
            return "language", f"{language} with {score:.2f}"
    return None


def duplicate_lines(text: str) -> float:
    """Return the share of a text's characters in lines that occurred before in it (blank ones apart).

    Source: Rae et al. 2021 (Gopher), table A1, "duplicate line character fraction".
    """
    seen: set[str] = set()
    total = repeated = 0
    for line in text.splitlines():
        if stripped := line.strip():
            total += len(stripped)
            if stripped in seen:
                repeated += len(stripped)
            else:
                seen.add(stripped)
    return repeated / total if total else 0.0


def duplicate_ngrams(hashes: Words) -> float:
    """Return the share of word 5-grams that occurred before in the text."""
    return 1 - len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


def language_of(document: Document) -> tuple[str, float]:
    """Return the likeliest language's code and its probability."""
    (language, score), _ = _language_model().predict(document)
    return language, score


@cache
def _language_model() -> Any:
    """Open fastText's lid.176, which datatrove downloads once."""
    if find_spec("fasttext") is None:
        raise UserError("corpus.filters.languages needs fastText: pip install fasttext-numpy2-wheel")
    from datatrove.utils.lid import FT176LID

    return FT176LID()
