"""What evaluations of a run's checkpoints found: one trajectory a task, and the last result in full."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.records import digest

from .run import Entry, Run
from .series import at_steps

FOLDER = "evaluations"


@dataclass(frozen=True)
class Score:
    """The last result of a task; values in percent where the metric is a share."""

    task: str
    metric: str
    step: int
    value: float
    low: float | None
    high: float | None
    questions: int
    of: int
    num_fewshot: int


def results_of(run: Path) -> list[Entry]:
    """Return the results of a run's checkpoints in torch, by step; of several at one step the newest.

    Raises:
        UserError: one was changed after it was written.
    """
    newest: dict[int, Entry] = {}
    for path in sorted((run / FOLDER).glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        model = result.get("model") or {}
        if result.get("kind") != "evaluation" or model.get("backend") != "torch" or model.get("step") is None:
            continue
        if result.get("digest", digest(result)) != digest(result):
            raise UserError(f"{path}: was changed after it was written; evaluate again")
        before = newest.get(model["step"])
        if before is None or before["finished_at"] <= result["finished_at"]:
            newest[model["step"]] = result
    return [result for _, result in sorted(newest.items())]


def benchmark_columns(run: Run, results: list[Entry]) -> dict[str, Any] | None:
    """Return the trajectories: x columns, and by task its value at each step, None where it was not asked."""
    if not results:
        return None
    names = dict.fromkeys(name for result in results for name in result["tasks"])
    tasks = {
        name: [shown(result["tasks"][name]) if name in result["tasks"] else None for result in results]
        for name in names
    }
    return {**at_steps(run, [result["model"]["step"] for result in results]), "tasks": tasks}


def last_scores(results: list[Entry]) -> Iterator[Score]:
    """Yield each task's last result."""
    last = {name: result for result in results for name in result["tasks"]}
    for name, result in last.items():
        task = result["tasks"][name]
        low, high = task.get("interval") or (None, None)
        factor = factor_of(task)
        yield Score(
            name, task["metric"], result["model"]["step"], factor * task["value"],
            None if low is None else factor * low, None if high is None else factor * high,
            task["questions"], task["of"], task["num_fewshot"],
        )  # fmt: skip


def shown(task: Entry) -> float:
    """Return a task's value as the page shows it."""
    return round(factor_of(task) * task["value"], 3)


def factor_of(task: Entry) -> float:
    """Return 100 for a share, 1 for anything else."""
    metric = task["metric"].partition(",")[0]
    return 100.0 if metric.startswith(("acc", "pct", "exact_match")) else 1.0
