"""``mobillama prepare`` for a recipe with ``[images]``: conversations in, one directory with a manifest out.

Every image is decoded once here, so that training meets no bad one, and kept as the bytes it came in.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mobillama.core import atomic
from mobillama.core.environment import installed_version
from mobillama.core.errors import UserError
from mobillama.core.hashing import canonical_json, hash_file
from mobillama.core.making import write_made_manifest
from mobillama.core.records import MANIFEST, read_manifest
from mobillama.data.recipe import TokenizerSection
from mobillama.data.vocabulary import open_tokenizer, train_tokenizer, write_tokenizer

from .conversation import TEMPLATES, Conversation, require_messages, with_image_token
from .image_set import KIND, ImageWriter, SampleWriter
from .images import open_image
from .recipe import ImageSourceSection, ImagesSection
from .sources import BadRecord, Raw, files_of, records

CHUNK = 256
PLACES = {"directory", "root", "workers"}
"""What says where and how to work, not what to make: kept out of the manifest."""
STAGED = "staged.jsonl"


@dataclass(frozen=True)
class Checked:
    """A conversation whose images could be decoded, with their content, digests and sizes."""

    raw: Raw
    contents: list[bytes]
    digests: list[str]
    sizes: list[tuple[int, int]]


def prepare_images(section: ImagesSection) -> Path:
    """Make the image set a recipe describes and return its directory.

    One that is there already, made from the same recipe and files, is left as it is. Equal inputs give equal
    bytes, whatever the number of workers.

    Raises:
        UserError: bad input (with ``on_bad = "stop"``), a path that names nothing, or a directory that holds
            something else.
    """
    inputs = inputs_of(section)
    if is_prepared(section, inputs):
        return section.directory
    with atomic.exclusive(section.directory.with_name(f".{section.directory.name}.preparing")):  # noqa: SIM117
        with atomic.atomic_directory(section.directory) as directory:
            stage(directory, section)
            write(directory, section, inputs)
    return section.directory


def inputs_of(section: ImagesSection) -> list[dict[str, Any]]:
    """Return the files of conversations with their hashes; images have theirs in the table of images."""
    return [
        {"source": source.name, "path": path.relative_to(section.root).as_posix(), **asdict(hash_file(path))}
        for source in section.sources
        for path in files_of(source, section.root)
    ]


def is_prepared(section: ImagesSection, inputs: list[dict[str, Any]]) -> bool:
    """Return whether the directory holds just this image set already.

    Raises:
        UserError: it holds something that is not an image set, which is never overwritten.
    """
    directory = section.directory
    if not directory.exists() or not any(directory.iterdir()):
        return False
    if not (directory / MANIFEST).exists():
        raise UserError(f"{directory}: holds files, but no images of ours; choose another images.directory")
    manifest = read_manifest(directory, KIND)
    made = (manifest["recipe"], manifest["inputs"], manifest["software"])
    return made == (content(section), inputs, software())


def content(section: ImagesSection) -> dict[str, Any]:
    """Return the part of a recipe that decides what the image set is."""
    values = section.model_dump(mode="json", exclude=PLACES)
    if section.tokenizer.path is not None:
        values["tokenizer"]["path"] = hash_file(section.tokenizer.path).sha256
    return values


def software() -> dict[str, str | None]:
    """Return the versions that decide how images and text are read."""
    return {name: installed_version(name) for name in ("mobillama", "tokenizers", "pillow")}


def stage(directory: Path, section: ImagesSection) -> None:
    """Write the images, and beside them the conversations as text."""
    quarantined = 0
    never: set[str] = set()  # images of sources held out whole, which come first
    with (
        ImageWriter(directory, section.shard_bytes) as images,
        (directory / STAGED).open("w", encoding="utf-8") as staged,
        (directory / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine,
    ):
        for source, checked in checked_records(section):
            if isinstance(checked, BadRecord):
                if section.on_bad == "stop":
                    raise UserError(
                        f"{checked.where}: {checked.error}; mend it, or set images.on_bad = "
                        '"quarantine" to go on without such records'
                    )
                quarantine.write(canonical_json({"source": source.name, **asdict(checked)}) + "\n")
                quarantined += 1
                continue
            raw = checked.raw
            rows = [
                images.add(name, digest, content, size)
                for (name, _), digest, content, size in zip(
                    raw.images, checked.digests, checked.contents, checked.sizes, strict=True
                )
            ]
            values = {key: getattr(raw, key) for key in ("id", "category", "source", "license", "messages")}
            if source.heldout:
                never |= set(checked.digests)
            heldout = source.heldout or not never.isdisjoint(checked.digests)
            heldout = heldout or is_heldout(section.heldout_share, raw, checked.digests)
            staged.write(
                json.dumps({**values, "subset": source.name, "images": rows, "heldout": heldout}) + "\n"
            )
    if not staged_rows_exist(directory):
        raise UserError(f"{section.root}: no usable conversation in images.sources ({quarantined} bad ones)")


def staged_rows_exist(directory: Path) -> bool:
    """Return whether anything was staged."""
    return (directory / STAGED).stat().st_size > 0


def checked_records(section: ImagesSection) -> Iterator[tuple[ImageSourceSection, Checked | BadRecord]]:
    """Yield the records of every source, those held out first, their images decoded once, by threads."""
    known: dict[str, tuple[int, int]] = {}
    with ThreadPoolExecutor(section.workers or os.cpu_count()) as pool:
        for source in sorted(section.sources, key=lambda source: not source.heldout):
            found = records(source, section.root)
            while chunk := list(islice(found, CHUNK)):
                for checked in pool.map(partial(check, known=known), chunk):
                    yield source, checked


def check(record: Raw | BadRecord, known: dict[str, tuple[int, int]]) -> Checked | BadRecord:
    """Return a record with its images' content, or why it cannot be used."""
    if isinstance(record, BadRecord):
        return record
    contents, digests, sizes = [], [], []
    where = f"{record.source}: {record.id}"
    try:
        require_messages(record.messages, len(record.images))
        if record.messages[-1]["role"] != "assistant":
            raise UserError("ends without an answer to learn")
        for name, read in record.images:
            where = name
            contents.append(read())
            digests.append(hashlib.sha256(contents[-1]).hexdigest())
            if digests[-1] not in known:
                known[digests[-1]] = open_image(contents[-1], where=name).size
            sizes.append(known[digests[-1]])
    except UserError as error:
        return BadRecord(where, str(error).removeprefix(f"{where}: "))
    except OSError as error:
        return BadRecord(where, f"image cannot be read ({error.strerror or error})")
    return Checked(record, contents, digests, sizes)


