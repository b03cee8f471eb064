"""The page: one run, or several laid over each other, as a single HTML file that loads nothing else."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mobillama.core import atomic
from mobillama.core.records import now

from .benchmarks import benchmark_columns, last_scores, results_of
from .run import Run, flat, intact_run
from .series import baselines, heldout_columns, metrics_columns
from .summary import Summary, compared_recipes, dropped_counts, heldout_rows, mixture, sample_rows, summary
from .timeline import timeline

HERE = Path(__file__).parent


def write(runs: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or the comparison of several, and return the page's path.

    Arguments:
        runs: one run directory, or several to overlay.
        out: the HTML file; by default ``report.html`` in the run, or ``comparison.html`` beside the first.

    Raises:
        UserError: one of them is not a run directory, or was changed.
    """
    paths = [runs] if isinstance(runs, Path) else list(runs)
    read = [intact_run(path) for path in paths]
    if out is None:
        out = paths[0] / "report.html" if len(paths) == 1 else paths[0].parent / "comparison.html"
    atomic.write_text(out, render(read))
    return out


def render(runs: list[Run]) -> str:
    """Return the page as HTML."""
    names = distinct_names(runs)
    views = [view(run, name) for run, name in zip(runs, names, strict=True)]
    return template("page.html.j2").render(
        views=views,
        single=views[0] if len(views) == 1 else None,
        recipes=compared_recipes(runs),
        made_at=now(),
        curves=embedded([curves(view) for view in views]),
        style=asset("assets/uPlot.min.css") + asset("templates/style.css"),
        library=asset("assets/uPlot.iife.min.js"),
        script=asset("templates/page.js"),
    )


def template(name: str, folder: Path = HERE / "templates") -> jinja2.Template:
    """Return a template: what goes into a page is escaped, what a template lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= FILTERS
    return environment.get_template(name)


def view(run: Run, name: str) -> dict[str, Any]:
    """Return all that the template shows of one run."""
    facts: Summary = summary(run)
    results = results_of(run.path)
    return {
        "name": name,
        "run": run,
        "facts": facts,
        "heldout": heldout_rows(run),
        "scores": last_scores(run.path, results),
        "trajectories": benchmark_columns(run, results),
        "mixture": mixture(run),
        "dropped": dropped_counts(run),
        "samples": sample_rows(run),
        "recipe": [(key, value, origin(run, key)) for key, value in flat(run.recipe).items()],
        "environment": flat(run.environment),
        "timeline": timeline(run) if run.checkpoints else None,
    }


def origin(run: Run, key: str) -> str:
    """Return where a value came from; rows of a list have the origin of the list."""
    return run.origins.get(key) or run.origins.get(key.partition("[")[0], "")


def curves(shown: dict[str, Any]) -> dict[str, Any]:
    """Return what the script draws of one run."""
    run: Run = shown["run"]
    return {
        "name": shown["name"],
        "metrics": metrics_columns(run),
        "heldout": heldout_columns(run) if run.evaluations else None,
        "benchmarks": shown["trajectories"],
        "baselines": {
            **baselines(run),
            "mean": {"xz": shown["facts"].xz, "zstd": shown["facts"].zstd},
        },
        "timeline": asdict(shown["timeline"]) if shown["timeline"] else None,
    }


def distinct_names(runs: list[Run]) -> list[str]:
    """Return short names, or whole paths where short names would be equal."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def embedded(value: Any) -> Markup:
    """Return JSON that is safe inside a script element, whatever text it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def asset(name: str) -> Markup:
    """Return a file of this package to put into the page as it is."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


def count(value: float | None) -> str:
    """Return a number of things in three digits: 4.27 M."""
    if value is None:
        return "–"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g} {unit}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Return bytes in decimal units: 8.6 MB."""
    if value is None:
        return "–"
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def duration(value: float | None) -> str:
    """Return seconds as hours, minutes and seconds."""
    return "–" if value is None else str(timedelta(seconds=round(value)))


def figure(value: float | None, digits: int = 3) -> str:
    """Return a measured number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def value_text(value: Any) -> str:
    """Return a configured value as its file would spell it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# How pages and cards spell numbers.
FILTERS = {"count": count, "size": size, "duration": duration, "figure": figure, "value": value_text}
