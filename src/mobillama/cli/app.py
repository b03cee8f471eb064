"""The application: its verbs, and how an error reaches a person."""

import errno
import os
import sys
from typing import Annotated

import typer

from mobillama.core.environment import installed_version
from mobillama.core.errors import UserError

from . import making, measuring, proving, tracing, using

app = typer.Typer(
    help="The life of a small language model whose layers share one FFN: made, used and proven.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(installed_version("mobillama") or "unknown (not installed)")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the verb."""


for verbs in (making, measuring, using, proving, tracing):
    verbs.register(app)


def main() -> None:
    """Run the command line; a ``UserError`` becomes one line on standard error and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not disk_is_full(error):
            raise
        where = f"{name}: " if (name := getattr(error, "filename", None)) else ""
        print(f"error: {where}no space left; free some and give the same command again", file=sys.stderr)
        sys.exit(2)


def disk_is_full(error: Exception) -> bool:
    """Tell whether an error comes from a full disk or a spent quota; libraries tell it in words only."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full)
