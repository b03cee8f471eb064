"""What becomes of each document: duplicate, held out, or training; decided in one place, for all workers.

Documents are numbered in reading order (task, row). Of documents that say the same the first stays, whatever
subset it is in. Held-out documents are whole groups in the order of a hash, until a subset has its bytes; what
is like them is never in training.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mobillama.core.hashing import canonical_json

from . import minhash
from .corpus import SPLITS, Split
from .recipe import CorpusSection
from .sources import Unit
from .staging import dropped_line, index_column, open_arrow, read_folder

TARGET_SHARE = 0.1
MOST_SHARE = 0.5

Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """One shard to write: which documents go in stands in ``plan/NNNNN.npy``."""

    subset: str
    split: Split
    number: int
    documents: int
    size_bytes: int


class MatchBand(PipelineStep):
    """One task for each MinHash band: which documents share a key there."""

    type = "DECIDE"
    name = "near-duplicates"

    def __init__(self, work: Path, tasks: int):
        super().__init__()
        self.work = work
        self.tasks = tasks

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        keys = index_column(self.work, self.tasks, f"band_{rank:02d}")
        path = self.work / "match" / f"{rank:02d}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, minhash.pairs_of_equal(keys))
        yield from ()


class DecideDocuments(PipelineStep):
    """The one task that decides, and plans the shards."""

    type = "DECIDE"
    name = "selection"

    def __init__(self, work: Path, section: CorpusSection, units: list[Unit]):
        super().__init__()
        self.work = work
        self.section = section
        self.units = units

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        plan = self.work / "plan"
        plan.mkdir(exist_ok=True)
        documents = Documents.load(self.work, self.section, self.units)
        matches = [np.load(self.work / "match" / f"{band:02d}.npy") for band in range(minhash.BANDS)]
        fates = decide(documents, np.concatenate(matches), self.section)
        write_dropped(self.work, documents, fates, self.section.names)
        shards: list[Shard] = []
        for subset in range(len(self.section.names)):
            for split in SPLITS:
                shards += plan_shards(documents, fates, (subset, split), self.section, plan, len(shards))
        chosen = tokenizer_sample(documents, fates, self.section)
        np.save(plan / "tokenizer.npy", documents.rows(chosen))
        (plan / "shards.json").write_text(json.dumps([asdict(shard) for shard in shards]), encoding="utf-8")
        yield from ()


@dataclass(frozen=True)
class Documents:
    """What is known of all documents, as arrays over their numbers."""

    subset: Numbers
    size_bytes: Numbers
    group: NDArray[np.uint64]
    digest: NDArray[np.uint64]
    """First 128 bits of the text's SHA-256 (n, 2)."""
    first_of_task: Numbers
    """Number of each reading task's first document, and their count at the end."""

    @classmethod
    def load(cls, work: Path, section: CorpusSection, units: list[Unit]) -> "Documents":
        """Read what the reading stage left."""
        tasks = len(units)
        counts = [
            open_arrow(read_folder(work, task) / "index.arrow").read_all().num_rows for task in range(tasks)
        ]
        subsets = [section.names.index(section.subsets[unit.source].name) for unit in units]
        digests = np.frombuffer(b"".join(index_column(work, tasks, "sha256")), dtype="<u8")
        return cls(
            subset=np.repeat(np.array(subsets, dtype=np.int64), counts),
            size_bytes=index_column(work, tasks, "size_bytes").astype(np.int64),
            group=index_column(work, tasks, "group").astype(np.uint64),
            digest=digests.astype(np.uint64).reshape(-1, 4)[:, :2],
            first_of_task=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    def rows(self, numbers: Numbers) -> Numbers:
        """Return task and row (n, 2) of each document."""
        tasks = np.searchsorted(self.first_of_task, numbers, side="right") - 1
        return np.stack([tasks, numbers - self.first_of_task[tasks]], axis=1)


@dataclass(frozen=True)
class Fates:
    """What becomes of each document; one that is neither in training nor held out is dropped."""

    train: Flags
    heldout: Flags
    reason: NDArray[np.object_]
    like: Numbers
    """The document that a dropped one is like."""

    def of(self, split: Split) -> Flags:
        """Return which documents go into a split."""
        return self.train if split == "train" else self.heldout


def decide(documents: Documents, near_pairs: Numbers, section: CorpusSection) -> Fates:
    """Return the fate of every document."""
    count = len(documents.subset)
    exact_pairs = minhash.pairs_of_equal(documents.digest[:, 1], documents.digest[:, 0])
    first_equal = minhash.components(count, exact_pairs)
    first_like = minhash.components(count, np.concatenate([exact_pairs, near_pairs]))
    numbers, reason = np.arange(count), np.full(count, None, dtype=object)
    like = numbers.copy()

    def drop(which: Flags, why: str, first: Numbers) -> None:
        which = which & (reason == None)  # noqa: E711 - elementwise
        reason[which] = why
        like[which] = first[which]

    if section.deduplication.exact:
        drop(first_equal != numbers, "exact_duplicate", first_equal)
    if section.deduplication.near:
        drop(first_like != numbers, "near_duplicate", first_like)
    kept = reason == None  # noqa: E711
    heldout = choose_heldout(documents, kept, section)
    # With deduplication on nothing is left to do here; without it a copy of a held-out text goes.
    one_held_out = np.full(count, -1, dtype=np.int64)
    one_held_out[first_like[heldout]] = numbers[heldout]
    copies = kept & ~heldout & (one_held_out[first_like] >= 0)
    drop(copies, "like_heldout", one_held_out[first_like])
    return Fates(kept & ~heldout & ~copies, heldout, reason, like)


def choose_heldout(documents: Documents, kept: Flags, section: CorpusSection) -> Flags:
    """Return which documents are held out: whole groups, in hash order, until each subset has its bytes.

    A group is held out in all subsets or in none, so that a module's code does not teach its documentation.
    A tenth of a subset is enough whatever its target, and no group is taken that would make it half.
    """
    names = section.names
    totals = np.bincount(documents.subset[kept], documents.size_bytes[kept], minlength=len(names))
    targets = np.minimum([section.heldout_target(name) for name in names], totals * TARGET_SHARE)
    groups, member_of = np.unique(documents.group[kept], return_inverse=True)
    sizes = np.zeros((len(groups), len(names)))
    np.add.at(sizes, (member_of, documents.subset[kept]), documents.size_bytes[kept])
    held, taken = np.zeros(len(names)), np.zeros(len(groups), dtype=bool)
    for number, size in enumerate(sizes):
        wanting = held < targets
        if not wanting.any():
            break
        if size[wanting].any() and not (held + size > totals * MOST_SHARE)[size > 0].any():
            taken[number] = True
            held += size
    heldout = np.zeros(len(kept), dtype=bool)
    heldout[kept] = taken[member_of]
    return heldout


def plan_shards(
    documents: Documents,
    fates: Fates,
    where: tuple[int, Split],
    section: CorpusSection,
    plan: Path,
    first: int,
) -> list[Shard]:
    """Plan the shards of one subset and split: consecutive documents, ``shard_bytes`` of text or one document."""
    subset, split = where
    numbers = np.flatnonzero(fates.of(split) & (documents.subset == subset))
    sizes = documents.size_bytes[numbers]
    shard_of = np.unique((np.cumsum(sizes) - sizes) // section.shard_bytes, return_inverse=True)[1]
    shards: list[Shard] = []
    for number in range(int(shard_of.max(initial=-1)) + 1):
        chosen = shard_of == number
        np.save(plan / f"{first + number:05d}.npy", documents.rows(numbers[chosen]))
        shards.append(
            Shard(section.names[subset], split, number, int(chosen.sum()), int(sizes[chosen].sum()))
        )
    return shards


def tokenizer_sample(documents: Documents, fates: Fates, section: CorpusSection) -> Numbers:
    """Return training documents to learn the merges from, chosen by hash within ``sample_bytes``.

    Every subset gives an equal part; what a small one cannot give, the larger ones share.
    """
    names = section.names
    available = np.bincount(
        documents.subset[fates.train], documents.size_bytes[fates.train], minlength=len(names)
    )
    parts = equal_parts(available, section.tokenizer.sample_bytes)
    chosen: list[Numbers] = []
    for subset, part in enumerate(parts):
        numbers = np.flatnonzero(fates.train & (documents.subset == subset))
        shuffled = numbers[np.argsort(documents.digest[numbers, 0], kind="stable")]
        sizes = documents.size_bytes[shuffled]
        chosen.append(shuffled[np.cumsum(sizes) - sizes < part])
    return np.sort(np.concatenate(chosen))


def equal_parts(available: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """Return how much each takes when ``total`` is shared equally and none can take more than it has."""
    parts, left = np.zeros(len(available)), float(total)
    for rank, number in enumerate(np.argsort(available, kind="stable")):
        parts[number] = min(available[number], left / (len(available) - rank))
        left -= parts[number]
    return parts


def write_dropped(work: Path, documents: Documents, fates: Fates, subset_names: list[str]) -> None:
    """Write a line for each document that deciding drops, naming the one it is like."""
    names = Identities(documents, work)
    with (work / "plan" / "dropped.jsonl").open("w", encoding="utf-8") as file:
        for number in np.flatnonzero(~fates.train & ~fates.heldout):
            subset = subset_names[documents.subset[number]]
            detail = f"like {names[int(fates.like[number])]}"
            line = dropped_line(names[int(number)], subset, fates.reason[number], detail)
            file.write(canonical_json(line) + "\n")


class Identities:
    """The ids of documents by number, looked up in the staged indexes."""

    def __init__(self, documents: Documents, work: Path):
        self._documents = documents
        self._work = work
        self._columns: dict[int, pa.ChunkedArray] = {}

    def __getitem__(self, number: int) -> str:
        task, row = (int(value) for value in self._documents.rows(np.array([number]))[0])
        if task not in self._columns:
            self._columns[task] = open_arrow(read_folder(self._work, task) / "index.arrow").read_all()["id"]
        value: Any = self._columns[task][row]
        return value.as_py()
