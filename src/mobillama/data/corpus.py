"""Reading a prepared corpus: token streams and document tables, memory-mapped, whatever their size."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mobillama.core.errors import UserError, did_you_mean
from mobillama.core.records import check_file, manifest_hash, read_manifest, refuse

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
KIND = "corpus"
SHARDS_OPEN = 64


@dataclass(frozen=True)
class Document:
    """One document of a corpus, and where its tokens lie in its subset's stream."""

    subset: str
    split: Split
    id: str
    source: str
    license: str
    start: int
    """First token's position in the stream."""
    length: int
    """Tokens, the end-of-text token included."""
    size_bytes: int
    """Of its UTF-8 text."""
    sha256: str

    @property
    def stop(self) -> int:
        """Position after its last token."""
        return self.start + self.length


@dataclass(frozen=True)
class HeldoutDocument:
    """A document that training never sees: its tokens (end of text included), and its bytes to divide by."""

    document: Document
    tokens: NDArray[np.unsignedinteger]

    @property
    def size_bytes(self) -> int:
        """Size of the UTF-8 text."""
        return self.document.size_bytes


class Stream:
    """All shards of one subset and split in name order: one stream of tokens and its documents."""

    def __init__(
        self, directory: Path, subset: str, split: Split, *, files: dict[str, Any], dtype: np.dtype[Any]
    ):
        self.root = directory
        self.directory = directory / split / subset
        self._files = files
        own = (path for path in sorted(files) if path.startswith(f"{split}/{subset}/"))
        sizes = [files[path]["size_bytes"] // dtype.itemsize for path in own if path.endswith(".tokens")]
        self.subset = subset
        self.split: Split = split
        self.dtype = dtype
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._tokens_of = lru_cache(SHARDS_OPEN)(self._map_tokens)
        self._table_of = lru_cache(SHARDS_OPEN)(self._map_table)

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self._starts[-1])

    def shard_bounds(self) -> list[tuple[int, int]]:
        """Return the positions in the stream between which each shard's tokens lie, the last one excluded."""
        return list(pairwise(self._starts.tolist()))

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """Return tokens ``start .. stop - 1``: a view of the file, or a copy where they span shards."""
        assert 0 <= start <= stop <= len(self)
        pieces: list[NDArray[np.unsignedinteger]] = []
        shard = self._shard_at(start)
        while start < stop:
            offset = int(self._starts[shard])
            end = min(stop, int(self._starts[shard + 1]))
            pieces.append(self._tokens_of(shard)[start - offset : end - offset])
            start, shard = end, shard + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def document_at(self, position: int) -> Document:
        """Return the document that the token at ``position`` belongs to."""
        assert 0 <= position < len(self)
        shard = self._shard_at(position)
        offsets = self._table_of(shard)["offset"].chunk(0).to_numpy()
        return self._document(
            shard, int(np.searchsorted(offsets, position - self._starts[shard], "right")) - 1
        )

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield, in order, the documents that hold any of the tokens ``start .. stop - 1``."""
        stop = len(self) if stop is None else stop
        while start < stop:
            document = self.document_at(start)
            yield document
            start = document.stop

    def where(self, column: Literal["id", "source"], value: str) -> Iterator[Document]:
        """Yield the documents whose ``column`` equals ``value``; reads that column of every shard."""
        for shard in range(len(self._starts) - 1):
            column_of = self._table_of(shard)[column]
            matches = pc.equal(column_of, value)  # pyright: ignore[reportAttributeAccessIssue]
            for row in np.flatnonzero(matches.to_numpy()):
                yield self._document(shard, int(row))

    def _shard_at(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def _document(self, shard: int, row: int) -> Document:
        values = self._table_of(shard).slice(row, 1).to_pylist()[0]
        start = int(self._starts[shard]) + values.pop("offset")
        return Document(subset=self.subset, split=self.split, start=start, **values)

    def _map_tokens(self, shard: int) -> NDArray[np.unsignedinteger]:
        path = self.directory / f"{shard:05d}.tokens"
        count = int(self._starts[shard + 1] - self._starts[shard])
        try:
            return np.memmap(path, dtype=self.dtype, mode="r", shape=(count,))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); prepare the corpus again") from None

    def _map_table(self, shard: int) -> Any:
        path = self.directory / f"{shard:05d}.documents"
        # What stands in a table is told to people as fact, so it is checked whole when it is opened.
        entry = self._files[path.relative_to(self.root).as_posix()]
        refuse([problem] if (problem := check_file(self.root, entry)) else [])
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: cannot be read ({error}); prepare the corpus again") from None


class Corpus:
    """A corpus directory, opened in constant memory.

    Raises:
        UserError: it is not a whole corpus.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest = read_manifest(directory, KIND)
        self.identity = manifest_hash(directory)
        self.subsets: list[str] = list(self.manifest["subsets"])
        self.end_of_text_id: int = self.manifest["tokenizer"]["end_of_text_id"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.dtype = np.dtype(self.manifest["tokenizer"]["dtype"])
        files = {entry["path"]: entry for entry in self.manifest["files"]}
        self._streams = {
            (subset, split): Stream(directory, subset, split, files=files, dtype=self.dtype)
            for subset in self.subsets
            for split in SPLITS
        }

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; text that spells a special token is encoded as plain text, as in preparation."""
        tokenizer = Tokenizer.from_file(str(self.directory / "tokenizer" / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def tokens(self, subset: str, split: Split = "train") -> Stream:
        """Return the token stream of a subset.

        Raises:
            UserError: the corpus has no such subset.
        """
        if subset not in self.subsets:
            hint = did_you_mean(subset, self.subsets) or f"; it has {', '.join(self.subsets)}"
            raise UserError(f"{self.directory}: no subset {subset}{hint}")
        return self._streams[subset, split]

    def document_at(self, subset: str, split: Split, position: int) -> Document:
        """Return the document that holds the token at ``position`` of a stream."""
        return self.tokens(subset, split).document_at(position)

    def heldout(self, subset: str) -> Iterator[HeldoutDocument]:
        """Yield the held-out documents of a subset with their tokens."""
        stream = self.tokens(subset, "heldout")
        for document in stream.documents():
            yield HeldoutDocument(document, stream.read(document.start, document.stop))

    def find(self, name: str) -> list[Document]:
        """Return every document, training and held out, whose id or source is ``name``."""
        found: dict[tuple[str, str, int], Document] = {}
        for (subset, split), stream in self._streams.items():
            for column in ("id", "source"):
                found |= {(subset, split, doc.start): doc for doc in stream.where(column, name)}
        return [found[key] for key in sorted(found, key=lambda key: (self.subsets.index(key[0]), *key[1:]))]

    def text(self, document: Document) -> str:
        """Return a document's text, exactly as it was read."""
        tokens = self.tokens(document.subset, document.split).read(document.start, document.stop - 1)
        return self.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
