"""Results of evaluations: each vouches for itself by its digest, and so does each answer in its logs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mobillama.core import atomic
from mobillama.core.environment import environment
from mobillama.core.errors import UserError
from mobillama.core.records import Problem, as_problem, digest, now, read_sealed, sealed

FOLDER = "evaluations"


def results_in(path: Path) -> list[Path]:
    """Return the results at or below ``path``: itself, or what lies in a folder called ``evaluations``."""
    if path.is_file():
        return [path] if path.suffix == ".json" and read_result(path) else []
    found = path.glob("*.json") if path.name == FOLDER else path.rglob(f"{FOLDER}/*.json")
    return sorted(found)


def read_result(path: Path) -> dict[str, Any] | None:
    """Return a result as it stands in its file, None if the file holds anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if {"kind", "digest", "finished_at"} <= record.keys() else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def write_result(run: Path, kind: str, name: str, **facts: Any) -> Path:
    """Write a result of ours beside a run's evaluations and return its path."""
    path = run / FOLDER / f"{kind}-{name}.json"
    record = sealed({"kind": kind, "finished_at": now(), "environment": environment(), **facts})
    atomic.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def check_results(paths: Iterable[Path]) -> list[Problem]:
    """Return a problem for each result and each log of answers that was changed or is missing."""
    problems, logs = [], set()
    for path in paths:
        result = read_result(path)
        if result is None or result["digest"] != digest(result):
            problems.append(Problem(path, "was changed after it was written"))
            continue
        if folder := result.get("folder"):
            named = {log for task in result.get("tasks", {}).values() for log in task.get("logs", [])}
            logs |= {path.parent / folder / name for name in named}
            logs |= set((path.parent / folder).glob("*.jsonl"))
    for log in sorted(logs):
        try:
            if not log.is_file():
                problems.append(Problem(log, "missing"))
            read_sealed(log)
        except UserError as error:
            problems.append(as_problem(error, log))
    return problems
