"""Two results on the same questions: which model is better, and is it more than chance."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.records import digest, read_sealed

from .statistics import PairedTest, compare

KIND = "evaluation"


@dataclass(frozen=True)
class Comparison:
    """The paired tests of two models by task, and the tasks that only one of them has."""

    a: str
    b: str
    tests: dict[str, PairedTest]
    left_out: dict[str, str]


def read_result(path: Path) -> dict[str, Any]:
    """Return a result that `mobillama evaluate` wrote.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        kind = result["kind"]
        if result["digest"] != digest(result):
            raise ValueError("it was changed after it was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a result ({error}); give a JSON file that mobillama evaluate wrote"
        ) from None
    if kind != KIND:
        raise UserError(f"{path}: a result of kind {kind}; comparison needs answers to questions")
    return result


def compare_results(a: Path, b: Path) -> Comparison:
    """Return the paired test of two results, task by task.

    Raises:
        UserError: they share no task, or the answers to the same questions are not there.
    """
    first, second = read_result(a), read_result(b)
    tests, left_out = {}, {}
    for task in dict.fromkeys([*first["tasks"], *second["tasks"]]):
        if task not in first["tasks"] or task not in second["tasks"]:
            left_out[task] = f"only in {a.name if task in first['tasks'] else b.name}"
            continue
        ours, theirs = first["tasks"][task], second["tasks"][task]
        if ours["logs"] != theirs["logs"]:
            left_out[task] = "asked differently (other worked examples, data or version)"
            continue
        scores_a, scores_b = (
            item_scores(path.parent / result["folder"], found)
            for path, result, found in ((a, first, ours), (b, second, theirs))
        )
        if not (shared := [key for key in scores_a if key in scores_b]):
            left_out[task] = "no question in common"
            continue
        tests[task] = compare([scores_a[key] for key in shared], [scores_b[key] for key in shared])
    if not tests:
        raise UserError(
            f"{a} and {b}: nothing to compare; " + "; ".join(f"{k}: {v}" for k, v in left_out.items())
        )
    return Comparison(first["model"]["name"], second["model"]["name"], tests, left_out)


def item_scores(folder: Path, task: dict[str, Any]) -> dict[tuple[str, int], float]:
    """Return what each question of a task scored in its metric, by log and question.

    Raises:
        UserError: a log is missing.
    """
    scores = {}
    for log in task["logs"]:
        if not (folder / log).is_file():
            raise UserError(f"{folder / log}: the answers are gone; keep a result's folder beside it")
        for entry in read_sealed(folder / log):
            if isinstance(value := entry["scores"].get(task["metric"]), int | float):
                scores[log, entry["id"]] = float(value)
    return scores
