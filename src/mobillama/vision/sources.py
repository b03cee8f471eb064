"""Conversations about images from files: LLaVA's JSON, JSON Lines, Parquet, WebDataset, two named sets."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from mobillama.core.errors import UserError

from .conversation import with_markers
from .easy_vqa import asked_for
from .recipe import ImageSourceSection

Read = Callable[[], bytes]
LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
FIGURE_QUESTION = "What does the picture show?"
LONGEST_LINE = 16 << 20


@dataclass(frozen=True)
class Raw:
    """One conversation as its source has it; images are read when they are wanted."""

    id: str
    messages: list[dict[str, str]]
    images: list[tuple[str, Read]]
    category: str = ""
    source: str = ""
    license: str = ""


@dataclass(frozen=True)
class BadRecord:
    """A record that is no conversation: where it stands, and why."""

    where: str
    error: str


Record = Raw | BadRecord


def records(section: ImageSourceSection, root: Path) -> Iterator[Record]:
    """Yield what a source holds, in the order of its files and lines.

    Raises:
        UserError: a path names nothing, or a file as a whole cannot be read.
    """
    read = {
        "llava": from_llava, "jsonl": from_jsonl, "parquet": from_parquet, "webdataset": from_webdataset,
        "easy_vqa": from_easy_vqa, "figures": from_figures,
    }[section.kind]  # fmt: skip
    for path in files_of(section, root):
        yield from read(path, section, root)


def files_of(section: ImageSourceSection, root: Path) -> list[Path]:
    """Return the files that a source's paths name, in name order."""
    found = []
    for pattern in section.paths:
        matches = sorted(root.glob(pattern)) if "*" in pattern else [root / pattern]
        missing = [path for path in matches if not path.is_file()]
        if missing or not matches:
            raise UserError(f"{root / pattern}: no such file; images.sources names it for {section.name}")
        found += matches
    return found


def attempt(where: str, make: Callable[[], Raw]) -> Record:
    """Return the record that ``make`` gives, or why there is none."""
    try:
        return make()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        return BadRecord(where, reason)


def from_llava(path: Path, section: ImageSourceSection, root: Path) -> Iterator[Record]:
    """Yield LLaVA's own format: a JSON list of ``id``, ``image`` and ``conversations`` of human and gpt."""
    rows = listed_in(path.read_bytes(), str(path))
    folder = root / section.folder

    def make(number: int, row: Mapping[str, Any]) -> Raw:
        turns = [
            {"role": LLAVA_ROLES[turn["from"]], "content": text_of(turn["value"])}
            for turn in row["conversations"]
        ]
        images = names_of(row.get("image"))
        return Raw(
            str(row.get("id", number)), turns, in_folder(folder, images), section.name, str(path.name),
            section.license,
        )  # fmt: skip

    for number, row in enumerate(rows):
        yield attempt(f"{path}: item {number}", lambda number=number, row=row: make(number, row))


def listed_in(data: bytes, where: str) -> list[Any]:
    """Return what a file lists in JSON.

    Raises:
        UserError: it is damaged, or no list.
    """
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); take the file from its source again") from None
    if not isinstance(rows, list):
        raise UserError(f"{where}: a list of conversations is needed here")
    return rows


def from_jsonl(path: Path, section: ImageSourceSection, root: Path) -> Iterator[Record]:
    """Yield lines of ``image`` (a path, or a list) and ``messages``, or ``question`` and ``answer``."""
    folder = root / section.folder

    def make(number: int, line: bytes) -> Raw:
        row = json.loads(line)
        images = names_of(row.get("image"))
        return Raw(
            str(row.get("id", f"{path.name}:{number}")), messages_of(row, len(images)),
            in_folder(folder, images), str(row.get("category", section.name)),
            str(row.get("source", path.name)), str(row.get("license", section.license)),
        )  # fmt: skip

    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                if len(line) > LONGEST_LINE:
                    yield BadRecord(where, f"a line of {len(line):,} bytes")
                    continue
                yield attempt(where, lambda number=number, line=line: make(number, line))


def from_parquet(path: Path, section: ImageSourceSection, root: Path) -> Iterator[Record]:
    """Yield rows of ``image`` (bytes, or Hugging Face's ``{bytes, path}``) and ``messages`` or a question."""
    try:
        table = pq.ParquetFile(path)
    except Exception as error:  # Arrow raises its own and others' for damaged files
        raise UserError(f"{path}: not Parquet ({error}); take the file from its source again") from None

    def make(number: int, row: dict[str, Any]) -> Raw:
        held = row.get("images") or row.get("image")
        held = [] if held is None else held if isinstance(held, list) else [held]
        contents = [image["bytes"] if isinstance(image, dict) else image for image in held]
        if not all(isinstance(content, bytes) for content in contents):
            raise ValueError("the image column holds no bytes")
        images = [
            (f"{path.name}:{number}.{place}", lambda content=content: content)
            for place, content in enumerate(contents)
        ]
        return Raw(
            str(row.get("id", f"{path.name}:{number}")), messages_of(row, len(images)), images,
            str(row.get("category", section.name)), path.name, str(row.get("license", section.license)),
        )  # fmt: skip

    number = 0
    for batch in table.iter_batches(batch_size=64):
        for row in batch.to_pylist():
            yield attempt(f"{path}: row {number}", lambda number=number, row=row: make(number, row))
            number += 1


