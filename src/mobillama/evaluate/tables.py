"""Results as tables to read: beside the paper's, over a run's checkpoints, of a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from mobillama.report.contamination import Contamination

from . import paper
from .comparison import Comparison

SIGNIFICANT = 0.05


def plain_table(title: str, *columns: str) -> Table:
    """Return a table with one column of words and the others of numbers."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def result_table(
    result: dict[str, Any], contamination: Mapping[str, Contamination] | None = None
) -> RenderableType:
    """Return a model's scores, task by task.

    Arguments:
        contamination: by task what the training data hold of its items, where somebody looked.
    """
    columns = ["task", "metric", "score", "± s.e.", "95 % interval", "chance", "questions", "shots"]
    contamination = contamination or {}
    if contamination:
        columns.append("items in the\ntraining data")
    table = plain_table(result["model"]["name"], *columns)
    for name, task in result["tasks"].items():
        benchmark = paper.BY_TASK.get(name)
        scale = 100 if task["interval"] and 0 <= task["value"] <= 1 else 1
        low_high = [f"{scale * bound:.2f}" for bound in task["interval"] or ()]
        error = task["standard_error"]
        table.add_row(
            benchmark.title if benchmark else name,
            task["metric"],
            f"{scale * task['value']:.2f}",
            f"{scale * error:.2f}" if isinstance(error, float) else "",
            " to ".join(low_high),
            f"{benchmark.chance:.1f}" if benchmark and benchmark.chance else "",
            f"{task['questions']:,}" + ("" if task["questions"] == task["of"] else f" of {task['of']:,}"),
            str(task["num_fewshot"]),
            *([str(contamination.get(name, ""))] if contamination else []),
        )
    return Group(table, *notes(result))


def notes(result: dict[str, Any]) -> list[str]:
    """Return what a reader of the scores must know."""
    lines = []
    for name, task in result["tasks"].items():
        if task.get("note"):
            lines.append(f"{name}: {task['note']}")
        if task["cut_questions"]:
            lines.append(
                f"{name}: {task['cut_questions']:,} of {task['questions']:,} questions exceeded the context "
                f"of {result['settings']['max_length']:,} tokens and lost their beginning"
            )
    return lines


def paper_table(results: Sequence[dict[str, Any]]) -> RenderableType:
    """Return models' scores (%) as further rows of the paper's table, with both averages."""
    titles = (f"{benchmark.title}\n{benchmark.num_fewshot}-shot" for benchmark in paper.BENCHMARKS)
    table = plain_table(
        "Beside the paper (arXiv 2402.16840), %", "model", *titles, "mean of\nnine", "mean of\neight"
    )
    measured = {
        result["model"]["name"]: {
            name: 100 * task["value"] for name, task in result["tasks"].items() if name in paper.BY_TASK
        }
        for result in results
    }
    chance = {
        name: benchmark.chance for name, benchmark in paper.BY_TASK.items() if benchmark.chance is not None
    }
    for rows in (measured, {"guessing": chance}, paper.published_rows()):
        for model, scores in rows.items():
            averages = [paper.average(scores, crows_pairs=crows_pairs) for crows_pairs in (True, False)]
            cells = [*(scores.get(name) for name in paper.BY_TASK), *averages]
            table.add_row(model, *("" if cell is None else f"{cell:.2f}" for cell in cells))
        table.add_section()
    return Group(table, paper.WITHOUT_CROWS)


def trajectory_table(results: Sequence[dict[str, Any]]) -> Table:
    """Return the scores (%) of a run's checkpoints, one a row."""
    names = list(results[0]["tasks"])
    table = plain_table("Over the checkpoints, %", "step", *names)
    for result in results:
        scores = (f"{100 * result['tasks'][name]['value']:.2f}" for name in names)
        table.add_row(str(result["model"].get("step", "")), *scores)
    return table


def heldout_table(result: dict[str, Any]) -> Table:
    """Return bits per byte by subset."""
    table = plain_table(result["model"]["name"], "held-out text", "bits per byte", "documents", "bytes")
    for subset, found in result["subsets"].items():
        table.add_row(
            subset, f"{found['bits_per_byte']:.4f}", f"{found['documents']:,}", f"{found['bytes']:,}"
        )
    return table


def comparison_table(comparison: Comparison) -> RenderableType:
    """Return the paired tests of two models."""
    columns = ("task", "questions", "A - B", "95 % interval", "only A right", "only B right", "p", "")
    table = plain_table(f"A: {comparison.a}   B: {comparison.b}", *columns)
    for task, test in comparison.tests.items():
        better = "A" if test.difference > 0 else "B"
        table.add_row(
            task,
            f"{test.questions:,}",
            f"{100 * test.difference:+.2f}",
            f"{100 * test.interval.low:+.2f} to {100 * test.interval.high:+.2f}",
            *("" if count is None else f"{count:,}" for count in (test.only_a, test.only_b)),
            f"{test.p_value:.3g}",
            f"{better} scores higher" if test.p_value < SIGNIFICANT else "no difference shown",
        )
    lines = [f"{task}: not compared, {why}" for task, why in comparison.left_out.items()]
    p_values = (
        "p: McNemar's exact test where answers are right or wrong, else the bootstrap; one test a task, "
        "not corrected for their number."
    )
    return Group(table, p_values, *lines)
