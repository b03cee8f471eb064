"""Verbs that measure and carry over: ``evaluate``, ``compare``, ``convert``."""

import json
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama.core.errors import UserError, require_extra

PAPER = "paper"
WIDE = 160


def register(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command()(evaluate)
    app.command()(compare)
    app.command()(convert)


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint, run, model folder, .gguf or Hub name.")],
    tasks: Annotated[
        str, typer.Option(help="Names with commas: paper, heldout, vision, or any task of lm-eval.")
    ] = PAPER,
    data_dir: Annotated[
        Path | None, typer.Option(help="Benchmarks as files; the paper's come from the Hub if not given.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Whose held-out text; the run's own if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where results and answers go.")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Worked examples, instead of the paper's.")] = None,
    all_checkpoints: Annotated[bool, typer.Option(help="Every checkpoint of a run.")] = False,
    against: Annotated[str | None, typer.Option(help="paper: beside its published rows.")] = None,
    images: Annotated[
        str, typer.Option(help="How tasks about images show them; with commas: right, shuffled, none.")
    ] = "right",
    gallery: Annotated[
        int, typer.Option(help="Show so many answers about images on a page; 0 writes none.")
    ] = 24,
    open_gallery: Annotated[bool, typer.Option("--open", help="Show that page in a browser.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, ...; that of the files if not given.")
    ] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results there.")] = None,
) -> None:
    """Measure a model: the paper's nine benchmarks, held-out text, or any lm-eval task."""
    if against not in (None, PAPER):
        raise UserError(f"--against {against}: only paper is known")
    require_extra("eval", "lm_eval", "torch", "transformers")
    from rich.console import Console

    from mobillama.core import atomic
    from mobillama.evaluate import tables, verb, vision_tables
    from mobillama.report.contamination import contamination_of

    # The paper's table has twelve columns; a pipe or a file can hold them.
    console, results = Console(width=None if sys.stdout.isatty() else WIDE), []
    request = verb.Request(
        model, listed(tasks), data_dir, corpus, out, limit, num_fewshot, all_checkpoints, device, dtype,
        verb.sights(listed(images)), gallery,
    )  # fmt: skip
    place = out or verb.default_out(model)
    for result in verb.run(request):
        results.append(result)
        if result["kind"] == "heldout":
            console.print(tables.heldout_table(result))
        elif result["kind"] == "sight":
            console.print(vision_tables.sight_table(result))
        elif "images" in result["settings"]:
            console.print(vision_tables.tables(result))
        else:
            console.print(tables.result_table(result, contamination_of(place, result["tasks"])))
    answered = [result for result in results if "averages" in result]
    if all_checkpoints and answered:
        console.print(tables.trajectory_table(answered))
    if against and answered:
        console.print(tables.paper_table(answered[-1:]))
    if json_file is not None:
        whole = results[0] if len(results) == 1 else results
        atomic.write_text(json_file, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    for result in results:
        pages = [f"gallery: {place / task['gallery']}" for task in galleries(result)]
        for line in (*pages, f"result: {place / result['file']}"):
            console.print(line, soft_wrap=True, highlight=False)
        for task in galleries(result) if open_gallery else ():
            webbrowser.open((place / task["gallery"]).resolve().as_uri())


def galleries(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks of a result whose answers are shown on a page."""
    return [task for task in result.get("tasks", {}).values() if "gallery" in task]


def listed(names: str) -> list[str]:
    """Return names that are written with commas between them."""
    return [name.strip() for name in names.split(",") if name.strip()]


def compare(
    a: Annotated[Path, typer.Argument(help="A result of mobillama evaluate (JSON).")],
    b: Annotated[Path, typer.Argument(help="Another, on the same tasks.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether two models differ: paired by question, with bootstrap interval and McNemar's test."""
    from dataclasses import asdict

    from rich.console import Console

    from mobillama.evaluate import comparison, tables

    found = comparison.compare_results(a, b)
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else WIDE).print(tables.comparison_table(found))


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model folder, a run or a Hub name.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    average: Annotated[
        bool, typer.Option(help="Where copies of a released shared FFN differ, take their mean.")
    ] = False,
    ffn_sharing: Annotated[
        str | None, typer.Option(help="Make layers share: all, pairs, groups:k, middle, ...")
    ] = None,
    start: Annotated[
        str, typer.Option(help="A shared FFN starts as the mean, nearest or least-squares.")
    ] = "mean",
    delta_rank: Annotated[int, typer.Option(help="Rank of each layer's own addition.")] = 0,
    calibrate: Annotated[Path | None, typer.Option(metavar="TEXT", help="Text for least-squares.")] = None,
    stock_llama: Annotated[bool, typer.Option(help="Write Llama's layout, the FFN in every layer.")] = False,
    onnx: Annotated[
        bool, typer.Option(help="Write an ONNX graph of a model of ours, with its cache.")
    ] = False,
) -> None:
    """Turn released checkpoints and Llamas into our layout, each shared FFN once; or ours into others."""
    require_extra("train", "torch", "transformers")
    if onnx:
        if average or ffn_sharing or stock_llama:
            raise UserError("--onnx goes alone: convert into our layout first, then that folder with --onnx")
        from mobillama.export.onnx import export_onnx

        typer.echo(export_onnx(source, destination))
        return
    from mobillama.model import convert as converting

    sharing = None
    if ffn_sharing is not None:
        sharing = converting.Sharing(ffn_sharing, start, delta_rank, calibrate)  # pyright: ignore
    typer.echo(
        converting.convert(source, destination, average=average, sharing=sharing, stock_llama=stock_llama)
    )
