"""Verbs that ask what a run saw: ``seen``, ``find``, ``trace``, ``replay``."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama.core.errors import UserError, require_extra

if TYPE_CHECKING:
    from mobillama.lineage.index import Index

RunPath = Annotated[Path, typer.Argument(help="A run directory, as mobillama train wrote it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

ANSWER_TOKENS = 200
ANSWER_TEMPERATURE = 0.7


def register(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command()(seen)
    app.command()(find)
    app.command()(trace)
    app.command()(replay)


def seen(
    run: RunPath,
    step: Annotated[int, typer.Option(help="The optimizer step, from 1.")],
    rank: Annotated[str, typer.Option(metavar="R/W", help="Only what rank R of W took.")] = "0/1",
    as_json: Json = False,
) -> None:
    """Show the exact samples of a step: documents, sources, licences, token spans and text."""
    require_extra("train", "pyarrow")
    from mobillama.lineage import kinds, seen_images
    from mobillama.lineage import seen as seeing

    history = kinds.history_of(run)
    number, world = parse_rank(rank)
    if isinstance(history, seen_images.ImageHistory):
        show_images(history, step, seen_images.seen(history, step, rank=number, world=world), as_json)
        return
    samples = seeing.seen(history, step, rank=number, world=world)
    if as_json:
        typer.echo(json.dumps(seeing.as_json(history, step, samples), ensure_ascii=False))
        return
    for sample in samples:
        typer.echo(f"sample {sample.index:,}: {sample.subset} {sample.sample:,}")
        for piece in sample.pieces:
            document = piece.span.document
            typer.echo(
                f"  {document.id}  {document.source}  {document.license}  "
                f"tokens {piece.span.first:,}-{piece.span.stop - 1:,} of {document.length:,}"
            )
            typer.echo("".join(f"    | {line}\n" for line in piece.text.splitlines()), nl=False)
    state = "" if step <= history.steps_done else f" (still to come: {history.steps_done:,} are done)"
    typer.echo(
        f"step {step:,}{state}: {len(samples):,} samples of {history.recipe.data.sequence_length:,} tokens"
    )


def show_images(history: Any, step: int, samples: list[tuple[int, Any]], as_json: bool) -> None:
    """Print the conversations of a step with their images."""
    from mobillama.lineage import seen_images

    if as_json:
        told = [seen_images.as_json(example, index=index) for index, example in samples]
        done = step <= history.steps_done
        typer.echo(json.dumps({"run": str(history.run), "step": step, "done": done, "samples": told}))
        return
    for index, example in samples:
        typer.echo("\n".join([f"sample {index:,}", *(f"  {line}" for line in seen_images.lines(example))]))
    typer.echo(f"step {step:,}: {len(samples):,} conversations")


def show_image_sightings(found: list[Any], steps_done: int, limit: int, as_json: bool) -> None:
    """Print conversations that were looked for, with the steps that took them."""
    from mobillama.lineage import seen_images

    if as_json:
        first = [seen_images.as_json(one.example, steps=one.steps) for one in found[:limit]]
        typer.echo(json.dumps({"count": len(found), "found": first}))
        return
    for one in found[:limit]:
        steps = ", ".join(map(str, one.steps)) or "none"
        typer.echo("\n".join([*seen_images.lines(one.example), f"  steps {steps}"]))
    more = f"; {limit} shown" if len(found) > limit else ""
    typer.echo(f"found {len(found):,} conversations{more}, of {steps_done:,} steps so far")


def parse_rank(rank: str) -> tuple[int, int]:
    """Return rank and world size of ``R/W``."""
    number, slash, world = rank.partition("/")
    if not (slash and number.isdigit() and world.isdigit()):
        raise UserError(f"--rank {rank}: write it as R/W, such as 0/8")
    return int(number), int(world)


def find(
    run: RunPath,
    doc: Annotated[
        str | None, typer.Option(help="A document's id, or an image: name, file or SHA-256.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="A document's source, such as its URL.")] = None,
    text: Annotated[str | None, typer.Option(help="A passage, letter for letter.")] = None,
    limit: Annotated[int, typer.Option(help="Show so many; all are counted.")] = 20,
    as_json: Json = False,
) -> None:
    """Show at which steps so far a document or a passage was seen."""
    require_extra("train", "pyarrow")
    from mobillama.lineage import find as finding
    from mobillama.lineage import index, kinds, seen_images, trace_page

    given = [value for value in (doc, source, text) if value is not None]
    if len(given) != 1:
        raise UserError("give one of --doc, --source and --text")
    history = kinds.history_of(run)
    if isinstance(history, seen_images.ImageHistory):
        look = seen_images.find_image if text is None else seen_images.find_words
        show_image_sightings(look(history, given[0]), history.steps_done, limit, as_json)
        return
    if text is None:
        found = finding.find_document(history, given[0], limit)
    else:
        found = finding.find_text(history, index.open_or_build(history.corpus), text, limit)
    if as_json:
        typer.echo(json.dumps(finding.as_json(found), ensure_ascii=False))
        return
    for sighting in found.first:
        document = sighting.document
        typer.echo(
            f"{document.subset}: {document.id}  {document.source}  {document.license}  "
            f"{trace_page.steps_text(sighting)}"
        )
        if sighting.passage:
            passage = f"{sighting.before}[{sighting.passage}]{sighting.after}"
            typer.echo(f"    … {' '.join(passage.split())} …")
    more = f"; {len(found.first)} shown" if found.count > len(found.first) else ""
    typer.echo(f"found {trace_page.times(found.count)}{more}, of {history.steps_done:,} steps so far")


def trace(
    run: RunPath,
    text: Annotated[str | None, typer.Option(help="The text to trace.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file that holds it.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Let the run's last checkpoint answer, and trace that.")
    ] = None,
    contamination: Annotated[
        Path | None,
        typer.Option(metavar="BENCHMARK", help="Look for a benchmark's items: its file or folder."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page as well.")] = None,
    min_tokens: Annotated[int, typer.Option(help="Leave out shorter matches.")] = 8,
    limit: Annotated[int, typer.Option(help="Show so many spans, the longest.")] = 10,
    as_json: Json = False,
) -> None:
    """Show the longest spans of a text that stand verbatim in the training data, with their documents."""
    require_extra("train", "pyarrow", "pydivsufsort")
    from rich.console import Console

    from mobillama.lineage import index, seen, trace_page
    from mobillama.lineage.trace import trace as trace_text

    if sum(value is not None for value in (text, file, prompt, contamination)) != 1:
        raise UserError("give one of --text, --file, --prompt and --contamination")
    history = seen.History(run)
    opened = index.open_or_build(history.corpus)
    if contamination is not None:
        report_contamination(run, opened, contamination, as_json)
        return
    if file is not None:
        text = file.read_text(encoding="utf-8")
    elif prompt is not None:
        text = answer(run, prompt)
    assert text is not None
    found = trace_text(opened, text, min_tokens=min_tokens, limit=limit)
    traced = trace_page.resolve(history, found)
    if html is not None:
        from mobillama.core.atomic import write_text

        write_text(html, trace_page.as_html(traced, prompt or (file.name if file else run.resolve().name)))
    if as_json:
        typer.echo(json.dumps(trace_page.as_json(traced), ensure_ascii=False))
    else:
        Console(highlight=False).print(trace_page.as_terminal(traced))
        if html is not None:
            typer.echo(f"page: {html}")


def answer(run: Path, prompt: str) -> str:
    """Return what the last checkpoint of a run writes after ``prompt``; the same each time."""
    require_extra("train", "torch", "transformers")
    from mobillama.engine import GenerationOptions, LanguageModel, Sampling, read_tokenizer
    from mobillama.model.session import TorchSession
    from mobillama.train import last_checkpoint

    checkpoint = last_checkpoint(run)
    tokenizer = read_tokenizer(checkpoint)
    model = LanguageModel(checkpoint.name, tokenizer, lambda: TorchSession.load(checkpoint))
    options = GenerationOptions(sampling=Sampling(temperature=ANSWER_TEMPERATURE, seed=0))
    return model.complete(prompt, max_tokens=ANSWER_TOKENS, options=options)


def report_contamination(run: Path, opened: "Index", benchmark: Path, as_json: bool) -> None:
    """Print how many items of a benchmark stand in the training data, and which; keep it for the card."""
    from mobillama.lineage import contamination, results
    from mobillama.lineage.contamination_items import read_items

    matches = list(contamination.contamination(opened, read_items(benchmark)))
    rows = contamination.summary(matches)
    place = benchmark.resolve()
    # A file's folder says which benchmark it is of: `race/dev.jsonl` of `race`.
    folder = place.parent.name if place.is_file() else place.name
    name = f"{folder}-{place.name}" if place.is_file() else folder
    results.write_result(
        run, "contamination", name, corpus=opened.corpus.identity, benchmark=folder, files=rows
    )
    if as_json:
        items = [contamination.as_json(opened, match) for match in matches]
        typer.echo(json.dumps({"files": rows, "items": items}, ensure_ascii=False))
        return
    for match in matches:
        if match.contaminated:
            found = contamination.as_json(opened, match)
            typer.echo(
                f"{match.file}:{match.number}: {match.ngrams_seen} of {match.ngrams} 13-grams, longest "
                f"{found['longest_words']} words, in {', '.join(found['documents'])}"
            )
    shown = [row for row in rows if row["contaminated"]]
    whole = {"file": f"{folder}, {len(rows):,} files", "longest_words": max(r["longest_words"] for r in rows)}
    whole |= {key: sum(row[key] for row in rows) for key in ("contaminated", "items")}
    for row in (*shown, whole):
        share = row["contaminated"] / row["items"]
        typer.echo(
            f"{row['file']}: {row['contaminated']:,} of {row['items']:,} items share a 13-gram with the "
            f"training data ({share:.2%}); longest match {row['longest_words']} words"
        )


def replay(
    run: RunPath,
    from_step: Annotated[int | None, typer.Option("--from", help="The checkpoint to start from.")] = None,
    to_step: Annotated[int | None, typer.Option("--to", help="The checkpoint to arrive at.")] = None,
    spot_check: Annotated[
        int | None, typer.Option(metavar="K", help="Repeat K random short intervals.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Repeat the steps between two checkpoints, compare bit for bit, and note the outcome in the ledger."""
    require_extra("train", "torch", "transformers")
    from mobillama.lineage import replay as replaying

    if spot_check is not None and from_step is None and to_step is None:
        outcomes = replaying.spot_check(run, spot_check)
    elif spot_check is None and from_step is not None and to_step is not None:
        outcomes = [replaying.replay(run, from_step, to_step)]
    else:
        raise UserError("give --from and --to (0 is the beginning of the run), or --spot-check")
    if os.environ.get("RANK", "0") == "0":
        facts = [outcome.facts() for outcome in outcomes]
        told = [json.dumps(facts, ensure_ascii=False)] if as_json else [o.sentence() for o in outcomes]
        typer.echo("\n".join(told))
    raise typer.Exit(0 if all(outcome.equal for outcome in outcomes) else 1)
