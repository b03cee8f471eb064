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


def sight_table(result: dict[str, Any]) -> Table:
    """Return what held-out answers owe to sight."""
    group, answers = result["settings"]["group"], f"{result['answers']:,} answers"
    table = plain_table(f"{result['model']['name']}, {answers}", "held-out answers", "value", "95 % interval")
    table.add_row("nats per token, right image", f"{result['nats_right']:.4f}", "")
    table.add_row("nats per token, wrong images", f"{result['nats_wrong']:.4f}", "")
    gain, retrieval = result["gain"], result["retrieval"]
    table.add_row("gained by the right image", f"{gain['value']:.4f}", interval(gain, 1, 4))
    found = f"right answer of {group} found, % (chance {100 * retrieval['chance']:.0f})"
    table.add_row(found, f"{100 * retrieval['value']:.1f}", interval(retrieval, 100, 1))
    return table


def interval(figure: dict[str, Any], scale: float, digits: int) -> str:
    """Return a figure's interval in words."""
    return " to ".join(f"{scale * bound:.{digits}f}" for bound in figure["interval"])
