"""Tokenising speed: our step against datatrove's, on the same documents, tokenizer, executor and workers.

    python benchmarks/prepare.py --corpora FOLDER [--megabytes 16] [--repeats 3]

FOLDER holds JSON Lines of ``text``, ``source`` and ``license`` (also .xz, .gz, .zst). Both sides read the
same plain files and run in datatrove's own local executor with one task a worker; they take turns, and the
ratio of each turn is printed. Ours writes the document table and a SHA-256 of each text as well.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens import DocumentTokenizer
from loguru import logger

from mobillama.data.recipe import CorpusSection, TokenizerSection
from mobillama.data.shards import TokeniseDocuments
from mobillama.data.sources import open_bytes
from mobillama.data.vocabulary import train_tokenizer, write_tokenizer

VOCAB_SIZE = 8192
MB = 1_000_000


def collect(corpora: Path, out: Path, size_bytes: int, workers: int) -> int:
    """Write an equal part of each file of ``corpora`` as ``workers`` files; return the bytes of text."""
    files = sorted(path for path in corpora.iterdir() if ".jsonl" in path.name)
    outputs = [(out / f"{worker}.jsonl").open("w", encoding="utf-8") for worker in range(workers)]
    total = 0
    for path in files:
        taken = 0
        with open_bytes(str(path)) as stream:
            for number, line in enumerate(stream):
                row = json.loads(line)
                kept = {"id": f"{path.name}:{number}"} | {
                    key: row[key] for key in ("text", "source", "license")
                }
                outputs[number % workers].write(json.dumps(kept) + "\n")
                taken += len(row["text"].encode())
                if taken >= size_bytes / len(files):
                    break
        total += taken
    for file in outputs:
        file.close()
    return total


class ReadLines(PipelineStep):
    """Yields the documents of this task's file."""

    type, name = "READ", "lines"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        with (self.folder / f"{rank}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                yield Document(text=row.pop("text"), id=row.pop("id"), metadata=row)


def measure(step: object, inputs: Path, logs: Path, workers: int) -> float:
    """Return the seconds of one pass over the inputs, workers' start included."""
    shutil.rmtree(logs, ignore_errors=True)
    executor = LocalPipelineExecutor(
        [ReadLines(inputs), step], tasks=workers, workers=workers, logging_dir=str(logs)
    )
    started_at = time.perf_counter()
    executor.run()
    return time.perf_counter() - started_at


def main() -> None:
    """Take turns and print each turn's speeds and ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    logger.disable("datatrove")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs, work = folder / "inputs", folder / "work"
        inputs.mkdir()
        total = collect(options.corpora, inputs, options.megabytes * MB, options.workers)
        texts = (json.loads(line)["text"] for path in sorted(inputs.iterdir()) for line in path.open())
        (work / "tokenizer").mkdir(parents=True)
        section = TokenizerSection(vocab_size=VOCAB_SIZE)
        write_tokenizer(train_tokenizer(texts, section), section.end_of_text, work / "tokenizer")
        corpus = CorpusSection.model_validate(
            {"directory": folder, "subsets": [{"name": "s", "kind": "jsonl", "paths": ["x"], "license": "-"}]}
        )
        print(f"{total / MB:.1f} MB of text, vocabulary {VOCAB_SIZE}, {options.workers} workers")
        for _ in range(options.repeats):
            theirs = DocumentTokenizer(
                str(folder / "theirs"),
                str(work / "tokenizer" / "tokenizer.json"),
                eos_token=section.end_of_text,
                shuffle_documents=False,
            )
            theirs_s = measure(theirs, inputs, folder / "logs", options.workers)
            ours_s = measure(TokeniseDocuments(work, corpus), inputs, folder / "logs", options.workers)
            print(
                f"datatrove {total / MB / theirs_s:5.2f} MB/s, ours {total / MB / ours_s:5.2f} MB/s, "
                f"ratio {theirs_s / ours_s:.2f}"
            )
        for rank in range(options.workers):
            ours = (work / "shards" / f"{rank:05d}.tokens").read_bytes()
            assert ours == (folder / "theirs" / f"{rank:05d}_unshuffled.ds").read_bytes()
        print("both wrote the same tokens, bit for bit")


if __name__ == "__main__":
    main()
