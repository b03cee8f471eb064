"""Which benchmark items stand in the training data: 13-grams of words, and the longest match of each item.

The training tokens are read once for tens of thousands of items: a run of tokens that the items and the
corpus share is told by its hash, and only from there on is the suffix array asked how far the match goes.

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

from mobillama.data import Corpus
from mobillama.data.minhash import ngrams

from .contamination_items import Item
from .index import Index, Occurrence
from .index_search import NEVER, Integers

NGRAM_WORDS = 13
LEAST_WORDS = 8
"""Shorter runs are common phrases and count as none. So many words are at least so many tokens."""
ITEMS_AT_ONCE = 1 << 16
TEXTS_AT_ONCE = 1 << 10
TOKENS_AT_ONCE = 1 << 16
"""So many training tokens and their hashes stay in the processor's cache."""
TABLE_BITS = 26
"""A table of 64 MB says of nine hashes in ten that no item has them."""


@dataclass(frozen=True)
class ItemMatch:
    """How much of one item stands in the training data.

    Attributes:
        ngrams: its 13-grams, over all its texts.
        ngrams_seen: how many of them the training data contain.
        longest: the longest run of whole words of it that they contain, empty below ``LEAST_WORDS``.
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
        runs_of = matched_runs(index, [text for item in batch for text in item.texts])
        for item in batch:
            total = sum(max(0, len(text.split()) - NGRAM_WORDS + 1) for text in item.texts)
            found = [runs_of[text] for text in item.texts if text in runs_of]
            seen = sum(ngrams_seen for ngrams_seen, _ in found)
            longest = max((run for _, run in found), key=lambda run: len(run.split()), default="")
            occurrences = index.occurrences(longest.encode(), places)[1] if seen else []
            yield ItemMatch(item.file, item.number, total, seen, longest, occurrences)


def matched_runs(index: Index, texts: list[str]) -> dict[str, tuple[int, str]]:
    """Return of each text that shares a run with the training data: 13-grams seen, longest run of words."""
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    if not texts:
        return {}
    tokens = tokenised(index, texts)
    bounds = np.cumsum([0, *map(len, tokens)])
    joined = np.concatenate(tokens)
    lengths = np.zeros(len(joined), np.int64)
    positions = shared_positions(index.corpus, joined)
    lengths[positions] = index.longest(joined, positions)
    runs_of = {}
    for number in np.unique(np.searchsorted(bounds, np.flatnonzero(lengths), "right") - 1).tolist():
        words = Words(index, texts[number], tokens[number])
        runs = words.runs(lengths[bounds[number] : bounds[number + 1]])
        if runs.max() >= LEAST_WORDS:
            run = words.text_of(int(runs.argmax()), int(runs.max()))
            runs_of[texts[number]] = int((runs >= NGRAM_WORDS).sum()), run
    return runs_of


def tokenised(index: Index, texts: list[str]) -> list[Integers]:
    """Return the tokens of each text within a line, and behind them one that nothing matches."""
    tokenizer, found = index.corpus.tokenizer, []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        lines = [" " + text for text in texts[start : start + TEXTS_AT_ONCE]]
        encoded = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        found += [np.array([*one.ids, NEVER], np.int64) for one in encoded]
    return found


def shared_positions(corpus: Corpus, tokens: Integers) -> Integers:
    """Return where in ``tokens`` a run of ``LEAST_WORDS`` tokens begins that the training data hold as well.

    Told by 64-bit hashes: every such place is returned, and hardly ever another.
    """
    hashes = ngrams(tokens.astype(np.uint64), LEAST_WORDS)
    wanted = np.sort(hashes)
    seen = np.zeros(len(wanted), np.bool_)
    table = np.zeros(1 << TABLE_BITS, np.bool_)
    shift = np.uint64(64 - TABLE_BITS)
    table[wanted >> shift] = True
    for subset in corpus.subsets:
        stream = corpus.tokens(subset)
        for start in range(0, len(stream), TOKENS_AT_ONCE):
            stop = min(start + TOKENS_AT_ONCE + LEAST_WORDS - 1, len(stream))
            theirs = ngrams(stream.read(start, stop).astype(np.uint64), LEAST_WORDS)
            likely = theirs[table[theirs >> shift]]
            at = np.minimum(np.searchsorted(wanted, likely), len(wanted) - 1)
            seen[at[wanted[at] == likely]] = True
    return np.flatnonzero(np.isin(hashes, wanted[seen]))


class Words:
    """A text's words, and the tokens that each begins and ends in.

    Arguments:
        tokens: as ``tokenised`` gives them.
    """

    def __init__(self, index: Index, text: str, tokens: Integers):
        self.text = " " + text
        ends = np.cumsum(index.spelling.size_of[tokens[:-1]])
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
        return self.text[self.spans[word][0] : self.spans[word + count - 1][1]]


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
