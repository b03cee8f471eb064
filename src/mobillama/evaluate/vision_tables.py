"""Results on images as tables to read: scores, their parts, and the published rows beside them."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from .tables import plain_table, result_table
from .vision_tasks import BENCHMARKS, PUBLISHED


def tables(result: dict[str, Any]) -> RenderableType:
    """Return a model's scores on images, each by part, and beside what is published."""
    shown: list[RenderableType] = [result_table(result)]
    shown += [parts_table(name, task) for name, task in result["tasks"].items() if len(task["parts"]) > 1]
    if any(name in PUBLISHED[row] for name in result["tasks"] for row in PUBLISHED):
        shown.append(published_table(result))
    return Group(*shown)


def parts_table(name: str, task: dict[str, Any]) -> Table:
    """Return a benchmark's figures by part: shares in percent, and what its summary adds."""
    metrics = [key for key in next(iter(task["parts"].values())) if key != "questions"]
    table = plain_table(name, "part", *(f"{metric} %" for metric in metrics), "questions")
    for part, found in task["parts"].items():
        table.add_row(part, *(f"{100 * found[metric]:.2f}" for metric in metrics), f"{found['questions']:,}")
    table.add_section()
    for metric, found in task["metrics"].items():
        if metric not in metrics:
            table.add_row(metric, f"{found['value']:.2f}", *("" for _ in metrics))
    return table


def published_table(result: dict[str, Any]) -> Table:
    """Return a model's row over those that are published: MME in points, the others in percent."""
    names = list(dict.fromkeys(name for row in PUBLISHED.values() for name in row))
    table = plain_table("Beside published models", "model", *(BENCHMARKS[name].title for name in names))
    ours = {
        name: task["value"] * (1 if name == "mme" else 100)
        for name, task in result["tasks"].items()
        if name in names
    }
    for model, scores in {result["model"]["name"]: ours, **PUBLISHED}.items():
        table.add_row(model, *(f"{scores[name]:.1f}" if name in scores else "" for name in names))
    return table