def from_webdataset(path: Path, section: ImageSourceSection, root: Path) -> Iterator[Record]:
    """Yield the samples of a tar: ``KEY.jpg`` (or another image) with ``KEY.json``, or ``KEY.txt`` to say."""

    def make(key: str, parts: dict[str, bytes]) -> Raw:
        texts = {kind: parts.pop(kind) for kind in ("json", "txt") if kind in parts}
        row = json.loads(texts["json"]) if "json" in texts else {"answer": texts["txt"].decode("utf-8")}
        images = [
            (f"{path.name}/{key}.{kind}", lambda data=data: data) for kind, data in sorted(parts.items())
        ]
        return Raw(
            key, messages_of(row, len(images)), images, str(row.get("category", section.name)),
            path.name, str(row.get("license", section.license)),
        )  # fmt: skip

    for key, parts in grouped(path):
        yield attempt(f"{path}: {key}", lambda key=key, parts=parts: make(key, parts))


def grouped(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the neighbouring members of a tar that share a name up to its first dot."""
    key, parts = None, {}
    for name, data in members(path):
        folder, _, base = name.rpartition("/")
        stem, _, kind = base.partition(".")
        now = f"{folder}/{stem}" if folder else stem
        if key is not None and now != key:
            yield key, parts
            parts = {}
        key = now
        parts[kind.lower()] = data
    if key is not None:
        yield key, parts


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of a tar, whatever it is compressed with, in one pass."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and (file := archive.extractfile(member)) is not None:
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a tar ({error}); take it from its source again") from None


def from_easy_vqa(path: Path, section: ImageSourceSection, root: Path) -> Iterator[Record]:
    """Yield one split of easy-VQA from its archive; the category is what is asked for."""
    held = {name: data for name, data in members(path) if f"/{section.split}/" in f"/{name}"}
    listed = next((data for name, data in held.items() if name.endswith("/questions.json")), None)
    if listed is None:
        raise UserError(f"{path}: no {section.split}/questions.json in it; give split = train or test")
    images = {PurePosixPath(name).stem: data for name, data in held.items() if name.endswith(".png")}

    def make(number: int, question: str, answer: str, image: str) -> Raw:
        data = images[image]
        return Raw(
            f"{section.split}/{number}", dialogue(question, answer, 1),
            [(f"{section.split}/images/{image}.png", lambda: data)],
            asked_for(question), path.name, section.license,
        )  # fmt: skip

    for number, (question, answer, image) in enumerate(listed_in(listed, f"{path}: questions.json")):
        where = f"{path}: {section.split} question {number}"
        yield attempt(where, lambda n=number, q=question, a=answer, i=str(image): make(n, q, a, i))


def from_figures(path: Path, section: ImageSourceSection, root: Path) -> Iterator[Record]:
    """Yield one split of a tar with ``figures.jsonl``: each image with its author's description."""
    held = dict(members(path))
    listed = next((name for name in held if name.endswith("figures.jsonl")), None)
    if listed is None:
        raise UserError(f"{path}: no figures.jsonl in it")
    folder = listed.rpartition("/")[0]

    def make(row: dict[str, Any]) -> Raw:
        data = held[f"{folder}/{text_of(row['image'])}" if folder else text_of(row["image"])]
        messages = dialogue(FIGURE_QUESTION, text_of(row["alt"]), 1)
        return Raw(
            row["image"], messages, [(row["image"], lambda: data)], row["book"], row["source"], row["license"]
        )

    for number, line in enumerate(io.BytesIO(held[listed]), start=1):
        where = f"{path}: {listed}:{number}"
        try:
            row = json.loads(line)
            wanted = row["split"] == section.split
        except (ValueError, KeyError, TypeError) as error:
            yield BadRecord(where, f"no figure's record ({error!r})")
            continue
        if wanted:
            yield attempt(where, lambda row=row: make(row))


def messages_of(row: Mapping[str, Any], images: int) -> list[dict[str, str]]:
    """Return the messages of a row, which may have a question and its answer instead."""
    if "messages" in row:
        return [{"role": str(turn["role"]), "content": text_of(turn["content"])} for turn in row["messages"]]
    return dialogue(text_of(row.get("question", "")), text_of(row["answer"]), images)


def dialogue(question: str, answer: str, images: int) -> list[dict[str, str]]:
    """Return a question about images and its answer as messages."""
    return [
        {"role": "user", "content": with_markers(question, images)},
        {"role": "assistant", "content": answer},
    ]


def text_of(value: Any) -> str:
    """Return a value that has to be text."""
    if not isinstance(value, str):
        raise ValueError(f"text is needed, not {type(value).__name__}")
    return value


def names_of(value: Any) -> list[str]:
    """Return the image paths of a row: none, one, or a list."""
    names = [] if value is None else value if isinstance(value, list) else [value]
    for name in names:
        parts = PurePosixPath(text_of(name)).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
            raise ValueError(f"image {name!r} lies outside the folder of images")
    return names


def in_folder(folder: Path, names: list[str]) -> list[tuple[str, Read]]:
    """Return images by path within a folder."""
    return [(name, (folder / name).read_bytes) for name in names]
