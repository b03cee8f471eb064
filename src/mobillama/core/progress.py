"""Progress with rate and time left: a live bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0


class Advance(Protocol):
    """Tell how far the work is, in its unit, with a short note to show beside it."""

    def __call__(self, done: float, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: float, unit: str) -> Generator[Advance]:
    """Show the progress of one piece of work on standard error.

    Arguments:
        title: what is being done.
        total: the amount of work, in ``unit``.
        unit: what is counted, in the plural ("tokens", "documents").
    """
    console = Console(stderr=True)
    started_at = time.monotonic()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, rate="", note="")

            def advance_bar(done: float, note: str = "") -> None:
                bar.update(task, completed=done, rate=rate_text(done, started_at, unit), note=note)

            yield advance_bar
        return

    last_shown_at = started_at - PLAIN_INTERVAL_S

    def advance_lines(done: float, note: str = "") -> None:
        nonlocal last_shown_at
        moment = time.monotonic()
        if done < total and moment - last_shown_at < PLAIN_INTERVAL_S:
            return
        last_shown_at = moment
        elapsed_s = moment - started_at
        left_s = elapsed_s * (total - done) / done if done else float("nan")
        left = f"{left_s:.0f} s left" if done else "starting"
        rate = rate_text(done, started_at, unit)
        line = f"{title}: {done:,.0f} of {total:,.0f} {unit}, {rate}, {left} {note}"
        console.print(line.rstrip(), highlight=False, soft_wrap=True)

    yield advance_lines


def rate_text(done: float, started_at: float, unit: str) -> str:
    """Return the mean rate since ``started_at`` as text."""
    elapsed_s = max(time.monotonic() - started_at, 1e-9)
    return f"{done / elapsed_s:,.0f} {unit}/s"
