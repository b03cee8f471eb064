"""Verbs that prove: ``inspect``, ``verify``, ``report``, ``card``, ``publish``, ``checkpoint``."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

checkpoints = typer.Typer(
    help="Keep hundreds of checkpoints: pack them without loss, and take them out again.",
    no_args_is_help=True,
)
RunPath = Annotated[Path, typer.Argument(help="A run directory, as mobillama train wrote it.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command()(inspect)
    app.command()(verify)
    app.command()(report)
    app.command()(card)
    app.command()(publish)
    app.add_typer(checkpoints, name="checkpoint")


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


def card(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="The folder; by default cards in the run.")] = None,
    license: Annotated[str | None, typer.Option(help="The weights' licence, such as apache-2.0.")] = None,
) -> None:
    """Write the model card, the data card and the transparency table from the run's records."""
    from mobillama.lineage import cards

    for path in cards.write(run, out, license=license):
        typer.echo(path)


def publish(
    run: RunPath,
    repo: Annotated[str, typer.Option(help="owner/name on the Hugging Face Hub.")],
    dry_run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write it to this folder instead of the Hub.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="The weights' licence, such as apache-2.0.")] = None,
    read_back: Annotated[
        bool, typer.Option(help="Download what was sent and hash it, beside asking the Hub.")
    ] = True,
) -> None:
    """Push each checkpoint as a revision, with cards, records and manifests, and check what is served."""
    from mobillama.core.errors import require_extra
    from mobillama.lineage import publish as publishing

    if dry_run:
        done = publishing.publish_to_folder(run, repo, dry_run, license=license)
        typer.echo(f"{dry_run}: {len(done.sent)} revisions, as {repo} would serve them")
        return
    require_extra("train", "huggingface_hub")
    done = publishing.publish(run, repo, license=license, read_back=read_back)
    typer.echo(f"{repo}: {len(done.sent)} revisions sent and checked, {len(done.present)} were there already")


@checkpoints.command()
def pack(
    run: RunPath,
    remove: Annotated[
        bool, typer.Option("--remove", help="Then remove the folders that export back equal.")
    ] = False,
) -> None:
    """Store each distinct tensor once, compressed without loss against the checkpoint before."""
    from mobillama.core.errors import require_extra

    require_extra("train", "zstandard")
    from mobillama.lineage import store

    done = store.pack(run, remove=remove)
    share = f", {done.stored_bytes / done.size_bytes:.1%} of it" if done.size_bytes else ""
    sizes = f"{done.size_bytes / 1e6:,.1f} MB became {done.stored_bytes / 1e6:,.1f} MB{share}"
    typer.echo(f"{run / store.PACKED}: {len(done.steps)} checkpoints packed, {sizes}")


@checkpoints.command()
def export(
    run: RunPath,
    step: Annotated[int, typer.Argument(help="The step of a packed checkpoint.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
) -> None:
    """Write a packed checkpoint out as the model folder it was, bit for bit; plain transformers opens it."""
    from mobillama.core.errors import require_extra

    require_extra("train", "zstandard")
    from mobillama.lineage import store

    typer.echo(store.Store(run / store.PACKED).export(f"step-{step:08d}", out))
