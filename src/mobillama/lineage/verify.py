"""Recompute everything that records claim, and name each thing that is off.

Hashes of every file against its manifest, manifests against themselves, the chain of parents, and the
ledger against the run that it tells of. Nothing here unpickles, executes or imports what it checks.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.hashing import blake3_file, total_bytes
from mobillama.core.making import check_making
from mobillama.core.records import (
    LEDGER,
    MANIFEST,
    Problem,
    as_problem,
    check_files,
    manifest_hash,
    manifest_path,
    read_manifest,
)
from mobillama.core.tensors import TensorFile

from .results import check_results, results_in
from .verify_run import check_run

# Formats that run code when they are loaded the ordinary way.
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
DIFFERS = "content differs from the manifest"


@dataclass
class Verification:
    """What was checked and what is wrong; ``notes`` says what could not be checked here."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    artifacts: dict[Path, dict[str, Any]] = field(default_factory=dict)
    """Each artifact whose manifest can be believed."""
    packed_bytes: int = 0
    """Of packed stores, as they are stored."""

    @property
    def size_bytes(self) -> int:
        """The bytes that were hashed or unpacked."""
        listed = (entry["size_bytes"] for record in self.artifacts.values() for entry in record["files"])
        return sum(listed) + self.packed_bytes


def verify(path: Path) -> list[Problem]:
    """Return everything that is wrong with an artifact, a run, or a folder that holds several.

    Raises:
        UserError: there is nothing of ours at ``path``.
    """
    return check(path).problems


def check(path: Path) -> Verification:
    """Verify ``path`` and return what was checked beside what is wrong.

    Raises:
        UserError: there is nothing of ours at ``path``.
    """
    artifacts, runs = find(path)
    results = results_in(path)
    if not artifacts and not runs and not results:
        raise UserError(
            f"{path}: no {MANIFEST} and no {LEDGER} here, so there is nothing to verify it against"
        )
    result = Verification()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for artifact, (record, problems) in zip(artifacts, pool.map(check_artifact, artifacts), strict=True):
            result.problems += problems
            if record:
                result.artifacts[artifact] = record
    result.problems = [explained(problem, result.artifacts) for problem in result.problems]
    result.problems += check_results(results)
    result.problems += duplicates(result.artifacts)
    for run in runs:
        if (run / "packed").is_dir():
            check_store(run / "packed", result)
        found = check_run(run)
        result.problems += found.problems
        result.notes += found.notes
        if found.corpus and found.corpus not in {artifact.resolve() for artifact in artifacts}:
            record, problems = check_artifact(found.corpus)
            result.problems += problems
            if record:
                result.artifacts[found.corpus] = record
    return result


def find(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the artifacts and the runs at or below ``path``.

    What a killed writer left hidden is no artifact; a checkpoint folder without a manifest counts, so
    that the missing manifest is named.
    """
    if path.name == LEDGER or path.name == MANIFEST:
        path = path.parent
    if path.is_file():
        return ([path] if manifest_path(path).is_file() else []), []
    shown = [file for file in path.rglob("*") if not hidden(file, path)]
    artifacts = {file.parent for file in shown if file.name == MANIFEST}
    artifacts |= {
        file.with_name(file.name.removesuffix(f".{MANIFEST}"))
        for file in shown
        if file.name.endswith(f".{MANIFEST}")
    }
    artifacts |= {file for file in shown if file.match("checkpoints/step-*") or file.match("states/step-*")}
    runs = {file.parent for file in shown if file.name in (LEDGER, "run.toml")}
    # Records inside an artifact, such as a publication, are files of that artifact.
    whole = {run for run in runs if not any(run.is_relative_to(artifact) for artifact in artifacts)}
    return sorted(artifacts), sorted(whole)


def hidden(file: Path, base: Path) -> bool:
    """Tell whether any folder between ``base`` and ``file`` is hidden."""
    return any(part.startswith(".") for part in file.relative_to(base).parts[:-1])


def check_artifact(artifact: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return an artifact's manifest, None if it cannot be believed, and everything wrong with its files."""
    try:
        record = read_manifest(artifact)
    except UserError as error:
        return None, [as_problem(error, manifest_path(artifact), artifact)]
    problems = [*check_making(artifact), *check_files(artifact, record)]
    base = artifact if artifact.is_dir() else artifact.parent
    broken = {problem.path for problem in problems}
    for path in sorted(base / entry["path"] for entry in record["files"]):
        if path.suffix in PICKLES:
            problems.append(
                Problem(path, "may be a pickle, which can run code when it is loaded; do not load it")
            )
        elif path.suffix == ".safetensors" and path not in broken:
            try:
                TensorFile(path)
            except UserError as error:
                problems.append(as_problem(error, path))
    return record, problems


def check_store(folder: Path, result: Verification) -> None:
    """Decode everything in a run's packed store, where zstandard is installed."""
    try:
        from .store import Store
    except ImportError:
        result.notes.append(f"{folder}: not checked, this needs pip install 'mobillama[train]'")
        return
    result.problems += Store(folder).check()
    result.packed_bytes += total_bytes(folder)


def explained(problem: Problem, artifacts: dict[Path, dict[str, Any]]) -> Problem:
    """Say of a file with foreign content whose content it is, when another entry's hash tells."""
    if problem.what != DIFFERS:
        return problem
    found = blake3_file(problem.path)
    for artifact, record in artifacts.items():
        base = artifact if artifact.is_dir() else artifact.parent
        for entry in record["files"]:
            if entry["blake3"] == found:
                return Problem(problem.path, f"{DIFFERS}: it is that of {base / entry['path']}")
    return problem


def duplicates(artifacts: dict[Path, dict[str, Any]]) -> Iterable[Problem]:
    """Name each checkpoint that holds the very weights of another under a different name."""
    holders: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for artifact, record in artifacts.items():
        if record["kind"] == "checkpoint":
            holders[weights_of(record)].append(artifact)
    for weights, (first, *others) in holders.items():
        for other in others if weights else []:
            # A copy of a whole artifact is a copy, not a fault: manifest and all are the same.
            if manifest_hash(other) != manifest_hash(first):
                yield Problem(other, f"holds exactly the weights of {first}, under another name")


def weights_of(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the hashes of the weight files at the top of a checkpoint."""
    return tuple(
        entry["blake3"]
        for entry in record["files"]
        if entry["path"].endswith(".safetensors") and "/" not in entry["path"]
    )
