"""``mobillama prepare``: documents in, a tokenizer, shards and their manifest out.

Reading, deciding, learning the vocabulary, tokenising and comparing are stages of independent tasks; which
tasks there are depends on the input alone, so the result does not depend on workers, order or restarts.
"""

import json
import os
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mobillama.core import atomic
from mobillama.core.environment import installed_version
from mobillama.core.errors import UserError
from mobillama.core.hashing import canonical_json, hash_file
from mobillama.core.records import MANIFEST, read_jsonl, read_manifest, write_manifest

from . import minhash
from .corpus import KIND, SPLITS
from .execution import Run, Stage, runner
from .recipe import CorpusSection
from .selection import DecideDocuments, MatchBand
from .shards import CompressHeldout, PlannedDocuments, TokeniseDocuments, planned_shards
from .sources import Unit, plan_units
from .staging import FilterDocuments, ReadDocuments, StageDocuments, read_folder
from .vocabulary import MakeTokenizer, token_dtype

MB = 1e6
PLACES = {"directory", "root", "workers", "executor"}
"""What says where and how to work, not what to make: kept out of the manifest."""


def prepare(section: CorpusSection, origin: str = "") -> Path:
    """Make the corpus a recipe describes and return its directory.

    A corpus that is there already, made from the same recipe and inputs, is left as it is. After a stop or a
    crash the same call redoes only unfinished tasks. Equal inputs give equal bytes, whatever the workers.

    Arguments:
        origin: name of the recipe, for messages.

    Raises:
        UserError: bad input, a path that names nothing, or a directory that holds something else.
    """
    section = section.model_copy(
        update={"directory": section.directory.absolute(), "root": section.root.absolute()}
    )
    units = plan_units(section)
    if is_prepared(section, units):
        return section.directory
    work = section.directory.with_name(f".{section.directory.name}.preparing")
    with atomic.exclusive(work):
        resume_or_clear(work, section, units)
        with runner(section, work) as run:
            run_stages(run, section, units, work)
        with atomic.atomic_directory(section.directory) as directory:
            assemble(directory, section, units, work)
        shutil.rmtree(work)
    return section.directory


def run_stages(run: Run, section: CorpusSection, units: list[Unit], work: Path) -> None:
    """Run every stage; finished tasks are skipped."""
    read = [step(work, section, units) for step in (ReadDocuments, FilterDocuments, StageDocuments)]
    run(Stage("reading", "reading documents", read, [unit.size_bytes / MB for unit in units]))
    run(
        Stage(
            "matching",
            "finding near-duplicates",
            [MatchBand(work, len(units))],
            [1.0] * minhash.BANDS,
            "bands",
        )
    )
    run(Stage("deciding", "choosing documents", [DecideDocuments(work, section, units)], [1.0], "tasks"))
    run(
        Stage(
            "vocabulary", "learning the vocabulary", [MakeTokenizer(work, section.tokenizer)], [1.0], "tasks"
        )
    )
    tokenise = TokeniseDocuments(
        work / "shards", work / "tokenizer" / "tokenizer.json", section.tokenizer.end_of_text
    )
    shards = planned_shards(work)
    run(
        Stage(
            "tokenising",
            "tokenising",
            [PlannedDocuments(work), tokenise],
            [s.size_bytes / MB for s in shards],
        )
    )
    names = section.names
    run(
        Stage(
            "comparing",
            "compressing held-out text",
            [CompressHeldout(work, names)],
            [1.0] * len(names),
            "subsets",
        )
    )


def is_prepared(section: CorpusSection, units: list[Unit]) -> bool:
    """Return whether the directory holds just this corpus already.

    Raises:
        UserError: it holds something that is not a corpus, which is never overwritten.
    """
    directory = section.directory
    if not directory.exists() or not any(path.name != ".lock" for path in directory.iterdir()):
        return False
    if not (directory / MANIFEST).exists():
        raise UserError(f"{directory}: holds files, but no corpus; choose another corpus.directory")
    manifest = read_manifest(directory, KIND)
    if manifest["recipe"] != content(section) or manifest["software"] != software():
        return False
    recorded = [(entry["subset"], entry["path"], entry["sha256"]) for entry in manifest["inputs"]]
    return recorded == [
        (section.subsets[unit.source].name, file.name, hash_file(Path(file.path)).sha256)
        for unit in units
        for file in unit.files
    ]


