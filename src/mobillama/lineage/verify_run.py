"""A run against its own telling: ledger, records, the order of checkpoints and the chain of their parents."""

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.records import (
    LEDGER,
    MANIFEST,
    Ledger,
    Problem,
    manifest_hash,
    read_manifest,
)
from mobillama.report.run import corpus_places

STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass
class RunCheck:
    """What is wrong with a run, what could not be checked, and the corpus to check with it."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    corpus: Path | None = None


@dataclass(frozen=True)
class Held:
    """One checkpoint or state as its manifest tells it."""

    path: Path
    record: dict[str, Any]
    sha256: str


def check_run(run: Path) -> RunCheck:
    """Check everything of a run but the files inside its checkpoints."""
    result = RunCheck()
    ledger = Ledger(run / LEDGER)
    entries = []
    if not ledger.path.is_file():
        result.problems.append(Problem(ledger.path, "missing"))
    else:
        result.problems += ledger.check()
        if result.problems:
            result.notes.append(f"{run}: not compared with its ledger, which is damaged")
        else:
            entries = ledger.entries()
            result.problems += ledger.check_records()
    checkpoints = held(run, "checkpoint")
    for one in (*checkpoints, *held(run, "state")):
        result.problems += check_name(one)
    result.problems += check_order(checkpoints)
    result.problems += check_parents(checkpoints, entries, result.notes)
    if entries:
        result.problems += check_told(run, checkpoints, entries)
    check_corpus(run, checkpoints, result)
    return result


def held(run: Path, kind: str) -> list[Held]:
    """Return the checkpoints or states whose manifests can be read, in the order of their recorded steps."""
    found = []
    for path in run.glob(f"{kind}s/step-*"):
        try:
            found.append(Held(path, read_manifest(path, kind), manifest_hash(path)))
        except UserError:
            continue  # The artifact's own check names it.
    if kind == "checkpoint":
        found += packed(run, {one.path.name for one in found})
    return sorted(found, key=lambda one: one.record["step"])


def packed(run: Path, unpacked: set[str]) -> list[Held]:
    """Return the checkpoints that lie only in the run's packed store, by the manifests kept there."""
    found = []
    for path in run.glob("packed/step-*.json"):
        if path.stem in unpacked or (run / "checkpoints" / path.stem).exists():
            continue
        try:
            text = json.loads(path.read_text(encoding="utf-8"))["manifest"]
            found.append(
                Held(path.with_suffix(""), json.loads(text), hashlib.sha256(text.encode()).hexdigest())
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # The store's own check names it.
    return found


def check_name(checkpoint: Held) -> list[Problem]:
    """A folder must be named for the step its manifest records."""
    match, step = STEP_NAME.fullmatch(checkpoint.path.name), checkpoint.record["step"]
    if match is None or int(match.group(1)) != step:
        return [Problem(checkpoint.path, f"holds step {step} by its manifest: swapped or renamed")]
    return []


def check_order(checkpoints: list[Held]) -> list[Problem]:
    """Later steps must have seen more: tokens and samples may not fall."""
    problems = []
    for before, after in pairwise(checkpoints):
        for key in ("samples_seen", "tokens_seen"):
            if after.record.get(key, 0) < before.record.get(key, 0):
                problems.append(Problem(after.path, f"has seen less ({key}) than {before.path.name}"))
    return problems


def check_parents(checkpoints: list[Held], entries: list[dict[str, Any]], notes: list[str]) -> list[Problem]:
    """Each checkpoint's parent must be the one before it, or one before it that the ledger tells of."""
    problems = []
    told = {entry.get("checkpoint") for entry in entries if entry.get("event") == "checkpoint"}
    before: Held | None = None
    for checkpoint in checkpoints:
        parent = checkpoint.record.get("parent")
        elsewhere = next((one for one in checkpoints if one.sha256 == parent), None)
        expected = before.path.name if before else "none"
        if before is not None and parent == before.sha256:
            pass
        elif elsewhere is not None:
            what = f"names {elsewhere.path.name} as its parent, where {expected} comes before it"
            problems.append(Problem(checkpoint.path, what))
        elif before is None and parent is not None and parent not in told:
            notes.append(f"{checkpoint.path}: made from checkpoint {parent[:12]}, which is not in this run")
        elif before is not None and parent not in told:
            what = "no parent" if parent is None else f"parent {parent[:12]}, which nothing here knows"
            problems.append(Problem(checkpoint.path, f"names {what}; {expected} comes before it"))
        before = checkpoint
    return problems


def check_told(run: Path, checkpoints: list[Held], entries: list[dict[str, Any]]) -> list[Problem]:
    """The ledger's last word on each checkpoint must agree with the checkpoint that is there."""
    problems = []
    told = {entry["step"]: entry["checkpoint"] for entry in entries if entry.get("event") == "checkpoint"}
    by_folder = {one.path.name: one for one in checkpoints}
    for step, sha256 in told.items():
        path = run / "checkpoints" / f"step-{step:08d}"
        there = by_folder.get(path.name)
        if there is None and not path.exists():
            problems.append(Problem(path, "missing; the ledger tells of it"))
        elif there is not None and there.sha256 != sha256 and there.record["step"] == step:
            problems.append(
                Problem(
                    there.path / MANIFEST, f"has the hash {there.sha256[:12]}, the ledger says {sha256[:12]}"
                )
            )
    for one in checkpoints:
        if one.record["step"] not in told:
            problems.append(Problem(one.path, "is not in the ledger"))
    return problems


def check_corpus(run: Path, checkpoints: list[Held], result: RunCheck) -> None:
    """Find the corpus that the checkpoints name, or say that it is elsewhere."""
    wanted = {one.record.get("corpus") for one in checkpoints} - {None}
    if not wanted:
        return
    try:
        recipe = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # Named already by the check of the records.
    for place in corpus_places(run, recipe):
        if not place.is_dir():
            continue
        if not (place / MANIFEST).is_file():
            result.problems.append(Problem(place / MANIFEST, "missing; the checkpoints name this corpus"))
            return
        if manifest_hash(place) in wanted:
            result.corpus = place.resolve()
        else:
            names = ", ".join(sorted(str(sha256)[:12] for sha256 in wanted))
            result.problems.append(
                Problem(place / MANIFEST, f"is not the corpus {names} that the checkpoints were trained on")
            )
        return
    result.notes.append(f"{run}: the corpus {', '.join(sorted(str(w)[:12] for w in wanted))} is not here")
