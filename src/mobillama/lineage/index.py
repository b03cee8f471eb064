"""The index of a corpus: suffix arrays over its training tokens, to find any passage in milliseconds.

It lies beside the corpus as ``CORPUS.index`` (docs/formats.md). A part covers whole documents of one
shard, so that no passage crosses a border between parts, building takes memory for one part only
(about 24 bytes a token), and a query asks the parts one after the other. The text is the corpus's own
shards: the index adds 4 bytes a token and holds no second copy.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama.core import atomic
from mobillama.core.checked import require_checked
from mobillama.core.errors import UserError, require_extra
from mobillama.core.making import write_made_manifest
from mobillama.core.progress import progress
from mobillama.core.records import manifest_path, read_manifest, require_intact
from mobillama.data import Corpus

from .index_passages import Passages, find_passages
from .index_search import Integers, Part
from .index_spelling import Spelling

KIND = "index"
PLAN = "plan.json"
SUFFIX_TYPE = np.dtype("<i4")
FIRST_TYPE = np.dtype("<i8")
NEARBY_OCCURRENCES = 16
# 400 MB while building; the default shards of `prepare` are half of this.
PART_TOKENS = 1 << 24
# The library sorts bytes with 32-bit positions.
LARGEST_PART_BYTES = (1 << 31) - 1


@dataclass(frozen=True)
class Place:
    """Which tokens of a subset's training stream a part covers, the last one excluded."""

    subset: str
    start: int
    stop: int

    @property
    def file(self) -> str:
        """The name of its suffix array within the index."""
        return f"{self.subset}/{self.start:015d}.suffixes"

    @property
    def first_file(self) -> str:
        """The name of the file that says where in the suffix array each first token begins."""
        return f"{self.subset}/{self.start:015d}.first"


@dataclass(frozen=True)
class Occurrence:
    """One place where a passage stands in the training data: the tokens it touches, both included."""

    subset: str
    first_token: int
    last_token: int
    skip: int
    """Bytes of the first token that come before the passage."""


@dataclass(frozen=True)
class Match:
    """A run of tokens, the last one excluded, that stands in the training data.

    ``starts``: some of the places where it does, as subset and position in its stream.
    """

    first: int
    stop: int
    starts: list[tuple[str, int]]


def index_directory(corpus: Path) -> Path:
    """Return where the index of a corpus lies."""
    return corpus.resolve().with_name(f"{corpus.resolve().name}.index")


class Index:
    """An opened index: its parts memory-mapped, its files known to be intact.

    Raises:
        UserError: there is no whole index of exactly this corpus, or a file of it was changed.
    """

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.directory = index_directory(corpus.directory)
        if require_checked(self.directory, KIND)["corpus"] != corpus.identity:
            raise UserError(f"{self.directory}: is of another corpus than {corpus.directory}; build it anew")
        # The text that is searched is the corpus's own.
        require_checked(corpus.directory, "corpus")
        plan = json.loads((self.directory / PLAN).read_text(encoding="utf-8"))
        self.places = [Place(**place) for place in plan["places"]]

    @cached_property
    def spelling(self) -> Spelling:
        """What the corpus's tokens stand for."""
        return Spelling(self.corpus.tokenizer)

    @cached_property
    def parts(self) -> list[tuple[Place, Part]]:
        """Every part with its place, memory-mapped."""
        return [(place, self._part(place)) for place in self.places]

    def _part(self, place: Place) -> Part:
        tokens = self.corpus.tokens(place.subset).read(place.start, place.stop)
        suffixes = np.memmap(self.directory / place.file, SUFFIX_TYPE, mode="r", shape=tokens.shape)
        first = np.memmap(self.directory / place.first_file, FIRST_TYPE, mode="r")
        # Plain views: a memmap object costs Python time at every indexing.
        return Part(np.asarray(tokens), np.asarray(suffixes), np.asarray(first))

    def longest(self, tokens: Integers, positions: Integers) -> Integers:
        """Return how many tokens of ``tokens[i:]`` stand in the training data, for each ``i`` asked for."""
        lengths = np.zeros(len(positions), np.int64)
        for _, part in self.parts:
            np.maximum(lengths, part.longest(tokens, positions)[0], out=lengths)
        return lengths

    def matches(self, tokens: Integers, least: int) -> list[Match]:
        """Return the runs of at least ``least`` tokens that stand in the training data, in order.

        Each is as long as can be, none lies within another, and each comes with some of its occurrences.
        """
        everywhere = np.arange(len(tokens))
        searched = [(place, part, *part.longest(tokens, everywhere)) for place, part in self.parts]
        lengths = np.max([lengths for _, _, lengths, _ in searched], axis=0)
        return [
            Match(first, stop, list(self._starts(searched, tokens, first, stop - first)))
            for first, stop in maximal(lengths, least)
        ]

    def _starts(
        self, searched: list[Any], tokens: Integers, first: int, length: int
    ) -> Iterator[tuple[str, int]]:
        for place, part, lengths, ranks in searched:
            if lengths[first] == length:
                near = part.nearby(tokens, first, length, rank=int(ranks[first]), limit=NEARBY_OCCURRENCES)
                yield from ((place.subset, place.start + start) for start in near.tolist())

    def occurrences(self, text: bytes, limit: int) -> tuple[int, list[Occurrence]]:
        """Return how often ``text`` stands in the training data, and the first ``limit`` places in order."""
        count, found = 0, []
        for place, part in self.parts:
            passages = find_passages(part, self.spelling, text)
            count += passages.count
            if len(found) < limit and passages.count:
                found += located(passages, place, part, limit - len(found))
        return count, found


