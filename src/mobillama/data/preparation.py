"""``mobillama prepare``: documents in, a tokenizer, shards and their manifest out.

Reading, deciding, learning the vocabulary, tokenising and comparing are stages of independent tasks; which
tasks there are depends on the input alone, so the result does not depend on workers, order or restarts.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mobillama.core import atomic
from mobillama.core.environment import installed_version
from mobillama.core.errors import UserError
from mobillama.core.hashing import canonical_json, hash_file
from mobillama.core.making import write_made_manifest
from mobillama.core.records import MANIFEST, read_jsonl, require_intact

from . import minhash
from .corpus import KIND, SPLITS
from .execution import Stage, runner
from .recipe import CorpusSection
from .selection import DecideDocuments, MatchBand
from .shards import CompressHeldout, PlannedDocuments, TokeniseDocuments
from .sources import Unit, plan_units
from .staging import FilterDocuments, ReadDocuments, StageDocuments
from .vocabulary import MakeTokenizer, token_dtype
from .workplace import Step, Workplace

MB = 1e6
PLACES = {"directory", "root", "workers", "executor"}
"""What says where and how to work, not what to make: kept out of the manifest."""


def prepare(section: CorpusSection) -> Path:
    """Make the corpus a recipe describes and return its directory.

    A corpus that is there already, made from the same recipe and inputs, is left as it is. After a stop or a
    crash the same call redoes only unfinished tasks. Equal inputs give equal bytes, whatever the workers.

    Raises:
        UserError: bad input, a path that names nothing, or a directory that holds something else.
    """
    places = {"directory": section.directory.absolute(), "root": section.root.absolute()}
    section = section.model_copy(update=places)
    units = plan_units(section)
    if is_prepared(section, units):
        return section.directory
    work = Workplace(section.directory.with_name(f".{section.directory.name}.preparing"))
    with atomic.exclusive(work.root):
        resume_or_clear(work, section, units)
        with runner(section, work.root) as run:
            run_stages(run, section, work)
        with atomic.atomic_directory(section.directory) as directory:
            assemble(directory, section, work)
        shutil.rmtree(work.root)
    return section.directory


def run_stages(run: Callable[[Stage], None], section: CorpusSection, work: Workplace) -> None:
    """Run every stage; finished tasks are skipped."""

    def steps(*kinds: type[Step]) -> list[Step]:
        return [kind(work.root, section) for kind in kinds]

    sizes = [unit.size_bytes / MB for unit in work.units()]
    run(Stage("reading", "reading", steps(ReadDocuments, FilterDocuments, StageDocuments), sizes, "MB"))
    run(Stage("matching", "finding near-duplicates", steps(MatchBand), [1.0] * minhash.BANDS, "bands"))
    run(Stage("deciding", "choosing documents", steps(DecideDocuments), [1.0], "tasks"))
    run(Stage("learning", "learning the vocabulary", steps(MakeTokenizer), [1.0], "tasks"))
    sizes = [shard.size_bytes / MB for shard in work.shards()]
    run(Stage("tokenising", "tokenising", steps(PlannedDocuments, TokeniseDocuments), sizes, "MB"))
    subsets = [1.0] * len(section.names)
    run(Stage("comparing", "compressing held-out text", steps(CompressHeldout), subsets, "subsets"))


def is_prepared(section: CorpusSection, units: list[Unit]) -> bool:
    """Return whether the directory holds just this corpus already.

    Raises:
        UserError: it holds something that is not a whole corpus, which is never overwritten.
    """
    directory = section.directory
    if not directory.exists() or not any(path.name != ".lock" for path in directory.iterdir()):
        return False
    if not (directory / MANIFEST).exists():
        raise UserError(f"{directory}: holds files, but no corpus; choose another corpus.directory")
    manifest = require_intact(directory, KIND)
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


def resume_or_clear(work: Workplace, section: CorpusSection, units: list[Unit]) -> None:
    """Keep what an attempt at the same corpus left; clear what another one left."""
    files = [[unit.source, unit.hub_shard, unit.hub_shards, [vars(f) for f in unit.files]] for unit in units]
    key = canonical_json({"recipe": content(section), "units": files, "software": software()})
    path = work.root / "key.json"
    if path.exists() and path.read_text(encoding="utf-8") == key:
        return
    for entry in work.folder().iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()
    work.save_units(units)
    atomic.write_text(path, key)


def assemble(directory: Path, section: CorpusSection, work: Workplace) -> None:
    """Put shards, tokenizer and records in their places and write the manifest."""
    for task, shard in enumerate(work.shards()):
        for suffix in ("tokens", "documents"):
            source = work.folder("shards") / f"{task:05d}.{suffix}"
            atomic.link(source, directory / shard.split / shard.subset / f"{shard.number:05d}.{suffix}")
    for file in work.folder("tokenizer").iterdir():
        atomic.link(file, directory / "tokenizer" / file.name)
    folders = [work.read(task) for task in range(len(work.units()))]
    join(
        [*(folder / "dropped.jsonl" for folder in folders), work.folder("plan") / "dropped.jsonl"], directory
    )
    join([folder / "quarantine.jsonl" for folder in folders], directory)
    write_made_manifest(directory, KIND, **facts(directory, section, work))


def facts(directory: Path, section: CorpusSection, work: Workplace) -> dict[str, Any]:
    """Return what the manifest records beside its files; nothing in it depends on time or machine."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
    vocab_size, end_of_text = tokenizer.get_vocab_size(), section.tokenizer.end_of_text
    inputs = [
        entry
        for task in range(len(work.units()))
        for entry in json.loads((work.read(task) / "inputs.json").read_text(encoding="utf-8"))
    ]
    heldout: dict[str, Any] = {}
    for number, name in enumerate(section.names):
        compressed = (work.folder("compressed") / f"{number:05d}.json").read_text(encoding="utf-8")
        heldout[name] = json.loads(compressed)
    return {
        "recipe": content(section),
        "software": software(),
        "inputs": inputs,
        "tokenizer": {
            "vocab_size": vocab_size,
            "end_of_text": end_of_text,
            "end_of_text_id": tokenizer.token_to_id(end_of_text),
            "dtype": token_dtype(vocab_size).str,
        },
        "subsets": subset_counts(directory, section, work, token_dtype(vocab_size).itemsize),
        "heldout": {name: sizes for name, sizes in heldout.items() if sizes["bytes"]},
    }


