"""A prepared set of images and conversations about them: written once, read memory-mapped."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mobillama.core.errors import UserError
from mobillama.core.records import manifest_hash, read_manifest
from mobillama.data.vocabulary import token_dtype

from .conversation import Spelled

KIND = "images"
Split = Literal["train", "heldout"]
ROWS_A_BATCH = 8192
SHARDS_OPEN = 64

IMAGE_SCHEMA = pa.schema(
    [("name", pa.string()), ("sha256", pa.string()), ("shard", pa.int32()), ("offset", pa.int64()),
     ("length", pa.int64()), ("width", pa.int32()), ("height", pa.int32())]
)  # fmt: skip
SAMPLE_SCHEMA = pa.schema(
    [("id", pa.string()), ("subset", pa.string()), ("category", pa.string()), ("source", pa.string()),
     ("license", pa.string()), ("messages", pa.string()), ("offset", pa.int64()), ("length", pa.int32()),
     ("first_image", pa.int64()), ("images", pa.int32())]
)  # fmt: skip


@dataclass(frozen=True)
class ImageFile:
    """One image as it was read: its name in its source, and its identity."""

    name: str
    sha256: str
    shard: int
    offset: int
    length: int
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One conversation of a set."""

    split: Split
    row: int
    id: str
    subset: str
    category: str
    source: str
    license: str
    messages: list[dict[str, str]]
    images: list[ImageFile]


class TableWriter:
    """Rows of an Arrow file, written in batches."""

    def __init__(self, path: Path, schema: pa.Schema):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.schema, self.rows, self.count = schema, [], 0
        self.writer = pa.ipc.new_file(str(path), schema)

    def add(self, row: dict[str, Any]) -> None:
        """Add one row."""
        self.rows.append(row)
        self.count += 1
        if len(self.rows) == ROWS_A_BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting."""
        if self.rows:
            self.writer.write_batch(pa.RecordBatch.from_pylist(self.rows, self.schema))
            self.rows = []

    def close(self) -> None:
        """Finish the file."""
        self.flush()
        self.writer.close()


class ImageWriter:
    """Writes each image once, by the hash of its content, one after another into shards."""

    def __init__(self, directory: Path, shard_bytes: int):
        self.folder, self.shard_bytes = directory / "images", shard_bytes
        self.table = TableWriter(self.folder / "table.arrow", IMAGE_SCHEMA)
        self.rows: dict[str, int] = {}
        self.shard, self.offset = -1, shard_bytes
        self.file: BinaryIO | None = None

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()
        if self.file is not None:
            self.file.close()

    def add(self, name: str, sha256: str, content: bytes, size: tuple[int, int]) -> int:
        """Return the row of an image, after writing it if it is new."""
        if sha256 in self.rows:
            return self.rows[sha256]
        if self.offset >= self.shard_bytes:
            if self.file is not None:
                self.file.close()
            self.shard, self.offset = self.shard + 1, 0
            self.file = (self.folder / f"{self.shard:05d}.data").open("wb")
        assert self.file is not None
        self.file.write(content)
        width, height = size
        place = {"shard": self.shard, "offset": self.offset, "length": len(content)}
        self.rows[sha256] = self.table.count
        self.table.add({"name": name, "sha256": sha256, **place, "width": width, "height": height})
        self.offset += len(content)
        return self.rows[sha256]


class SampleWriter:
    """Writes the conversations of a split: a table, and flat tokens, answer flags and rows of images."""

    def __init__(self, folder: Path, vocab_size: int):
        self.table = TableWriter(folder / "samples.arrow", SAMPLE_SCHEMA)
        self.dtype = token_dtype(vocab_size)
        self.files = {name: (folder / name).open("wb") for name in ("tokens", "answers", "images")}
        self.tokens, self.images = 0, 0

    def __enter__(self) -> "SampleWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()
        for file in self.files.values():
            file.close()

    def add(self, row: dict[str, Any], ids: NDArray[np.int64], answers: NDArray[np.bool_]) -> None:
        """Add a conversation whose ``images`` are rows of the table of images."""
        rows = row["images"]
        place = {"offset": self.tokens, "length": len(ids), "first_image": self.images, "images": len(rows)}
        self.table.add({**row, "messages": json.dumps(row["messages"], ensure_ascii=False), **place})
        self.files["tokens"].write(ids.astype(self.dtype).tobytes())
        self.files["answers"].write(answers.astype(np.uint8).tobytes())
        self.files["images"].write(np.asarray(rows, dtype="<i4").tobytes())
        self.tokens += len(ids)
        self.images += len(rows)


class SampleTable:
    """The conversations of one split."""

    def __init__(self, folder: Path, dtype: "np.dtype[Any]"):
        self.table = open_table(folder / "samples.arrow")
        self.offsets, self.lengths, self.first_images, self.image_counts = (
            self.table[name].to_numpy() for name in ("offset", "length", "first_image", "images")
        )
        self.tokens, self.answers, self.image_rows = (
            flat(folder / name, kind) for name, kind in (("tokens", dtype), ("answers", np.uint8),
                                                         ("images", np.dtype("<i4")))
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.offsets)

    def spelled(self, row: int) -> Spelled:
        """Return a conversation's tokens, each image one token yet."""
        start, stop = int(self.offsets[row]), int(self.offsets[row] + self.lengths[row])
        return Spelled(self.tokens[start:stop].astype(np.int64), self.answers[start:stop].astype(np.bool_))

    def images_of(self, row: int) -> list[int]:
        """Return the rows of a conversation's images."""
        first = int(self.first_images[row])
        return self.image_rows[first : first + int(self.image_counts[row])].tolist()

    @cached_property
    def categories(self) -> NDArray[np.str_]:
        """What each conversation is about: what a mixture names."""
        return np.asarray(self.table["category"].to_pylist(), dtype=np.str_)