def maximal(lengths: Integers, least: int) -> list[tuple[int, int]]:
    """Return the matches ``i .. i + lengths[i]`` of at least ``least`` tokens that no other contains."""
    stops = np.arange(len(lengths)) + lengths
    before = np.concatenate([[0], np.maximum.accumulate(stops)[:-1]])
    kept = np.flatnonzero((stops > before) & (lengths >= least))
    return list(zip(kept.tolist(), stops[kept].tolist(), strict=True))


def located(passages: Passages, place: Place, part: Part, limit: int) -> list[Occurrence]:
    """Return the first ``limit`` occurrences of a passage in a part, in the order of the text."""
    columns = (column[:limit].tolist() for column in passages.positions(part))
    return [
        Occurrence(place.subset, place.start + first, place.start + first + depth - 1, skip)
        for first, depth, skip in zip(*columns, strict=True)
    ]


def open_or_build(corpus: Corpus) -> Index:
    """Return the index of ``corpus``, built first where there is none or one of an earlier corpus.

    Raises:
        UserError: a file of the index was changed.
    """
    directory = index_directory(corpus.directory)
    whole = manifest_path(directory).is_file()
    if not whole or read_manifest(directory, KIND)["corpus"] != corpus.identity:
        build(corpus)
    return Index(corpus)


def build(corpus: Corpus, *, part_tokens: int = PART_TOKENS) -> Path:
    """Build the index of ``corpus`` and return its directory; a part that is there already is kept.

    Every part appears whole or not at all, and the manifest last: what a kill leaves behind is not an
    index, and the next call goes on from it to the same bytes.
    """
    require_extra("train", "pydivsufsort")
    # A flipped bit in the text would otherwise be indexed as if it had been trained on.
    require_intact(corpus.directory, "corpus")
    directory = index_directory(corpus.directory)
    with atomic.exclusive(directory):
        places = plan(corpus, part_tokens)
        begin(directory, corpus, places)
        total = sum(place.stop - place.start for place in places)
        done = 0
        with progress(f"indexing {corpus.directory.name}", total, "tokens") as advance:
            for place in places:
                if not (directory / place.file).is_file():
                    tokens = corpus.tokens(place.subset).read(place.start, place.stop)
                    save(directory / place.first_file, first_ranks(tokens, corpus.vocab_size))
                    save(directory / place.file, suffix_array(tokens))
                done += place.stop - place.start
                advance(done, place.subset)
        write_made_manifest(directory, KIND, corpus=corpus.identity)
    return directory


def save(path: Path, values: NDArray[Any]) -> None:
    """Write an array's bytes, whole or not at all."""
    # Not `tofile`: on a full disk NumPy's own stream can lose its last buffer without an error.
    with atomic.atomic_file(path) as partial, partial.open("wb") as file:
        file.write(values.data)


def begin(directory: Path, corpus: Corpus, places: list[Place]) -> None:
    """Keep what an earlier attempt at the same index left whole; clear away anything else."""
    wanted = json.dumps({"corpus": corpus.identity, "places": [asdict(place) for place in places]})
    kept = directory / PLAN
    same = kept.is_file() and kept.read_text(encoding="utf-8") == wanted
    for path in sorted(directory.rglob("*")):
        torn = path.name.endswith(atomic.PARTIAL_SUFFIX)
        if path.is_file() and path.name != ".lock" and (torn or not same):
            path.unlink()
    if not same:
        atomic.write_text(kept, wanted)


def plan(corpus: Corpus, part_tokens: int) -> list[Place]:
    """Divide the training streams at shards, and shards above ``part_tokens`` at documents."""
    places: list[Place] = []
    for subset in corpus.subsets:
        stream = corpus.tokens(subset)
        for first, last in stream.shard_bounds():
            start = first
            while start < last:
                stop = last
                if last - start > part_tokens:
                    document = stream.document_at(start + part_tokens)
                    # A document above the size is a part of its own.
                    stop = document.start if document.start > start else document.stop
                if (stop - start) * corpus.dtype.itemsize > LARGEST_PART_BYTES:
                    raise UserError(
                        f"{corpus.directory}: a document of {stop - start:,} tokens in {subset} is more "
                        "than the index can sort; leave it out of the corpus"
                    )
                places.append(Place(subset, start, stop))
                start = stop
    return places


def suffix_array(tokens: NDArray[Any]) -> NDArray[Any]:
    """Return the starts (n,) of all suffixes of ``tokens`` (n,) in lexicographic order, int32.

    Big-endian bytes sort as the tokens do, so the library's byte sort serves; of its suffixes those
    that begin with a token are kept.
    """
    from pydivsufsort import divsufsort

    width = tokens.dtype.itemsize
    by_byte = divsufsort(tokens.astype(tokens.dtype.newbyteorder(">")).view(np.uint8))
    kept = by_byte[by_byte % width == 0]
    kept //= width
    return kept.astype(SUFFIX_TYPE, copy=False)


def first_ranks(tokens: NDArray[Any], vocab_size: int) -> NDArray[Any]:
    """Return (vocabulary + 1,) where in the suffix array the suffixes that begin with each token start."""
    return np.concatenate([[0], np.cumsum(np.bincount(tokens, minlength=vocab_size))]).astype(FIRST_TYPE)
