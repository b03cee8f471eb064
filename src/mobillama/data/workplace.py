"""What a preparation keeps between its stages: a folder beside the corpus, removed when the corpus is whole.

key.json           what is being made, and of what; another key clears the folder
units.json         what each task of the reading stage reads
read/NNNNN/        what it left: documents, their index, dropped.jsonl, quarantine.jsonl, inputs.json
match/BB.npy       pairs of documents that share a MinHash band
plan/              shards.json, NNNNN.npy (the documents of each shard), tokenizer.npy, dropped.jsonl
tokenizer/         tokenizer.json and its configuration
shards/NNNNN.*     tokens and document tables
compressed/        what compressors need for held-out text
STAGE/             datatrove's marks of completed tasks
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from .corpus import Split
from .recipe import CorpusSection
from .sources import InputFile, Unit


@dataclass(frozen=True)
class Shard:
    """One shard to write: which documents go in stands in ``plan/NNNNN.npy``."""

    subset: str
    split: Split
    number: int
    documents: int
    size_bytes: int


@dataclass(frozen=True)
class Workplace:
    """The folder's contents by name."""

    root: Path

    def folder(self, *parts: str) -> Path:
        """Return a folder, made when it is missing."""
        path = self.root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def read(self, task: int) -> Path:
        """Return the folder of a task of the reading stage."""
        return self.folder("read", f"{task:05d}")

    def save_units(self, units: list[Unit]) -> None:
        """Record what each task of the reading stage reads."""
        text = json.dumps([asdict(unit) for unit in units])
        (self.root / "units.json").write_text(text, encoding="utf-8")

    def units(self) -> list[Unit]:
        """Return what each task of the reading stage reads."""
        units = json.loads((self.root / "units.json").read_text(encoding="utf-8"))
        return [
            Unit(**unit | {"files": tuple(InputFile(**file) for file in unit["files"])}) for unit in units
        ]

    def save_plan(self, shards: list[Shard], rows: list[NDArray[np.int64]]) -> None:
        """Record the shards to write and, for each, task and row (n, 2) of its documents."""
        for task, chosen in enumerate(rows):
            np.save(self.folder("plan") / f"{task:05d}.npy", chosen)
        text = json.dumps([asdict(shard) for shard in shards])
        (self.folder("plan") / "shards.json").write_text(text, encoding="utf-8")

    def shards(self) -> list[Shard]:
        """Return the shards to write."""
        shards = json.loads((self.folder("plan") / "shards.json").read_text(encoding="utf-8"))
        return [Shard(**shard) for shard in shards]

    def index(self, task: int) -> Any:
        """Return the memory-mapped index of a reading task's documents."""
        return open_arrow(self.read(task) / "index.arrow").read_all()

    def index_column(self, column: str) -> NDArray[Any]:
        """Return one fixed-width column of all documents' index, in task order."""
        return np.concatenate([self.index(task)[column].to_numpy() for task in range(len(self.units()))])

    def documents(self, plan: str) -> Iterator[Document]:
        """Yield the staged documents that ``plan/PLAN.npy`` names; one batch in memory at a time."""
        rows = np.load(self.folder("plan") / f"{plan}.npy")
        for task in np.unique(rows[:, 0]):
            wanted = rows[rows[:, 0] == task, 1]
            reader = open_arrow(self.read(int(task)) / "documents.arrow")
            first = 0
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                low, high = np.searchsorted(wanted, [first, first + batch.num_rows])
                for values in batch.take(pa.array(wanted[low:high] - first)).to_pylist():
                    yield Document(text=values.pop("text"), id=values.pop("id"), metadata=values)
                first += batch.num_rows


class Step(PipelineStep):
    """A pipeline step of ours: knows the recipe and the workplace."""

    type = "mobillama"

    def __init__(self, work: Path, section: CorpusSection):
        super().__init__()
        self.work = Workplace(work)
        self.section = section


def open_arrow(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Open an Arrow file without reading it."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def sync(file: BinaryIO) -> None:
    """Put a file on disk before its task counts as done."""
    file.flush()
    os.fsync(file.fileno())