def subset_counts(
    directory: Path, section: CorpusSection, work: Workplace, token_bytes: int
) -> dict[str, dict[str, Any]]:
    """Return, by subset, what went into each split and how much was dropped and put in quarantine."""
    dropped = Counter((line["subset"], line["reason"]) for line in read_jsonl(directory / "dropped.jsonl"))
    quarantined = Counter(line["subset"] for line in read_jsonl(directory / "quarantine.jsonl"))
    counts: dict[str, dict[str, Any]] = {
        name: {
            **{split: {"documents": 0, "tokens": 0, "size_bytes": 0} for split in SPLITS},
            "dropped": {reason: n for (subset, reason), n in sorted(dropped.items()) if subset == name},
            "quarantined": quarantined[name],
        }
        for name in section.names
    }
    for task, shard in enumerate(work.shards()):
        tokens = (work.folder("shards") / f"{task:05d}.tokens").stat().st_size // token_bytes
        split = counts[shard.subset][shard.split]
        for key, value in (
            ("documents", shard.documents),
            ("tokens", tokens),
            ("size_bytes", shard.size_bytes),
        ):
            split[key] += value
    return counts


def join(sources: list[Path], directory: Path) -> None:
    """Write files of one name one after another into a file of that name in ``directory``."""
    with (directory / sources[0].name).open("wb") as out:
        for source in sources:
            with source.open("rb") as file:
                shutil.copyfileobj(file, out)
