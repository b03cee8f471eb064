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
from mobillama.core.errors import UserError, require_extra
from mobillama.core.progress import progress
from mobillama.core.records import manifest_hash, manifest_path, read_manifest, require_intact, write_manifest
from mobillama.data import Corpus

from .index_passages import Passages, find_passages
from .index_search import Integers, Part
from .index_spelling import Spelling

KIND = "index"
PLAN = "plan.json"
SUFFIX_TYPE = np.dtype("<i4")
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


@dataclass(frozen=True)
class Occurrence:
    """One place where a passage stands in the training data: the tokens it touches, both included."""

    subset: str
    first_token: int
    last_token: int
    skip: int
    """Bytes of the first token that come before the passage."""


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
        record = checked_manifest(self.directory)
        if record["corpus"] != corpus.identity:
            raise UserError(
                f"{self.directory}: is of another corpus than {corpus.directory}; remove it to build it anew"
            )
        plan = json.loads((self.directory / PLAN).read_text(encoding="utf-8"))
        self.places = [Place(**place) for place in plan["places"]]

    @cached_property
    def spelling(self) -> Spelling:
        """What the corpus's tokens stand for."""
        return Spelling(self.corpus.tokenizer)

    def parts(self) -> Iterator[tuple[Place, Part]]:
        """Yield each part with its place, one mapped at a time."""
        for place in self.places:
            tokens = self.corpus.tokens(place.subset).read(place.start, place.stop)
            # Plain views: a memmap object costs Python time at every indexing.
            yield place, Part(np.asarray(tokens), np.asarray(self._suffixes(place)))

    def _suffixes(self, place: Place) -> NDArray[Any]:
        shape = (place.stop - place.start,)
        return np.memmap(self.directory / place.file, SUFFIX_TYPE, mode="r", shape=shape)

    def longest(self, tokens: Integers) -> Integers:
        """Return how many tokens of ``tokens[i:]`` the training data contain verbatim, for every ``i``."""
        best = np.zeros(len(tokens), np.int64)
        for _, part in self.parts():
            np.maximum(best, part.longest(tokens), out=best)
        return best

    def occurrences(self, text: bytes, limit: int) -> tuple[int, list[Occurrence]]:
        """Return how often ``text`` stands in the training data, and the first ``limit`` places in order."""
        count, found = 0, []
        for place, part in self.parts():
            passages = find_passages(part, self.spelling, text)
            count += passages.count
            if len(found) < limit and passages.count:
                found += located(passages, place, part, limit - len(found))
        return count, found


def located(passages: Passages, place: Place, part: Part, limit: int) -> list[Occurrence]:
    """Return the first ``limit`` occurrences of a passage in a part, in the order of the text."""
    columns = (column[:limit].tolist() for column in passages.positions(part))
    return [
        Occurrence(place.subset, place.start + first, place.start + first + depth - 1, skip)
        for first, depth, skip in zip(*columns, strict=True)
    ]


def open_or_build(corpus: Corpus) -> Index:
    """Return the index of ``corpus``, built first where there is none."""
    if not manifest_path(index_directory(corpus.directory)).is_file():
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
                    with atomic.atomic_file(directory / place.file) as partial:
                        suffix_array(tokens).tofile(partial)
                done += place.stop - place.start
                advance(done, place.subset)
        write_manifest(directory, KIND, corpus=corpus.identity)
    remember(directory)
    return directory


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


def checked_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of an index after checking every file, at full length once and by its stamp later.

    Hashing a large index takes longer than any query. So what was found intact is remembered with each
    file's size, inode and time of change, and hashed again when any of these differ.
    """
    record = read_manifest(directory, KIND)
    try:
        remembered = json.loads(stamp_path(directory).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        remembered = None
    if remembered != stamps(directory, record):
        record = require_intact(directory, KIND)
        remember(directory)
    return record


def stamp_path(directory: Path) -> Path:
    """Return where it is remembered that an index was found intact: beside it, it is no part of it."""
    return directory.with_name(f".{directory.name}.checked")


def stamps(directory: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest's hash and each file's size, inode and time of change, None if one is missing."""
    try:
        stats = {entry["path"]: (directory / entry["path"]).stat() for entry in record["files"]}
    except OSError:
        return None
    files = {path: [stat.st_size, stat.st_ino, stat.st_ctime_ns] for path, stat in stats.items()}
    return {"manifest": manifest_hash(directory), "files": files}


def remember(directory: Path) -> None:
    """Note that an index was found intact; where the place cannot be written to, it is checked each time."""
    try:
        atomic.write_text(stamp_path(directory), json.dumps(stamps(directory, read_manifest(directory))))
    except OSError:
        return
