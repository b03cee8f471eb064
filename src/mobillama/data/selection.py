"""What becomes of each document: duplicate, held out, or training; decided in one place, for all workers.

Documents are numbered in reading order (task, row). Of documents that say the same the first stays, whatever
subset it is in. Held-out documents are whole groups in the order of a hash, until a subset has its bytes;
what is like them is never in training.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from mobillama.core.hashing import canonical_json

from . import minhash
from .corpus import SPLITS, Split
from .recipe import CorpusSection
from .staging import dropped_line
from .workplace import Shard, Step, Workplace

TARGET_SHARE = 0.1
MOST_SHARE = 0.5

Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class MatchBand(Step):
    """One task for each MinHash band: which documents share a key there."""

    name = "match"

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        keys = self.work.index_column(f"band_{rank:02d}")
        np.save(self.work.folder("match") / f"{rank:02d}.npy", minhash.pairs_of_equal(keys))
        yield from ()


class DecideDocuments(Step):
    """The one task that decides, and plans the shards."""

    name = "decide"

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        documents = Documents.load(self.work, self.section)
        matches = [np.load(self.work.folder("match") / f"{band:02d}.npy") for band in range(minhash.BANDS)]
        fates = decide(documents, np.concatenate(matches), self.section)
        write_dropped(self.work, documents, fates, self.section.names)
        shards: list[Shard] = []
        contents: list[Numbers] = []
        for subset, name in enumerate(self.section.names):
            for split in SPLITS:
                numbers = np.flatnonzero(fates.of(split) & (documents.subset == subset))
                for number, chosen in enumerate(
                    packed(numbers, documents.size_bytes, self.section.shard_bytes)
                ):
                    size_bytes = int(documents.size_bytes[chosen].sum())
                    shards.append(Shard(name, split, number, len(chosen), size_bytes))
                    contents.append(documents.rows(chosen))
        self.work.save_plan(shards, contents)
        sample = tokenizer_sample(documents, fates, self.section)
        np.save(self.work.folder("plan") / "tokenizer.npy", documents.rows(sample))
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
    def load(cls, work: Workplace, section: CorpusSection) -> "Documents":
        """Read what the reading stage left."""
        units = work.units()
        counts = [work.index(task).num_rows for task in range(len(units))]
        subsets = [section.names.index(section.subsets[unit.source].name) for unit in units]
        digests = np.frombuffer(b"".join(work.index_column("sha256")), dtype="<u8")
        return cls(
            subset=np.repeat(np.array(subsets, dtype=np.int64), counts),
            size_bytes=work.index_column("size_bytes"),
            group=work.index_column("group"),
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
    """Return the fate of every document; ``near_pairs`` (n, 2) are those that share a MinHash band."""
    count = len(documents.subset)
    exact_pairs = minhash.pairs_of_equal(documents.digest[:, 1], documents.digest[:, 0])
    first_equal = minhash.components(count, exact_pairs)
    first_like = minhash.components(count, np.concatenate([exact_pairs, near_pairs]))
    numbers = np.arange(count)
    kept, like = np.ones(count, dtype=bool), numbers.copy()
    reason = np.full(count, "", dtype=object)

    def drop(which: Flags, why: str, first: Numbers) -> None:
        which = which & kept
        reason[which], like[which], kept[which] = why, first[which], False

    if section.deduplication.exact:
        drop(first_equal != numbers, "exact_duplicate", first_equal)
    if section.deduplication.near:
        drop(first_like != numbers, "near_duplicate", first_like)
    heldout = choose_heldout(documents, kept, section)
    # After deduplication none is left; without it, what is like a held-out document goes.
    held_out_like = np.full(count, -1, dtype=np.int64)
    held_out_like[first_like[heldout]] = numbers[heldout]
    drop((held_out_like[first_like] >= 0) & ~heldout, "like_heldout", held_out_like[first_like])
    return Fates(kept & ~heldout, heldout, reason, like)


def choose_heldout(documents: Documents, kept: Flags, section: CorpusSection) -> Flags:
    """Return which documents are held out: whole groups, in hash order, until each subset has its bytes.

    A group is held out in all subsets or in none, so that a module's code does not teach its documentation.
    A tenth of a subset is enough whatever its target, and no group is taken that would make it half.
    """
    names = section.names
    subset, size_bytes = documents.subset[kept], documents.size_bytes[kept]
    totals = np.bincount(subset, size_bytes, minlength=len(names))
    targets = np.minimum([section.heldout_target(name) for name in names], totals * TARGET_SHARE)
    groups, member_of = np.unique(documents.group[kept], return_inverse=True)
    sizes = np.zeros((len(groups), len(names)))
    np.add.at(sizes, (member_of, subset), size_bytes)
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


def packed(numbers: Numbers, size_bytes: Numbers, limit_bytes: int) -> list[Numbers]:
    """Split documents into consecutive runs, one for each ``limit_bytes`` of their joined text."""
    sizes = size_bytes[numbers]
    run_of = (np.cumsum(sizes) - sizes) // limit_bytes
    runs = np.split(numbers, np.flatnonzero(np.diff(run_of)) + 1)
    return [run for run in runs if len(run)]


def tokenizer_sample(documents: Documents, fates: Fates, section: CorpusSection) -> Numbers:
    """Return training documents to learn the merges from, chosen by hash within ``sample_bytes``.

    Every subset gives an equal part; what a small one cannot give, the larger ones share.
    """
    subset, size_bytes = documents.subset[fates.train], documents.size_bytes[fates.train]
    available = np.bincount(subset, size_bytes, minlength=len(section.names))
    chosen: list[Numbers] = []
    for number, part in enumerate(equal_parts(available, section.tokenizer.sample_bytes)):
        members = np.flatnonzero(fates.train & (documents.subset == number))
        shuffled = members[np.argsort(documents.digest[members, 0], kind="stable")]
        sizes = documents.size_bytes[shuffled]
        chosen.append(shuffled[np.cumsum(sizes) - sizes < part])
    return np.sort(np.concatenate(chosen))


def equal_parts(available: NDArray[Any], total: float) -> NDArray[np.float64]:
    """Return how much each takes when ``total`` is shared equally and none can take more than it has."""
    parts, left = np.zeros(len(available)), float(total)
    for rank, number in enumerate(np.argsort(available, kind="stable")):
        parts[number] = min(available[number], left / (len(available) - rank))
        left -= parts[number]
    return parts


def write_dropped(work: Workplace, documents: Documents, fates: Fates, subset_names: list[str]) -> None:
    """Write a line for each document that deciding drops, naming the one it is like."""
    numbers = np.flatnonzero(~fates.train & ~fates.heldout)
    ids = identities(work, documents, np.unique(np.concatenate([numbers, fates.like[numbers]])))
    with (work.folder("plan") / "dropped.jsonl").open("w", encoding="utf-8") as file:
        for number in numbers:
            subset = subset_names[documents.subset[number]]
            detail = f"like {ids[int(fates.like[number])]}"
            line = dropped_line(ids[int(number)], subset, fates.reason[number], detail)
            file.write(canonical_json(line) + "\n")


def identities(work: Workplace, documents: Documents, numbers: Numbers) -> dict[int, str]:
    """Return the ids of documents by number."""
    found: dict[int, str] = {}
    rows = documents.rows(numbers)
    for task in np.unique(rows[:, 0]):
        here = rows[:, 0] == task
        ids = work.index(int(task))["id"].take(rows[here, 1]).to_pylist()
        found |= dict(zip(numbers[here].tolist(), ids, strict=True))
    return found
