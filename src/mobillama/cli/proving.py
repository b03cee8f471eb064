"""Verbs that prove: ``inspect``, ``verify``, ``report``, ``card``, ``publish``, ``checkpoint``."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

RunPath = Annotated[Path, typer.Argument(help="A run directory, as mobillama train wrote it.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command()(inspect)
    app.command()(verify)
    app.command()(report)


def inspect(
    path: Annotated[Path, typer.Argument(help="Anything: a run, checkpoint, corpus, .gguf, model folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Do not hash every byte.")] = False,
) -> None:
    """Say what something is, what made it, from what, whether it is intact, and how to make it again."""
    from mobillama.lineage import inspect as inspecting

    description = inspecting.describe(path, hashes=not fast)
    typer.echo(inspecting.as_json(description) if as_json else inspecting.as_text(description))


def verify(
    path: Annotated[Path, typer.Argument(help="An artifact, a run, or a folder that holds several.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recompute every hash, chain and parent; exit with status 1 if anything is off."""
    from mobillama.core.progress import rate_text
    from mobillama.lineage.verify import check

    started_at = time.monotonic()
    result = check(path)
    if as_json:
        problems = [{"path": str(problem.path), "what": problem.what} for problem in result.problems]
        found = {"problems": problems, "notes": result.notes, "artifacts": len(result.artifacts)}
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        for problem in result.problems:
            typer.echo(f"! {problem}")
        for note in result.notes:
            typer.echo(f"note: {note}")
        megabytes = result.size_bytes / 1e6
        state = f"{len(result.problems)} problems" if result.problems else "intact"
        rate = rate_text(megabytes, started_at, "MB")
        typer.echo(f"{path}: {state}; {len(result.artifacts)} artifacts, {megabytes:,.1f} MB ({rate})")
    raise typer.Exit(1 if result.problems else 0)


def report(
    runs: Annotated[list[Path], typer.Argument(help="A run, or several to compare.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file to write.")] = None,
) -> None:
    """Write one HTML page of a run, or of several laid over each other; it works offline."""
    from mobillama import report as reporting

    typer.echo(reporting.write(runs, out))
