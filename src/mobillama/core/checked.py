"""Artifacts that are asked many small questions: checked at full length once, and by their stamps later.

Hashing a large corpus takes longer than any question about it. So what was found intact is remembered,
beside the artifact, with each file's size, inode and time of change, and hashed again when any of these
differ. A disk that loses a bit by itself changes none of them: `mobillama verify` always reads every byte.
"""

import json
from pathlib import Path
from typing import Any

from . import atomic
from .records import manifest_hash, read_manifest, require_intact


def require_checked(artifact: Path, kind: str) -> dict[str, Any]:
    """Return the manifest of a directory whose files are intact, or unchanged since they were found so.

    Raises:
        UserError: the first thing that is wrong.
    """
    record = read_manifest(artifact, kind)
    try:
        remembered = json.loads(stamp_path(artifact).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        remembered = None
    if remembered is None or remembered != stamps(artifact, record):
        record = require_intact(artifact, kind)
        remember(artifact, record)
    return record


def remember(artifact: Path, record: dict[str, Any]) -> None:
    """Note that an artifact was found intact; where that cannot be written, it is checked each time."""
    try:
        atomic.write_text(stamp_path(artifact), json.dumps(stamps(artifact, record)))
    except OSError:
        return


def stamp_path(artifact: Path) -> Path:
    """Return where it is remembered: beside the artifact, it is no part of it."""
    place = artifact.resolve()
    return place.with_name(f".{place.name}.checked")


def stamps(artifact: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest's hash and each file's size, inode and time of change, None if one is missing."""
    try:
        stats = {entry["path"]: (artifact / entry["path"]).stat() for entry in record["files"]}
    except OSError:
        return None
    files = {path: [stat.st_size, stat.st_ino, stat.st_ctime_ns] for path, stat in stats.items()}
    return {"manifest": manifest_hash(artifact), "files": files}
