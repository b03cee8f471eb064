"""``mobillama chat``: a conversation in the terminal."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from mobillama import engine
from mobillama.core.errors import UserError

from .speaking import FINISH_NOTES, ctrl_c_stops_the_answer, shown

PROMPT = "> "
HELP = "/new begins again, /exit or Ctrl-D ends, Ctrl-C stops an answer"
SHOW = "/image"
"""Followed by a path: shows an image with the next question."""


def converse(
    model: engine.LanguageModel,
    options: engine.GenerationOptions,
    system: str | None,
    images: Sequence[Path] = (),
) -> None:
    """Read questions and write answers until the input ends; ``images`` go with the first question.

    Raises:
        UserError: one of ``images`` cannot be shown to this model.
    """
    console = Console(highlight=False)
    context = model.cache.session.context_length
    console.print(f"[bold]{model.name}[/bold]  [dim]{context} tokens of context. {HELP}[/dim]")
    if model.chat_template is None:
        console.print(
            "[dim]This model brings no chat template: it continues a plain User:/Assistant: dialogue.[/dim]"
        )
    with suppress(ImportError):  # Windows has none; input() works without
        import readline  # noqa: F401 - gives input() editing and a history
    if model.image_token is not None:
        console.print(f"[dim]{SHOW} PATH shows it an image with your next question.[/dim]")
    conversation = engine.Conversation.begin(model, options, system=system)
    shown_next = [model.look(image) for image in images]
    while (question := ask(console)) is not None:
        command, _, path = question.partition(" ")
        if question == "/new":
            conversation.forget()
            shown_next = []
            console.print("[dim]A new conversation.[/dim]")
        elif command == SHOW and path:
            try:
                shown_next.append(model.look(Path(path.strip()).expanduser()))
            except UserError as error:
                console.print(f"[red]{escape(str(error))}[/red]")
        elif question in ("/exit", "/quit"):
            return
        elif question.startswith("/"):
            console.print(f"[dim]{HELP}[/dim]")
        elif question:
            answer(console, conversation, question, shown_next)
            shown_next = []


def ask(console: Console) -> str | None:
    """Return the next line the user types, None when the input ends; Ctrl-C empties the line."""
    console.print()
    try:
        # \001 and \002 tell readline which characters of the prompt take no room.
        line = input(f"\001\033[1;36m\002{PROMPT}\001\033[0m\002" if console.is_terminal else "")
    except EOFError:
        if console.is_terminal:
            console.print()
        return None
    except KeyboardInterrupt:
        console.print(f"  [dim]{HELP}[/dim]")
        return ""
    return line.strip()


def answer(
    console: Console, conversation: engine.Conversation, question: str, images: Sequence[Any] = ()
) -> None:
    """Stream one answer, then a line that says how fast it was and why it ended if not by itself."""
    started_at, first_at, tokens, finish = time.monotonic(), None, 0, None
    try:
        with ctrl_c_stops_the_answer() as interrupted:
            for event in conversation.ask(question, interrupted, images=images):
                text = event.text.lstrip() if first_at is None else event.text
                if text and first_at is None:
                    first_at = time.monotonic()
                tokens += event.token is not None
                finish = event.finish
                sys.stdout.write(shown(text))
                sys.stdout.flush()
    except UserError as error:
        console.print(f"[red]{escape(str(error))}[/red]\n[dim]/new begins again.[/dim]")
        return
    elapsed_s = time.monotonic() - started_at
    first = f"first after {first_at - started_at:.1f} s, " if first_at else ""
    note = f", {FINISH_NOTES[finish]}" if finish in FINISH_NOTES else ""
    console.print(f"\n[dim]{tokens} tokens, {first}{tokens / elapsed_s:.0f} tokens/s{note}[/dim]")
