"""Errors that speak to people, and the line that tells which extra is missing."""

import difflib
import importlib.util
from collections.abc import Iterable


class UserError(Exception):
    """A mistake its reader can mend: one line that names what, where and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the nearest of ``known``, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def require_extra(extra: str, *modules: str) -> None:
    """Stop with the exact install line when a module of an optional extra is absent.

    Raises:
        UserError: one of ``modules`` cannot be imported here.
    """
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"this needs {', '.join(absent)}, which the base install leaves out: "
            f"pip install 'mobillama[{extra}]'"
        )
