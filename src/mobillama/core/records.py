"""The records every artifact carries: a manifest of its files and a hash-chained ledger.

A manifest names each file of a directory with its size and hashes, and the artifacts it was
made from by the hash of their manifests, so the chain can be walked back to the documents.
"""

import hashlib
import json
import os
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

from . import atomic
from .errors import UserError
from .hashing import blake3_file, canonical_json, hash_file, sha256_text

MANIFEST = "manifest.json"
LEDGER = "ledger.jsonl"
FORMAT = 1
GENESIS = "0" * 64
TORN = "its last line is torn; starting the run again cuts it off"
# What a run writes beside its ledger; each ledger line holds the hash of these as they were then.
RUN_RECORDS = (
    "run.toml", "origins.json", "environment.json", "plan.json", "metrics.jsonl", "samples.jsonl",
    "evaluations.jsonl",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an artifact: where, and what."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def as_problem(error: UserError, path: Path, *prefixes: Path) -> Problem:
    """Return an error that names a path first as a problem of that path."""
    what = str(error)
    for prefix in (path, *prefixes):
        what = what.removeprefix(f"{prefix}: ")
    return Problem(path, what)


def now() -> str:
    """Return the present moment, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def manifest_path(artifact: Path) -> Path:
    """Return where the manifest of an artifact lies: in its directory, or beside it if it is one file."""
    return artifact / MANIFEST if artifact.is_dir() else artifact.with_name(f"{artifact.name}.{MANIFEST}")


def write_manifest(artifact: Path, kind: str, **facts: Any) -> str:
    """Hash an artifact's files, write its manifest and return the manifest's SHA-256.

    The artifact is a directory with all files below it, or a single file. ``facts`` is what this kind
    of artifact records beside its files; no time of day goes in unless the caller puts it there, so
    that equal inputs give equal manifests.
    """
    atomic.write_text(manifest_path(artifact), manifest_text(artifact, kind, **facts))
    return manifest_hash(artifact)


def manifest_text(artifact: Path, kind: str, **facts: Any) -> str:
    """Return what ``write_manifest`` writes."""
    base, found = artifact.parent, [artifact]
    if artifact.is_dir():
        base, found = artifact, [file for file in own_files(artifact) if file.is_file()]
    files = [
        {"path": file.relative_to(base).as_posix(), **asdict(hash_file(file))}
        for file in found
        if file.name != MANIFEST
    ]
    record = sealed({"kind": kind, "format": FORMAT, **facts, "files": files})
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def own_files(directory: Path) -> list[Path]:
    """Return what lies below a directory in name order, without what is hidden.

    A lock, a Hub's ``.gitattributes`` and its download cache are no part of an artifact.
    """
    found = sorted(directory.rglob("*"))
    return [path for path in found if not any(p.startswith(".") for p in path.relative_to(directory).parts)]


def digest(record: dict[str, Any]) -> str:
    """Return the SHA-256 of a record without its own ``digest``, in canonical JSON."""
    return sha256_text(canonical_json({key: value for key, value in record.items() if key != "digest"}))


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with its ``digest``, so that a change to it is found."""
    # Through JSON first: the digest is of what a reader will parse, not of tuples and paths.
    return {**record, "digest": digest(json.loads(canonical_json(record)))}


def manifest_hash(artifact: Path) -> str:
    """Return the SHA-256 of the bytes of an artifact's manifest: the artifact's identity."""
    return hashlib.sha256(manifest_path(artifact).read_bytes()).hexdigest()


def read_manifest(artifact: Path, kind: str | None = None) -> dict[str, Any]:
    """Return the manifest of a directory or single file.

    Raises:
        UserError: there is none, it cannot be read, names a file outside its directory, is not of
            ``kind``, or was changed after it was written.
    """
    path = manifest_path(artifact)
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = str(record["kind"])
        names = [str(entry["path"]) for entry in record["files"]]
        noted, expected = record["digest"], digest(record)
    except FileNotFoundError:
        raise UserError(f"{artifact}: no {path.name} here; is this a whole artifact of mobillama?") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a manifest ({error}); take the artifact from its source again"
        ) from None
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise UserError(f"{path}: names {name!r}, outside its own directory; do not use it")
    if kind is not None and found != kind:
        raise UserError(f"{artifact}: this is a {found}, where a {kind} is needed")
    if noted != expected:
        raise UserError(f"{path}: was changed after it was written; take the artifact from its source again")
    return record


def check_files(artifact: Path, record: dict[str, Any] | None = None) -> list[Problem]:
    """Compare an artifact's files with its manifest, in parallel, and name each difference."""
    entries: list[dict[str, Any]] = (record or read_manifest(artifact))["files"]
    directory = artifact if artifact.is_dir() else artifact.parent
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = pool.map(check_file, repeat(directory), entries)
        problems = [problem for problem in checked if problem]
    named = {directory / entry["path"] for entry in entries}
    for path in own_files(directory) if artifact.is_dir() else []:
        known = path in named or path.name == MANIFEST
        if not known and (path.is_file() or path.is_symlink()):
            problems.append(Problem(path, "not named in the manifest"))
    return problems


def check_file(directory: Path, entry: dict[str, Any]) -> Problem | None:
    """Compare one file with its manifest entry; the hash runs outside Python's lock."""
    path, home = directory / entry["path"], directory.resolve()
    # The Hub's client keeps a file's content in `blobs`, and in `snapshots/REVISION` links to it.
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(path.resolve().is_relative_to(home) for home in homes):
        return Problem(path, "is a link out of its directory")
    if not path.is_file():
        return Problem(path, "missing")
    if (size_bytes := path.stat().st_size) != entry["size_bytes"]:
        return Problem(path, f"{size_bytes} bytes, {entry['size_bytes']} recorded")
    if blake3_file(path) != entry["blake3"]:
        return Problem(path, "content differs from the manifest")
    return None