def content(section: CorpusSection) -> dict[str, Any]:
    """Return the part of a recipe that decides what the corpus is."""
    values = section.model_dump(mode="json", exclude=PLACES)
    if section.tokenizer.path is not None:
        values["tokenizer"]["path"] = hash_file(section.tokenizer.path).sha256
    return values


def software() -> dict[str, str | None]:
    """Return the versions that decide how text is read and split."""
    return {name: installed_version(name) for name in ("mobillama", "tokenizers", "zstandard")}


def resume_or_clear(work: Path, section: CorpusSection, units: list[Unit]) -> None:
    """Keep what an attempt at the same corpus left in ``work``; clear what another one left."""
    task_list = [
        [unit.source, unit.hub_shard, unit.hub_shards, [vars(f) for f in unit.files]] for unit in units
    ]
    key = canonical_json({"recipe": content(section), "tasks": task_list, "software": software()})
    path = work / "key.json"
    if path.exists() and path.read_text(encoding="utf-8") == key:
        return
    for entry in work.iterdir():
        if entry.name == ".lock":
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    atomic.write_text(path, key)


def assemble(directory: Path, section: CorpusSection, units: list[Unit], work: Path) -> None:
    """Put shards, tokenizer and records in their places and write the manifest."""
    shards = planned_shards(work)
    for task, shard in enumerate(shards):
        for suffix in ("tokens", "documents"):
            place = directory / shard.split / shard.subset / f"{shard.number:05d}.{suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            link(work / "shards" / f"{task:05d}.{suffix}", place)
    for file in (work / "tokenizer").iterdir():
        (directory / "tokenizer").mkdir(exist_ok=True)
        link(file, directory / "tokenizer" / file.name)
    folders = [read_folder(work, task) for task in range(len(units))]
    join(
        [folder / "dropped.jsonl" for folder in folders] + [work / "plan" / "dropped.jsonl"],
        directory / "dropped.jsonl",
    )
    join([folder / "quarantine.jsonl" for folder in folders], directory / "quarantine.jsonl")
    write_manifest(directory, KIND, **facts(directory, section, units, work))


def facts(directory: Path, section: CorpusSection, units: list[Unit], work: Path) -> dict[str, Any]:
    """Return what the manifest records beside its files; nothing in it depends on time or machine."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size()
    dtype = token_dtype(vocab_size)
    subsets: dict[str, Any] = {
        name: {split: {"documents": 0, "tokens": 0, "size_bytes": 0} for split in SPLITS}
        for name in section.names
    }
    for task, shard in enumerate(planned_shards(work)):
        counts = subsets[shard.subset][shard.split]
        counts["documents"] += shard.documents
        counts["size_bytes"] += shard.size_bytes
        counts["tokens"] += (work / "shards" / f"{task:05d}.tokens").stat().st_size // dtype.itemsize
    dropped = Counter((line["subset"], line["reason"]) for line in read_jsonl(directory / "dropped.jsonl"))
    quarantined = Counter(line["subset"] for line in read_jsonl(directory / "quarantine.jsonl"))
    heldout: dict[str, Any] = {}
    for number, name in enumerate(section.names):
        subsets[name]["dropped"] = {
            reason: n for (subset, reason), n in sorted(dropped.items()) if subset == name
        }
        subsets[name]["quarantined"] = quarantined[name]
        compressed = json.loads((work / "compressed" / f"{number:05d}.json").read_text(encoding="utf-8"))
        if compressed["bytes"]:
            heldout[name] = {"documents": subsets[name]["heldout"]["documents"]} | compressed
    inputs = [
        entry
        for task in range(len(units))
        for entry in json.loads((read_folder(work, task) / "inputs.json").read_text(encoding="utf-8"))
    ]
    return {
        "recipe": content(section),
        "software": software(),
        "inputs": inputs,
        "tokenizer": {
            "vocab_size": vocab_size,
            "end_of_text": section.tokenizer.end_of_text,
            "end_of_text_id": tokenizer.token_to_id(section.tokenizer.end_of_text),
            "dtype": dtype.str,
        },
        "subsets": subsets,
        "heldout": heldout,
    }


def join(sources: list[Path], target: Path) -> None:
    """Write files one after another into ``target``."""
    with target.open("wb") as out:
        for source in sources:
            with source.open("rb") as file:
                shutil.copyfileobj(file, out)


def link(source: Path, target: Path) -> None:
    """Give a finished file its second name; a copy where the file system cannot."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
