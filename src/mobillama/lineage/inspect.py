"""What is this, what made it, what was it made from, is it intact, and how is it made again?"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.records import manifest_path
from mobillama.report.page import size

LABEL_WIDTH = 13
SHOWN_PROBLEMS = 10


@dataclass
class Description:
    """All that is known of one artifact; empty where nothing is recorded."""

    path: str
    kind: str
    summary: str
    size_bytes: int
    facts: dict[str, str] = field(default_factory=dict)
    """What is worth a line, by label."""
    configuration: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Where a configured value came from, where that was recorded."""
    made_by: dict[str, str] = field(default_factory=dict)
    parents: list[str] = field(default_factory=list)
    """From the nearest to the documents."""
    intact: bool | None = None
    """None where there is no record to compare with, or nobody asked."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    make_again: str | None = None


def describe(path: Path, *, hashes: bool = True) -> Description:
    """Return what is known of any artifact of ours, and of safetensors, GGUF and Hugging Face folders.

    Arguments:
        hashes: also read every byte to tell whether it is intact.

    Raises:
        UserError: there is nothing, or nothing that is known here.
    """
    from . import describe_files, describe_ours
    from .results import read_result
    from .verify import check

    if not path.exists():
        raise UserError(f"{path}: not found; give a file or folder")
    if (path / "run.toml").is_file():
        description = describe_ours.run(path)
    elif manifest_path(path).is_file():
        description = describe_ours.artifact(path)
    elif path.suffix == ".json" and (result := read_result(path)):
        description = describe_ours.result(path, result)
    else:
        return describe_files.foreign(path)
    if hashes:
        result = check(path)
        description.problems += [str(problem) for problem in result.problems]
        description.notes += result.notes
        description.intact = not description.problems
    return description


def as_json(description: Description) -> str:
    """Return a description as JSON with stable keys."""
    return json.dumps(asdict(description), indent=2, ensure_ascii=False, default=str)


def as_text(description: Description) -> str:
    """Return a description for a person: one line a fact."""
    unknown = "not known: nothing to compare with, or not hashed"
    state = {True: "yes, every file was hashed", False: "NO", None: unknown}
    lines = [f"{description.kind}  {description.path}", f"  {description.summary}", ""]
    lines += [line("size", size(description.size_bytes))]
    lines += [line(label, value) for label, value in description.facts.items()]
    lines += [line("intact", state[description.intact])]
    lines += [line("", f"! {problem}") for problem in description.problems[:SHOWN_PROBLEMS]]
    if len(description.problems) > SHOWN_PROBLEMS:
        lines += [line("", f"... {len(description.problems)} in all; mobillama verify names each")]
    lines += listed("made from", description.parents)
    lines += [line(label, value) for label, value in description.made_by.items()]
    if description.make_again:
        lines += [line("make again", description.make_again)]
    lines += listed("note", description.notes)
    if description.configuration:
        lines += ["", "  configuration"]
        width = max(len(key) for key in description.configuration)
        for key, value in description.configuration.items():
            origin = f"   ({description.origins[key]})" if key in description.origins else ""
            lines.append(f"    {key:<{width}}  {json.dumps(value, ensure_ascii=False, default=str)}{origin}")
    return "\n".join(lines)


def line(label: str, value: str) -> str:
    """Return one labelled line."""
    return f"  {label:<{LABEL_WIDTH}} {value}"


def listed(label: str, values: list[str]) -> list[str]:
    """Return values under one label, a line each."""
    return [line(label if number == 0 else "", value) for number, value in enumerate(values)]
