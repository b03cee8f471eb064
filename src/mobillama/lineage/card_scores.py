"""Scores for the model card: what benchmarks gave, and how much of each stands in the training data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import read_result, results_in


@dataclass(frozen=True)
class Score:
    """One line of the card; ``contaminated`` of ``items`` share a 13-gram with the training data."""

    task: str
    step: int | None
    metric: str
    value: float
    interval: list[float] | None
    questions: int
    of: int
    contaminated: int | None
    items: int | None


def scores(run: Path) -> list[Score]:
    """Return the run's newest score on each task: of the last step measured, all questions before some."""
    results = [result for path in results_in(run) if (result := read_result(path))]
    measured = sorted(
        (result for result in results if result["kind"] == "evaluation"),
        key=lambda result: (
            result["model"].get("step") or 0,
            not result["settings"]["limit"],
            result["finished_at"],
        ),
    )
    newest = {name: (result, task) for result in measured for name, task in result["tasks"].items()}
    counted = [result for result in results if result["kind"] == "contamination"]
    return [score(name, result, task, counted) for name, (result, task) in sorted(newest.items())]


def score(name: str, result: dict[str, Any], task: dict[str, Any], counted: list[dict[str, Any]]) -> Score:
    """Return one line."""
    rows = [
        row for found in counted for row in found["files"] if is_of(name, found["benchmark"], row["file"])
    ]
    return Score(
        name,
        result["model"].get("step"),
        task["metric"],
        task["value"],
        task.get("interval"),
        task["questions"],
        task["of"],
        sum(row["contaminated"] for row in rows) if rows else None,
        sum(row["items"] for row in rows) if rows else None,
    )


def is_of(task: str, benchmark: str, file: str) -> bool:
    """Tell whether a file belongs to a task: a folder on its way has the name that the task's begins with."""
    return any(task.startswith(folder) for folder in (benchmark, *Path(file).parts[:-1]))
