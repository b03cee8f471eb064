"""A run directory as the report reads it: what was recorded, and nothing invented for what was not."""

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.records import (
    LEDGER,
    MANIFEST,
    Ledger,
    manifest_hash,
    read_jsonl,
    read_manifest,
    require_intact,
)

Entry = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run: its folder, its manifest and that manifest's SHA-256."""

    path: Path
    manifest: Entry
    sha256: str

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def size_bytes(self) -> int:
        return sum(file["size_bytes"] for file in self.manifest["files"])


@dataclass(frozen=True)
class Corpus:
    """The corpus a run learned from, where it lies on this machine."""

    path: Path
    manifest: Entry
    sha256: str


@dataclass(frozen=True)
class Run:
    """All records of one run."""

    path: Path
    recipe: Entry
    origins: dict[str, str] = field(default_factory=dict)
    environment: Entry = field(default_factory=dict)
    metrics: list[Entry] = field(default_factory=list)
    samples: list[Entry] = field(default_factory=list)
    evaluations: list[Entry] = field(default_factory=list)
    ledger: list[Entry] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    corpus: Corpus | None = None

    @property
    def name(self) -> str:
        """The folder's name, or for a folder called plainly ``run``, its parent's."""
        path = self.path.resolve()
        return path.parent.name if path.name == "run" else path.name

    @property
    def sees(self) -> bool:
        """Whether it learnt from images, and what is held out are answers about them."""
        return "images" in self.recipe

    @property
    def model(self) -> Entry:
        """The ``config.json`` of the last checkpoint, or the recipe's model section."""
        if self.checkpoints:
            return read_json(self.checkpoints[-1].path / "config.json")
        return self.recipe.get("model", {})


def intact_run(path: Path) -> Run:
    """Return the records of a run after checking them: nothing that was changed is told as fact.

    Raises:
        UserError: it is not a run directory; or its ledger, a record or the last checkpoint was changed.
    """
    Ledger(path / LEDGER).require_intact()
    run = read_run(path)
    if run.checkpoints:
        require_intact(run.checkpoints[-1].path)
    return run


def read_run(path: Path) -> Run:
    """Return the records of the run directory ``path``.

    Raises:
        UserError: it is not a run directory, or a record in it cannot be read.
    """
    if not (path / "run.toml").is_file():
        raise UserError(f"{path}: no run.toml here; give the directory that mobillama train wrote")
    try:
        recipe = tomllib.loads((path / "run.toml").read_text(encoding="utf-8"))
        checkpoints = read_checkpoints(path / "checkpoints")
        return Run(
            path=path,
            recipe=recipe,
            origins=read_json(path / "origins.json"),
            environment=read_json(path / "environment.json"),
            metrics=with_elapsed(latest_by_step(read_jsonl(path / "metrics.jsonl"))),
            samples=read_jsonl(path / "samples.jsonl"),
            evaluations=latest_by_step(read_jsonl(path / "evaluations.jsonl")),
            ledger=Ledger(path / LEDGER).entries(),
            checkpoints=checkpoints,
            corpus=find_corpus(path, recipe, checkpoints),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: a record is damaged ({error}); mobillama verify {path} names it") from None


def read_json(path: Path) -> Entry:
    """Return a JSON object, or an empty one where the file is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def latest_by_step(entries: list[Entry]) -> list[Entry]:
    """Return one entry a step in step order; after a resume the repeated steps' later entries count.

    A step at which a part of the held-out data and all of it were measured keeps both, the part first.
    """
    latest = {(int(entry["step"]), entry.get("whole", False)): entry for entry in entries}
    return [entry for _, entry in sorted(latest.items(), key=lambda item: item[0])]


def with_elapsed(metrics: list[Entry]) -> list[Entry]:
    """Return the metrics with ``elapsed_s``, added up from tokens and rates where it was not recorded.

    The time between a kill and the resume is in no rate, so it is not counted.
    """
    if any("elapsed_s" in entry for entry in metrics):
        return metrics
    elapsed_s, before, timed = 0.0, 0, []
    for entry in metrics:
        tokens, rate = entry.get("tokens"), entry.get("tokens_per_second")
        if not tokens or not rate:
            return metrics
        elapsed_s, before = elapsed_s + (tokens - before) / rate, tokens
        timed.append({**entry, "elapsed_s": round(elapsed_s, 2)})
    return timed


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the whole checkpoints of a run in step order."""
    found = [
        Checkpoint(path, read_manifest(path, "checkpoint"), manifest_hash(path))
        for path in folder.glob("step-*")
        if (path / MANIFEST).is_file()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def find_corpus(path: Path, recipe: Entry, checkpoints: list[Checkpoint]) -> Corpus | None:
    """Return the corpus whose manifest hash the checkpoints name, looked for where the recipe says.

    A corpus that was made anew since has another hash, and counts only when no checkpoint names one.
    """
    wanted = {checkpoint.manifest.get("corpus") for checkpoint in checkpoints} - {None}
    for place in corpus_places(path, recipe):
        if (place / MANIFEST).is_file() and (not wanted or manifest_hash(place) in wanted):
            return Corpus(place, read_manifest(place), manifest_hash(place))
    return None


def data_of(run: Path) -> Path:
    """Return the corpus or image set that a run was trained on, found by its identity.

    Raises:
        UserError: it is not where the recipe says, nor beside the run, or was made anew since.
    """
    identity = read_json(run / "plan.json")["corpus"]
    places = corpus_places(run, tomllib.loads((run / "run.toml").read_text(encoding="utf-8")))
    found = [place for place in places if (place / MANIFEST).is_file()]
    for place in found:
        if manifest_hash(place) == identity:
            return place
    what = f"{found[0]} is not" if found else f"{places[0]} does not hold"
    raise UserError(f"{run}: {what} the corpus {identity[:12]} it was trained on; put that one there")


def corpus_places(path: Path, recipe: Entry) -> list[Path]:
    """Return where the corpus of a run may lie: as its recipe says, or, when it was moved, beside it."""
    named = (recipe.get("corpus") or recipe.get("images") or {}).get("directory")
    places = [Path(named), path / named, path.parent / named] if named else []
    return [*places, path.parent / "corpus"]


def flat(values: Entry) -> dict[str, Any]:
    """Return a nested table as dotted path to value; rows of a list of tables are numbered from 0."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        tables = {f"{key}[{number}]": row for number, row in enumerate(rows or [])}
        if isinstance(value, dict):
            tables = {key: value}
        for name, table in tables.items():
            found |= {f"{name}.{inner}": leaf for inner, leaf in flat(table).items()}
        if not tables:
            found[key] = value
    return found