def is_heldout(share: float, raw: Raw, digests: list[str]) -> bool:
    """Return whether a conversation is held out: if any of its images is, by the hash of its content."""
    keys = digests or [hashlib.sha256(canonical_json(raw.messages).encode()).hexdigest()]
    return any(int(key[:8], 16) < share * 2**32 for key in keys)


def write(directory: Path, section: ImagesSection, inputs: list[dict[str, Any]]) -> None:
    """Write tokenizer, samples and manifest from what was staged."""
    tokenizer = tokenizer_of(section, directory)
    folder = directory / "tokenizer"
    folder.mkdir()
    end = section.tokenizer.end_of_text
    write_tokenizer(tokenizer, end, folder)
    template = TEMPLATES[section.template]
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8")) | {
        "chat_template": template,
        "add_bos_token": True,  # as every sample begins, so that every prompt in use does
    }
    settings_path.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    conversation = Conversation(tokenizer.to_str(), template, end, tokens=1)
    vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    with (
        SampleWriter(directory / "train", vocab_size) as train,
        SampleWriter(directory / "heldout", vocab_size) as heldout,
    ):
        for row in staged_rows(directory):
            split = "heldout" if row.pop("heldout") else "train"
            spelled = conversation.spell(row["messages"], images=len(row["images"]))
            (heldout if split == "heldout" else train).add(row, spelled.ids, spelled.answers)
            told = counts.setdefault(row["category"], {}).setdefault(
                split, {"samples": 0, "tokens": 0, "answer_tokens": 0, "images": 0}
            )
            told["samples"] += 1
            told["tokens"] += len(spelled.ids)
            told["answer_tokens"] += int(spelled.answers.sum())
            told["images"] += len(row["images"])
    (directory / STAGED).unlink()
    with (directory / "quarantine.jsonl").open("rb") as file:
        quarantined = sum(1 for _ in file)
    write_made_manifest(
        directory, KIND, recipe=content(section), software=software(), inputs=inputs, categories=counts,
        quarantined=quarantined,
        tokenizer={"vocab_size": vocab_size, "end_of_text_id": conversation.end_id,
                   "image_id": conversation.image_id},
    )  # fmt: skip


def tokenizer_of(section: ImagesSection, directory: Path) -> Tokenizer:
    """Return the tokenizer that a recipe names, or one learnt from the conversations to train on."""
    wanted = section.tokenizer
    if wanted.path is not None:
        return with_image_token(open_tokenizer(wanted.path, wanted.end_of_text))
    texts = (
        message["content"]
        for row in staged_rows(directory)
        if not row["heldout"]
        for message in row["messages"]
    )
    # One place is left for the marker.
    sizes = TokenizerSection(vocab_size=wanted.vocab_size - 1, end_of_text=wanted.end_of_text)
    return with_image_token(train_tokenizer(texts, sizes))


def staged_rows(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the staged conversations."""
    with (directory / STAGED).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
