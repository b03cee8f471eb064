"""Recipes: TOML files checked against pydantic models, with the origin of every value.

All problems of a recipe are reported at once, each with file, line, dotted path and the
nearest known name.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UserError, did_you_mean

Schema = TypeVar("Schema", bound=BaseModel)


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Loaded(Generic[Schema]):
    """A checked recipe and, by dotted path, where each of its values came from."""

    recipe: Schema
    origins: dict[str, str]


def load(path: Path, schema: type[Schema], overrides: list[str] | None = None) -> Loaded[Schema]:
    """Read a recipe file, apply ``a.b=value`` overrides and check it against ``schema``.

    Raises:
        UserError: the file cannot be read or has problems; each is named on its own line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    origins = {dotted: f"{path.name}:{line_of(text, dotted)}" for dotted in leaves(values)}
    for override in overrides or []:
        dotted, value = parse_override(override)
        set_value(values, dotted, value)
        origins[dotted] = f"--set {override}"
    try:
        recipe = schema.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(explain(error, schema, text, path.name, origins))) from None
    for dotted in leaves(recipe.model_dump(mode="json")):
        origins.setdefault(dotted, "default")
    return Loaded(recipe, origins)


def parse_override(override: str) -> tuple[str, Any]:
    """Split ``a.b=value``; the value is TOML, and a bare word is a string."""
    dotted, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", dotted):
        raise UserError(f"--set {override}: write it as a.b=value")
    try:
        return dotted, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return dotted, text


def set_value(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value inside nested tables, making tables on the way."""
    *tables, key = dotted.split(".")
    for table in tables:
        inner: Any = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {dotted}: {table} is a value, not a table")
        values = cast(dict[str, Any], inner)
    values[key] = value


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted paths of all values that are not tables."""
    found: list[str] = []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        found += leaves(cast(dict[str, Any], value), dotted + ".") if isinstance(value, dict) else [dotted]
    return found


def line_of(text: str, dotted: str) -> int:
    """Return the line of a TOML text where ``dotted`` is set, or of its nearest table; 1 if neither."""
    *tables, key = dotted.split(".")
    current, nearest = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            current = header.group(1)
            if current == ".".join(tables) or dotted.startswith(current + "."):
                nearest = number
        elif current in ("", ".".join(tables)) and re.match(
            rf"\s*({re.escape(dotted)}|{re.escape(key)})\s*=", line
        ):
            return number
    return nearest


def explain(
    error: ValidationError, schema: type[BaseModel], text: str, name: str, origins: dict[str, str]
) -> list[str]:
    """Return one line for each problem pydantic found."""
    lines: list[str] = []
    for problem in error.errors():
        dotted = ".".join(str(part) for part in problem["loc"])
        where = origins.get(dotted) or f"{name}:{line_of(text, dotted)}"
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(str(problem["loc"][-1]), known_keys(schema, problem["loc"][:-1]))
            lines.append(f"{where}: {dotted} is unknown{hint or '; remove it'}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if problem["type"] == "missing" else f" (given {problem['input']!r})"
            lines.append(f"{where}: {dotted or name}: {message}{given}")
    return lines


def known_keys(schema: Any, location: tuple[Any, ...]) -> list[str]:
    """Return the names a table of ``schema`` accepts, as far as they can be told."""
    for part in location:
        fields = getattr(schema, "model_fields", {})
        if part not in fields:
            return []
        schema = next(
            (kind for kind in unfold(fields[part].annotation) if hasattr(kind, "model_fields")), None
        )
    return list(getattr(schema, "model_fields", {}))


def unfold(annotation: Any) -> list[Any]:
    """Return a type and all the types inside its unions and containers."""
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(found for argument in inner for found in unfold(argument))]