def require_intact(artifact: Path, kind: str | None = None) -> dict[str, Any]:
    """Return the manifest of an artifact after checking every file against it.

    Raises:
        UserError: the first thing that is wrong.
    """
    record = read_manifest(artifact, kind)
    refuse(check_files(artifact, record))
    return record


def refuse(problems: list[Problem]) -> None:
    """Stop at the first problem, if there is one."""
    if problems:
        raise UserError(f"{problems[0]}; restore it or make it again")


class Ledger:
    """An append-only ``ledger.jsonl``: each line holds the SHA-256 of the line before it.

    A line also holds its own digest, so that a changed last line is found, and the size and hash of
    the run's other records as they were when it was written: the last line vouches for all of them.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, event: str, *, keeping: dict[str, int] | None = None, **facts: Any) -> None:
        """Write one line, flushed to disk, chained to the last. A torn last line is cut off first.

        Arguments:
            keeping: a record's name to the bytes of it that stay, where it is about to be cut.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
            with self.path.open("r+b") as file:
                file.truncate(sum(map(len, lines)))
        previous = hashlib.sha256(lines[-1].rstrip(b"\n")).hexdigest() if lines else GENESIS
        facts["records"] = self.records(keeping or {})
        entry = {"time": now(), "event": event, **facts, "previous": previous}
        append_line(self.path, canonical_json(sealed(entry)))

    def records(self, keeping: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Return size and SHA-256 of each of the run's other records that exists."""
        found: dict[str, dict[str, Any]] = {}
        for name in RUN_RECORDS:
            if (path := self.path.parent / name).is_file():
                data = path.read_bytes()[: keeping.get(name)]
                found[name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return found

    def entries(self) -> list[dict[str, Any]]:
        """Return every whole line, oldest first."""
        return read_jsonl(self.path)

    def check(self) -> list[Problem]:
        """Return a problem for each line that was changed or does not chain to the one before it."""
        problems: list[Problem] = []
        previous: str | None = GENESIS
        data = self.path.read_bytes() if self.path.exists() else b""
        whole, _, torn = data.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                entry = json.loads(line)
                chained, changed = entry["previous"], entry["digest"] != digest(entry)
            except (ValueError, KeyError, TypeError, AttributeError):
                problems.append(Problem(self.path, f"line {number} is not a ledger entry"))
                previous = None
                continue
            if changed:
                problems.append(Problem(self.path, f"line {number} was changed after it was written"))
            # After a damaged line the chain cannot be judged: one fault, one problem.
            if previous is not None and chained != previous:
                problems.append(Problem(self.path, f"line {number} does not follow line {number - 1}"))
            previous = None if changed else hashlib.sha256(line).hexdigest()
        if torn:
            problems.append(Problem(self.path, TORN))
        return problems

    def check_records(self) -> list[Problem]:
        """Compare the run's records with what the last line says of them; what came later must parse."""
        problems: list[Problem] = []
        entries = self.entries()
        told: dict[str, dict[str, Any]] = entries[-1].get("records", {}) if entries else {}
        for name in RUN_RECORDS:
            path, note = self.path.parent / name, told.get(name)
            if not path.is_file():
                if note:
                    problems.append(Problem(path, "missing"))
                continue
            data = path.read_bytes()
            size_bytes: int = note["size_bytes"] if note else 0
            if len(data) < size_bytes:
                problems.append(Problem(path, f"{len(data)} bytes, {size_bytes} recorded in the ledger"))
            elif note and hashlib.sha256(data[:size_bytes]).hexdigest() != note["sha256"]:
                problems.append(Problem(path, "content differs from the ledger"))
            elif what := unvouched(path, data, size_bytes):
                problems.append(Problem(path, what))
        return problems

    def require_intact(self) -> None:
        """Check the chain and the run's records; a last line that a kill tore may be there.

        Raises:
            UserError: the first thing that is wrong.
        """
        refuse([problem for problem in self.check() if problem.what != TORN])
        refuse(self.check_records())


def unvouched(path: Path, data: bytes, vouched_bytes: int) -> str | None:
    """Return what is wrong with the part of a record that no ledger line vouches for yet."""
    try:
        if path.suffix == ".jsonl":
            for line in data[vouched_bytes:].split(b"\n")[:-1]:
                json.loads(line)
        elif vouched_bytes and len(data) != vouched_bytes:
            return f"{len(data)} bytes, {vouched_bytes} recorded in the ledger"
        else:
            (tomllib if path.suffix == ".toml" else json).loads(data.decode("utf-8"))
    except ValueError as error:
        return f"cannot be read: {error}"
    return None


def append_line(path: Path, line: str) -> None:
    """Append one line to ``path`` and flush it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSON Lines record; a torn last line of a killed writer is left out."""
    if not path.exists():
        return []
    # Split at line feeds only: text inside may hold other characters that Unicode calls line ends.
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line.decode("utf-8", errors="replace")) for line in lines]


def append_sealed(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Append lines that each hold their own digest."""
    lines = (json.dumps(sealed(entry), ensure_ascii=False) for entry in entries)
    append_line(path, "\n".join(lines))


def read_sealed(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines that ``append_sealed`` wrote.

    Raises:
        UserError: a line was changed.
    """
    try:
        entries = read_jsonl(path)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it or remove it") from None
    for number, entry in enumerate(entries, start=1):
        if entry.get("digest") != digest(entry):
            raise UserError(f"{path}: line {number} was changed after it was written; restore or remove it")
    return entries
