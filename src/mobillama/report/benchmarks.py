"""What evaluations of a run's checkpoints found: one trajectory a task, and the last result in full."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.records import digest

from .contamination import Contamination, contamination_of
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
    contamination: Contamination | None
    gallery: str | None
    """A page of its answers, relative to the run."""


def results_of(run: Path) -> dict[int, dict[str, Entry]]:
    """Return what a run's checkpoints scored in torch, by step and task.

    Of several results on a task at one step the one on the most questions counts, then the newest.

    Raises:
        UserError: one was changed after it was written.
    """
    results = []
    for path in sorted((run / FOLDER).glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        model = result.get("model") or {}
        if result.get("kind") != "evaluation" or model.get("backend") != "torch" or model.get("step") is None:
            continue
        if result["digest"] != digest(result):
            raise UserError(f"{path}: was changed after it was written; evaluate again")
        results.append(result)
    found: dict[int, dict[str, Entry]] = {}
    for result in sorted(results, key=lambda result: (result["model"]["step"], result["finished_at"])):
        tasks = found.setdefault(result["model"]["step"], {})
        for name, task in result["tasks"].items():
            if name not in tasks or tasks[name]["questions"] <= task["questions"]:
                tasks[name] = task
    return found


def benchmark_columns(run: Run, results: dict[int, dict[str, Entry]]) -> dict[str, Any] | None:
    """Return the trajectories: x columns, and by task its value at each step, None where it was not asked."""
    if not results:
        return None
    names = dict.fromkeys(name for tasks in results.values() for name in tasks)
    values = {
        name: [shown(tasks[name]) if name in tasks else None for tasks in results.values()] for name in names
    }
    return {**at_steps(run, list(results)), "tasks": values}


def last_scores(run: Path, results: dict[int, dict[str, Entry]]) -> list[Score]:
    """Return each task's last result beside what the training data hold of its benchmark."""
    last = {name: (step, task) for step, tasks in results.items() for name, task in tasks.items()}
    contamination = contamination_of(run / FOLDER, last)
    return [score(name, step, task, contamination.get(name)) for name, (step, task) in last.items()]


def score(name: str, step: int, task: Entry, contamination: Contamination | None) -> Score:
    """Return one line."""
    low, high = task.get("interval") or (None, None)
    factor = factor_of(task)
    return Score(
        name, task["metric"], step, factor * task["value"],
        None if low is None else factor * low, None if high is None else factor * high,
        task["questions"], task["of"], task["num_fewshot"], contamination,
        f"{FOLDER}/{task['gallery']}" if "gallery" in task else None,
    )  # fmt: skip


def shown(task: Entry) -> float:
    """Return a task's value as the page shows it."""
    return round(factor_of(task) * task["value"], 3)


def factor_of(task: Entry) -> float:
    """Return 100 for a share, 1 for anything else."""
    metric = task["metric"].partition(",")[0]
    return 100.0 if metric.startswith(("acc", "pct", "exact_match")) else 1.0
