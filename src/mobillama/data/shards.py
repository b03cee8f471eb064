"""From documents to shards: flat token files, each with its document table."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
import lzma
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from datatrove.data import Document
from tokenizers import Tokenizer

from .pieces import encoder
from .vocabulary import token_dtype
from .workplace import Step, sync

TABLE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "source", "license")]
    + [(name, pa.int64()) for name in ("offset", "length", "size_bytes")]
    + [("sha256", pa.string())]
)
ZSTD_LEVEL = 19


class PlannedDocuments(Step):
    """Yields the staged documents that go into this task's shard."""

    name = "planned"

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        yield from self.work.documents(f"{rank:05d}")


class TokeniseDocuments(Step):
    """Writes the shard of this task: ``shards/NNNNN.tokens`` and ``shards/NNNNN.documents``."""

    name = "tokenise"

    def run(self, data: Iterator[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        assert data is not None
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # other tasks have the other processors
        tokenizer = Tokenizer.from_file(str(self.work.folder("tokenizer") / "tokenizer.json"))
        dtype = token_dtype(tokenizer.get_vocab_size())
        end = np.array(tokenizer.token_to_id(self.section.tokenizer.end_of_text), dtype=dtype).tobytes()
        encode = encoder(tokenizer, dtype)
        table: dict[str, list[Any]] = {name: [] for name in TABLE_SCHEMA.names}
        offset = 0
        with (self.work.folder("shards") / f"{rank:05d}.tokens").open("wb") as file:
            for document in data:
                tokens = encode(document.text) + end
                file.write(tokens)
                length = len(tokens) // dtype.itemsize
                for column, value in table_row(document, offset, length).items():
                    table[column].append(value)
                offset += length
            sync(file)
        with (self.work.folder("shards") / f"{rank:05d}.documents").open("wb") as file:
            with pa.ipc.new_file(file, TABLE_SCHEMA) as writer:
                # One batch, so that a reader finds a document by bisecting the mapped offsets.
                writer.write_batch(pa.RecordBatch.from_pydict(table, TABLE_SCHEMA))
            sync(file)
        yield from ()


def table_row(document: Document, offset: int, length: int) -> dict[str, Any]:
    """Return a document's row of the table."""
    text = document.text.encode()
    return {
        "id": document.id,
        "source": document.metadata["source"],
        "license": document.metadata["license"],
        "offset": offset,
        "length": length,
        "size_bytes": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
    }


class CompressHeldout(Step):
    """One task a subset: what general compressors need for its held-out text, to compare a model with."""

    name = "compress"

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        text = b"".join(
            document.text.encode()
            for task, shard in enumerate(self.work.shards())
            if shard.subset == self.section.names[rank] and shard.split == "heldout"
            for document in self.work.documents(f"{task:05d}")
        )
        result = {
            "bytes": len(text),
            "xz_bytes": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
            "zstd_bytes": len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(text)),
        }
        path = self.work.folder("compressed") / f"{rank:05d}.json"
        path.write_text(json.dumps(result), encoding="utf-8")
        yield from ()
