"""How many items of each benchmark stand in the training data, as ``trace --contamination`` noted it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mobillama.core.errors import UserError
from mobillama.core.records import digest

from .run import Entry


@dataclass(frozen=True)
class Contamination:
    """So many of so many items share a 13-gram with the training data."""

    contaminated: int
    items: int

    def __str__(self) -> str:
        return f"{self.contaminated:,} of {self.items:,}"


def contamination_of(evaluations: Path, tasks: Iterable[str]) -> dict[str, Contamination]:
    """Return what is known of each task's items; nothing of tasks whose benchmark was not looked for.

    Arguments:
        evaluations: the folder of a run's results.

    Raises:
        UserError: a result was changed after it was written.
    """
    counted = [read(path) for path in evaluations.glob("contamination-*.json")]
    counted.sort(key=lambda result: result["finished_at"])
    found = {}
    for task in tasks:
        # Of a file that was counted twice, the later count.
        rows = {
            place: row
            for result in counted
            for row in result["files"]
            if (place := within(task, result, row))
        }
        if rows:
            found[task] = Contamination(
                sum(row["contaminated"] for row in rows.values()), sum(row["items"] for row in rows.values())
            )
    return found


def read(path: Path) -> Entry:
    """Return one result, if it is as it was written."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["digest"] != digest(result):
        raise UserError(f"{path}: was changed after it was written; count again")
    return result


def within(task: str, result: Entry, row: Entry) -> tuple[str, ...] | None:
    """Return where below its benchmark's folder a file lies, None if it is not of the task.

    The folder has the name that the task's begins with, as ``truthfulqa_mc2`` does with ``truthfulqa``.
    """
    parts = (result["benchmark"], *Path(row["file"]).parts)
    start = next((start for start, folder in enumerate(parts[:-1]) if task.startswith(folder)), None)
    return None if start is None else parts[start:]
