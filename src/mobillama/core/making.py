"""What made an artifact: command, source commit, versions and machine, beside its manifest and not in it.

So whoever makes the same bytes again, anywhere, makes the same artifact with the same hash.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import atomic
from .environment import environment
from .hashing import sha256_text
from .records import Problem, digest, manifest_hash, manifest_path, manifest_text, sealed

NAME = "made-by.json"


def making_path(artifact: Path) -> Path:
    """Return where it is told what made an artifact; hidden, since it is no part of it."""
    return artifact / f".{NAME}" if artifact.is_dir() else artifact.with_name(f".{artifact.name}.{NAME}")


def write_made_manifest(artifact: Path, kind: str, **facts: Any) -> str:
    """Write an artifact's manifest as ``write_manifest`` does, and before it that this process made it."""
    text = manifest_text(artifact, kind, **facts)
    record = sealed({"manifest": sha256_text(text), **environment()})
    atomic.write_text(making_path(artifact), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    atomic.write_text(manifest_path(artifact), text)
    return manifest_hash(artifact)


def read_making(artifact: Path) -> dict[str, Any]:
    """Return the environment of the process that made an artifact; empty where that was not recorded."""
    path = making_path(artifact)
    return (
        {} if check_making(artifact) or not path.is_file() else json.loads(path.read_text(encoding="utf-8"))
    )


def check_making(artifact: Path) -> list[Problem]:
    """Return what is wrong with the record of an artifact's making; nothing is wrong with none."""
    path = making_path(artifact)
    if not path.is_file():
        return []
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["digest"] == digest(record) and record["manifest"] == manifest_hash(artifact):
            return []
    return [Problem(path, "was changed, or is of another artifact")]
