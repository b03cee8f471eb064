"""A traced text for a terminal, and as one HTML page that loads nothing else."""

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mobillama.report.page import template

from .find import Sighting, sighting_json, sightings
from .seen import History
from .trace import Span, Trace

STEPS_SHOWN = 12
COLOURS = ("yellow", "cyan", "magenta", "green", "blue", "red")


@dataclass(frozen=True)
class Traced:
    """A trace whose occurrences are resolved: span number n has the sightings ``found[n]``."""

    trace: Trace
    found: list[list[Sighting]]


def resolve(history: History, trace: Trace) -> Traced:
    """Return a trace with the documents, surroundings and steps of its occurrences.

    Raises:
        UserError: a document was changed after preparation.
    """

    def size_bytes(span: Span) -> int:
        return len(trace.text[span.start : span.stop].encode())

    return Traced(trace, [sightings(history, span.occurrences, size_bytes(span)) for span in trace.spans])


def painted(trace: Trace) -> list[tuple[str, int | None]]:
    """Return the text in pieces, each with the number of the longest span that covers it, or None."""
    owner: list[int | None] = [None] * len(trace.text)
    for number, span in reversed(list(enumerate(trace.spans))):
        owner[span.start : span.stop] = [number] * (span.stop - span.start)
    pieces = groupby(zip(trace.text, owner, strict=True), key=itemgetter(1))
    return [("".join(character for character, _ in piece), number) for number, piece in pieces]


def as_json(traced: Traced) -> dict[str, Any]:
    """Return a trace as plain values (docs/transparency.md)."""
    trace = traced.trace
    return {
        "text": trace.text,
        "covered": trace.covered,
        "spans_found": trace.found,
        "spans": [
            {
                "start": span.start,
                "stop": span.stop,
                "text": trace.text[span.start : span.stop],
                "count": span.count,
                "found": [sighting_json(sighting) for sighting in found],
            }
            for span, found in zip(trace.spans, traced.found, strict=True)
        ],
    }


def as_terminal(traced: Traced) -> RenderableType:
    """Return a trace to print: the text with its spans in colour, then each span with its documents."""
    trace, lines = traced.trace, []
    text = Text()
    for piece, number in painted(trace):
        text.append(piece, style=f"reverse {colour(number)}" if number is not None else "")
        if number is not None and piece.strip():
            text.append(f"[{number + 1}]", style=f"bold {colour(number)}")
    lines.append(text)
    lines.append(Text(f"\n{headline(trace)}", style="dim"))
    for number, (span, found) in enumerate(zip(trace.spans, traced.found, strict=True)):
        title = Text(f"\n[{number + 1}] ", style=f"bold {colour(number)}")
        title.append(one_line(trace.text[span.start : span.stop]), style="bold")
        title.append(f"  {times(span.count)}", style="dim")
        lines.append(title)
        lines += [sighting_line(sighting) for sighting in found]
    return Group(*lines)


def sighting_line(sighting: Sighting) -> Text:
    """Return a document, its origin and its steps as one line of text."""
    document = sighting.document
    line = Text(f"    {document.subset}: {document.id}")
    if document.source != document.id:
        line.append(f"  {document.source}", style="cyan")
    line.append(f"  {document.license}  {steps_text(sighting)}", style="dim")
    return line


def as_html(traced: Traced, title: str) -> str:
    """Return a trace as a page of its own."""
    return template("trace.html.j2", Path(__file__).parent / "templates").render(
        title=title,
        trace=traced.trace,
        pieces=painted(traced.trace),
        spans=list(zip(traced.trace.spans, traced.found, strict=True)),
        headline=headline(traced.trace),
        steps_text=steps_text,
        times=times,
    )


def headline(trace: Trace) -> str:
    """Return in one sentence how much of the text stands in the training data."""
    if not trace.spans:
        return "No span of this text stands in the training data."
    share = trace.covered / len(trace.text)
    more = f"; the {len(trace.spans)} longest are shown" if trace.found > len(trace.spans) else ""
    spans = "1 span" if trace.found == 1 else f"{trace.found} spans"
    return f"{share:.0%} of this text stands verbatim in the training data, in {spans}{more}."


def times(count: int) -> str:
    """Return a count of occurrences in words."""
    return "once" if count == 1 else f"{count:,} times"


def steps_text(sighting: Sighting) -> str:
    """Return the steps of a sighting in words."""
    steps = sighting.steps
    if sighting.document.split != "train":
        return "held out: never trained on"
    if not steps:
        return "not seen so far"
    shown = ", ".join(f"{step:,}" for step in steps[:STEPS_SHOWN])
    more = f" and {len(steps) - STEPS_SHOWN:,} more" if len(steps) > STEPS_SHOWN else ""
    return f"seen at step{'s' if len(steps) > 1 else ''} {shown}{more}"


def colour(number: int) -> str:
    """Return the terminal colour of a span."""
    return COLOURS[number % len(COLOURS)]


def one_line(text: str, limit: int = 100) -> str:
    """Return a text on one line, its middle left out where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit // 2]} … {flat[-limit // 2 :]}"