class ImageSet:
    """A prepared image set, opened in little memory.

    Raises:
        UserError: it is not a whole image set.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest = read_manifest(directory, KIND)
        self.identity = manifest_hash(directory)
        tokenizer = self.manifest["tokenizer"]
        self.vocab_size: int = tokenizer["vocab_size"]
        self.end_of_text_id: int = tokenizer["end_of_text_id"]
        self.image_id: int = tokenizer["image_id"]
        self.categories: list[str] = list(self.manifest["categories"])
        self.table = open_table(directory / "images" / "table.arrow")
        self.widths, self.heights = (self.table[name].to_numpy() for name in ("width", "height"))
        self._shard = lru_cache(SHARDS_OPEN)(self._map_shard)

    @cached_property
    def train(self) -> SampleTable:
        """The conversations to learn from."""
        return self.samples("train")

    @cached_property
    def heldout(self) -> SampleTable:
        """The conversations about images that are not trained on."""
        return self.samples("heldout")

    def samples(self, split: Split) -> SampleTable:
        """Return the conversations of a split."""
        return SampleTable(self.directory / split, token_dtype(self.vocab_size))

    def image(self, row: int) -> ImageFile:
        """Return what is known of an image."""
        return ImageFile(**self.table.slice(row, 1).to_pylist()[0])

    def content(self, row: int) -> bytes:
        """Return an image's file as it was read."""
        place = self.image(row)
        return self._shard(place.shard)[place.offset : place.offset + place.length].tobytes()

    def example(self, split: Split, row: int) -> Example:
        """Return a conversation with all that is known of it."""
        table = self.train if split == "train" else self.heldout
        values = table.table.slice(row, 1).to_pylist()[0]
        images = [self.image(number) for number in table.images_of(row)]
        told = {key: values[key] for key in ("id", "subset", "category", "source", "license")}
        return Example(split, row, messages=json.loads(values["messages"]), images=images, **told)

    def examples(self, split: Split) -> Iterator[Example]:
        """Yield all conversations of a split in order."""
        for row in range(len(self.train if split == "train" else self.heldout)):
            yield self.example(split, row)

    def _map_shard(self, shard: int) -> NDArray[np.uint8]:
        return flat(self.directory / "images" / f"{shard:05d}.data", np.uint8)


def open_table(path: Path) -> Any:
    """Return an Arrow file as a table, memory-mapped."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read ({error}); prepare the images again") from None


def flat(path: Path, dtype: Any) -> NDArray[Any]:
    """Return a flat file as an array, memory-mapped; an empty one as an empty array."""
    try:
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); prepare the images again") from None
