"""From a unit of input to documents: every record becomes a document or a named piece of bad input."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document

from . import hub, stdlib
from .recipe import CorpusSection, SubsetSection
from .sources import InputFile, TruncatedError, Unit, open_bytes

RAW_BYTES_MAX = 64 << 20
PARQUET_ROWS = 256


@dataclass(frozen=True)
class BadInput:
    """One record that could not become a document."""

    file: str
    line: int
    """Line, or row for Parquet and data sets; from 1."""
    error: str
    raw: bytes


class RecordError(Exception):
    """What is wrong with one record."""


Read = Iterator[Document | BadInput]


def read_unit(section: CorpusSection, unit: Unit) -> Read:
    """Yield the documents and the bad input of one unit, in order."""
    source = section.subsets[unit.source]
    if source.kind == "hub":
        yield from read_hub(source, unit, section.max_document_bytes)
        return
    readers: dict[str, Callable[[InputFile, SubsetSection, int], Read]] = {
        "jsonl": read_jsonl,
        "parquet": read_parquet,
        "text": read_text,
        "directory": read_text,
        "stdlib": read_stdlib,
    }
    for file in unit.files:
        is_empty = source.kind != "stdlib"  # a module without documentation is no mistake
        for item in readers[source.kind](file, source, section.max_document_bytes):
            is_empty = False
            yield item
        if is_empty:
            yield BadInput(file.name, 1, "the file is empty", b"")


def read_jsonl(file: InputFile, source: SubsetSection, limit_bytes: int) -> Read:
    """Read JSON Lines, plain or compressed; blank lines are nothing and count only as lines."""
    with open_bytes(file.path) as stream:
        line = 0
        try:
            for line, (raw, size_bytes) in enumerate(lines(stream, limit_bytes * 6), start=1):
                if not raw.strip():
                    continue
                try:
                    if size_bytes > len(raw):
                        raise RecordError(
                            f"the line has {size_bytes:,} bytes; its first {len(raw):,} are kept"
                        )
                    values = json.loads(decode(raw.rstrip(b"\r\n")))
                    yield to_document(values, source, f"{file.name}:{line}", file.name, limit_bytes)
                except RecordError as error:
                    yield BadInput(file.name, line, str(error), raw)
                except RecursionError:
                    yield BadInput(file.name, line, "JSON is nested too deeply", raw)
                except ValueError as error:
                    yield BadInput(file.name, line, f"not JSON: {error}", raw)
        except TruncatedError as error:
            yield BadInput(file.name, line + 1, str(error), b"")


def lines(stream: BinaryIO, limit_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield each line with its length; of a line beyond the limit only the beginning is kept in memory."""
    limit_bytes = max(limit_bytes, RAW_BYTES_MAX)
    while raw := stream.readline(limit_bytes):
        size_bytes, part = len(raw), raw
        while len(part) == limit_bytes and not part.endswith(b"\n"):
            part = stream.readline(limit_bytes)
            size_bytes += len(part)
        yield raw, size_bytes


def read_parquet(file: InputFile, source: SubsetSection, limit_bytes: int) -> Read:
    """Read the named columns of a Parquet file."""
    row = 0
    try:
        with pq.ParquetFile(file.path) as table:
            wanted = {source.text_field, source.id_field, source.source_field, source.license_field}
            columns = [name for name in table.schema_arrow.names if name in wanted | {source.group_by}]
            for batch in table.iter_batches(PARQUET_ROWS, columns=columns):
                for values in batch_rows(batch):
                    row += 1
                    yield from record(values, source, (file.name, row), limit_bytes)
    except (pa.ArrowException, OSError) as error:
        yield BadInput(file.name, row + 1, f"Parquet data is damaged ({str(error).splitlines()[0]})", b"")


def batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield rows as values; text stays bytes, because Arrow does not promise that it is UTF-8."""
    columns = {
        name: column.cast(pa.large_binary()) if pa.types.is_string(column.type) else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    for row in range(batch.num_rows):
        yield {name: column[row].as_py() for name, column in columns.items()}


def read_hub(source: SubsetSection, unit: Unit, limit_bytes: int) -> Read:
    """Read one part of a streamed data set; its rows count from 1 within the part."""
    name = f"{source.hub}/{source.hub_config or 'default'}/{source.hub_split}/{unit.hub_shard:05d}"
    for row, values in enumerate(hub.rows(source, unit.hub_shard, unit.hub_shards), start=1):
        yield from record(values, source, (name, row), limit_bytes)


def record(values: dict[str, Any], source: SubsetSection, where: tuple[str, int], limit_bytes: int) -> Read:
    """Yield the document of one row, or what is wrong with it."""
    name, row = where
    try:
        values = {key: decode(value) if isinstance(value, bytes) else value for key, value in values.items()}
        yield to_document(values, source, f"{name}:{row}", name, limit_bytes)
    except RecordError as error:
        yield BadInput(
            name, row, str(error), repr(values).encode("utf-8", "backslashreplace")[:RAW_BYTES_MAX]
        )


def read_text(file: InputFile, source: SubsetSection, limit_bytes: int) -> Read:
    """Read a whole text file, plain or compressed, as one document."""
    raw = b""
    try:
        with open_bytes(file.path) as stream:
            raw = stream.read(limit_bytes + 1)
        if len(raw) > limit_bytes:
            raise RecordError(too_long(file.size_bytes, limit_bytes))
        if raw:
            values = {source.text_field: decode(raw)}
            yield to_document(values, source, file.name, file.name, limit_bytes)
    except (TruncatedError, RecordError) as error:
        yield BadInput(file.name, 1, str(error), raw)


def read_stdlib(file: InputFile, source: SubsetSection, limit_bytes: int) -> Read:
    """Read one module of the standard library: its code or its documentation."""
    module = stdlib.module_name(file.name)
    if file.name == stdlib.TOPICS:
        if source.part == "docs":
            for topic, text in stdlib.topics().items():
                name = f"{module}:{topic}"
                yield stdlib_document(name, text, group=name)
        return
    try:
        text = stdlib.read_source(file.path)
        if source.part == "docs":
            text = stdlib.documentation(module, text)
    except (SyntaxError, UnicodeDecodeError) as error:
        yield BadInput(file.name, getattr(error, "lineno", None) or 1, f"not Python source: {error}", b"")
        return
    if len(text) > limit_bytes:
        yield BadInput(file.name, 1, too_long(len(text), limit_bytes), b"")
    elif text.strip():
        yield stdlib_document(module if source.part == "code" else f"{module}.__doc__", text, group=module)


def stdlib_document(name: str, text: str, *, group: str) -> Document:
    """Return a document of the standard library; docs and code of a module share a group."""
    cited = stdlib.source_name(name.removesuffix(".__doc__"))
    return Document(
        text=text,
        id=name,
        metadata={"source": cited, "license": stdlib.LICENSE, "group": f"stdlib:{group}"},
    )


def to_document(
    values: Any, source: SubsetSection, fallback_id: str, file: str, limit_bytes: int
) -> Document:
    """Return the document that a record holds.

    Raises:
        RecordError: a field is missing, is not text, or is too long.
    """
    if not isinstance(values, dict):
        raise RecordError(f"not a JSON object but {type(values).__name__}")
    text = text_of(values, source.text_field)
    size_bytes = len(encode(text))
    if size_bytes > limit_bytes:
        raise RecordError(too_long(size_bytes, limit_bytes))
    metadata = {
        "source": text_of(values, source.source_field) if source.source_field else file,
        "license": text_of(values, source.license_field) if source.license_field else source.license,
    }
    if source.group_by:
        metadata["group"] = f"{source.group_by}:{text_of(values, source.group_by)}"
    identity = text_of(values, source.id_field) if source.id_field else fallback_id
    return Document(text=text, id=identity, metadata=metadata)


def text_of(values: dict[str, Any], field: str) -> str:
    """Return a field as text; whole numbers are written out.

    Raises:
        RecordError: it is missing or of another kind.
    """
    if field not in values or values[field] is None:
        raise RecordError(f"field {field!r} is missing")
    value = values[field]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RecordError(f"field {field!r} is {type(value).__name__}, not text")
    encode(value)
    return value


def decode(raw: bytes) -> str:
    """Return UTF-8 bytes as text.

    Raises:
        RecordError: they are something else.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from None


def encode(text: str) -> bytes:
    """Return text as UTF-8.

    Raises:
        RecordError: it holds half a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(f"half a surrogate pair at character {error.start}") from None


def too_long(size_bytes: int, limit_bytes: int) -> str:
    """Return the sentence for a document that is too long to be one."""
    return f"a document of {size_bytes:,} bytes; corpus.max_document_bytes allows {limit_bytes:,}"
