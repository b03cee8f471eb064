"""Which benchmark items stand in the training data: 13-grams of words, and the longest match of each item.

Source: the 13-gram rule is that of GPT-3 (Brown et al., 2020, appendix C). There case and punctuation are
removed first; here a match is verbatim, so that each one can be shown with its document. A text is taken
as it stands within a line, so the first word of a text counts where a space comes before it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from .contamination_items import Item
from .index import Index, Occurrence
from .index_search import NEVER, Integers

NGRAM_WORDS = 13
# More would leave the processor's cache and take longer.
ITEMS_AT_ONCE = 32


@dataclass(frozen=True)
class ItemMatch:
    """How much of one item stands in the training data.

    Attributes:
        ngrams: its 13-grams, over all its texts.
        ngrams_seen: how many of them the training data contain.
        longest: the longest run of whole words of it that they contain.
        occurrences: where that run stands (the first places), if the item is contaminated.
    """

    file: str
    number: int
    ngrams: int
    ngrams_seen: int
    longest: str
    occurrences: list[Occurrence]

    @property
    def contaminated(self) -> bool:
        """Whether any 13-gram of the item stands in the training data."""
        return self.ngrams_seen > 0


def contamination(index: Index, items: Iterable[Item], *, places: int = 3) -> Iterator[ItemMatch]:
    """Yield a match for each item, in order; ``places`` occurrences of the longest run of each."""
    remaining = iter(items)
    while batch := list(islice(remaining, ITEMS_AT_ONCE)):
        texts = [[Words(index, text) for text in item.texts if text.strip()] for item in batch]
        lengths = index.longest(joined([words.tokens for item in texts for words in item]))
        at = 0
        for item, words_of_item in zip(batch, texts, strict=True):
            ngrams, seen, longest = 0, 0, ""
            for words in words_of_item:
                runs = words.runs(lengths[at : at + len(words.tokens)])
                at += len(words.tokens) + 1
                ngrams += max(0, len(runs) - NGRAM_WORDS + 1)
                seen += int((runs >= NGRAM_WORDS).sum())
                run = words.text_of(int(runs.argmax()), int(runs.max()))
                longest = max(longest, run, key=lambda text: len(text.split()))
            found = index.occurrences(longest.encode(), places)[1] if seen else []
            yield ItemMatch(item.file, item.number, ngrams, seen, longest, found)


def joined(texts: list[Integers]) -> Integers:
    """Return all texts behind each other, with a token between them that nothing matches."""
    return np.concatenate([piece for text in texts for piece in (text, [NEVER])] or [np.empty(0)]).astype(
        np.int64
    )


class Words:
    """A text's words, and the tokens that each begins and ends in."""

    def __init__(self, index: Index, text: str):
        self.text = " " + text
        ids = index.corpus.tokenizer.encode(self.text, add_special_tokens=False).ids
        self.tokens = np.array(ids, np.int64)
        ends = np.cumsum(index.spelling.size_of[self.tokens])
        self.spans = [match.span() for match in re.finditer(r"\S+", self.text)]
        sizes = np.concatenate([[0], np.cumsum([len(character.encode()) for character in self.text])])
        starts = np.array([start for start, _ in self.spans])
        stops = np.array([stop for _, stop in self.spans])
        self.first = np.searchsorted(ends, sizes[starts], "right")
        self.last = np.searchsorted(ends, sizes[stops] - 1, "right")

    def runs(self, lengths: Integers) -> Integers:
        """Return how many whole words from each one on stand in the training data.

        Arguments:
            lengths: (tokens,) the longest match from each token on.
        """
        reached = self.first + lengths[self.first]
        return np.searchsorted(self.last, reached, "left") - np.arange(len(self.spans))

    def text_of(self, word: int, count: int) -> str:
        """Return ``count`` words from ``word`` on, as they stand in the text."""
        return self.text[self.spans[word][0] : self.spans[word + count - 1][1]] if count > 0 else ""


def summary(matches: Iterable[ItemMatch]) -> list[dict[str, Any]]:
    """Return for each file how many of its items share a 13-gram with the training data, as plain values."""
    rows: dict[str, dict[str, Any]] = {}
    for match in matches:
        empty = {"file": match.file, "items": 0, "contaminated": 0, "longest_words": 0}
        row = rows.setdefault(match.file, empty)
        row["items"] += 1
        row["contaminated"] += match.contaminated
        row["longest_words"] = max(row["longest_words"], len(match.longest.split()))
    return [{**row, "share": row["contaminated"] / row["items"]} for row in rows.values()]


def as_json(index: Index, match: ItemMatch) -> dict[str, Any]:
    """Return one item's match as plain values (docs/transparency.md)."""
    documents = [
        index.corpus.document_at(place.subset, "train", place.first_token) for place in match.occurrences
    ]
    return {
        "file": match.file,
        "item": match.number,
        "ngrams": match.ngrams,
        "ngrams_seen": match.ngrams_seen,
        "longest": match.longest.strip(),
        "longest_words": len(match.longest.split()),
        "documents": list(dict.fromkeys(f"{document.subset}: {document.id}" for document in documents)),
    }
