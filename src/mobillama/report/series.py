"""Curves for the page: columns of the metrics, thinned to what a screen can show."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .run import Entry, Run

POINTS = 2000
COLUMNS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu", "memory_bytes")
X_COLUMNS = ("step", "tokens", "elapsed_s")

Column = list[float | None]


def column(entries: list[Entry], key: str) -> np.ndarray:
    """Return one key of all entries as float64; NaN where an entry lacks it or holds no number."""
    values = (entry.get(key) for entry in entries)
    return np.array(
        [value if isinstance(value, int | float) else math.nan for value in values], dtype=np.float64
    )


def metrics_columns(run: Run) -> dict[str, Column]:
    """Return the training curves of a run, at most ``POINTS`` long; columns nowhere filled are left out.

    A longer curve is cut into equal stretches: each point is its stretch's mean, at the stretch's last
    x. For the gradient norm it is the maximum, because a spike is what one looks for.
    """
    stride = math.ceil(len(run.metrics) / POINTS) or 1
    starts = np.arange(0, len(run.metrics), stride)
    columns: dict[str, Column] = {}
    for key in (*X_COLUMNS, *COLUMNS):
        values = column(run.metrics, key)
        if np.isnan(values).all():
            continue
        if key in X_COLUMNS:
            thinned = values[np.minimum(starts + stride, len(values)) - 1]
        elif key == "gradient_norm":
            thinned = np.maximum.reduceat(values, starts)
        else:
            thinned = np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))
        columns[key] = plain(thinned)
    return columns


def at_steps(run: Run, steps: Sequence[float] | np.ndarray) -> dict[str, Column]:
    """Return the x columns of points at some steps, as far as the metrics know them."""
    xs = {"step": plain(np.asarray(steps, dtype=np.float64))}
    for key in ("tokens", "elapsed_s"):
        if not np.isnan(column(run.metrics, key)).all():
            xs[key] = plain(
                np.asarray(np.interp(steps, column(run.metrics, "step"), column(run.metrics, key)))
            )
    return xs


def heldout_columns(run: Run) -> dict[str, Any]:
    """Return the held-out curves: x columns, bits per byte by subset, and their mean by bytes.

    Where a model learnt to see, it is the percentage of answers told exactly, and their mean over answers.
    They stay on the text that was measured first: a part of it and all of it are not points of one curve.
    """
    extent = run.evaluations[0].get("whole")
    points = [entry for entry in run.evaluations if entry.get("whole") == extent]
    xs = at_steps(run, column(points, "step"))
    names = list(dict.fromkeys(name for entry in points for name in entry.get("subsets", {})))
    key, scale = ("exact", 100) if run.sees else ("bits_per_byte", 1)
    subsets = {
        name: plain(scale * column([entry["subsets"].get(name, {}) for entry in points], key))
        for name in names
    }
    if run.sees:
        return {**xs, "subsets": subsets, "mean": plain(scale * column(points, key))}
    return {**xs, "subsets": subsets, "mean": [mean_bits_per_byte(run, entry) for entry in points]}


def heldout_sizes(run: Run) -> dict[str, int]:
    """Return the bytes of held-out text of each subset, as the corpus manifest counts them."""
    heldout = run.corpus.manifest.get("heldout", {}) if run.corpus else {}
    return {name: facts["bytes"] for name, facts in heldout.items() if facts.get("bytes")}


def training_shares(run: Run) -> dict[str, float]:
    """Return each subset's share of the samples of training; empty where the corpus is not here."""
    subsets = run.corpus.manifest.get("subsets", {}) if run.corpus else {}
    data = run.recipe.get("data", {})
    if data.get("weights"):
        parts = {name: data["weights"].get(name, 0.0) for name in subsets}
    else:
        epochs = data.get("epochs")
        parts = {
            name: facts["train"]["tokens"] * (epochs.get(name, 0.0) if epochs else 1.0)
            for name, facts in subsets.items()
        }
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()} if total else {}


def mean_bits_per_byte(run: Run, entry: Entry) -> float | None:
    """Return an evaluation's bits per byte over all subsets, each weighted by its share of training."""
    measured = {name: result.get("bits_per_byte") for name, result in entry.get("subsets", {}).items()}
    return weighted_mean(measured, training_shares(run))


def mean_baseline(run: Run, tool: str) -> float | None:
    """Return a compressor's bits per byte over all subsets, weighted as ``mean_bits_per_byte``."""
    return weighted_mean(
        {name: values.get(tool) for name, values in baselines(run).items()}, training_shares(run)
    )


def weighted_mean(values: dict[str, float | None], shares: dict[str, float]) -> float | None:
    """Return the mean of the finite values by share; all count the same where no share is known."""
    found = [
        (value, shares.get(name, 0.0) if shares else 1.0)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]
    total = sum(share for _, share in found)
    return sum(value * share for value, share in found) / total if total else None


def baselines(run: Run) -> dict[str, dict[str, float]]:
    """Return, by subset, the bits per byte that general compressors need for the same held-out text."""
    heldout = run.corpus.manifest.get("heldout", {}) if run.corpus else {}
    return {
        name: {
            tool: 8 * facts[f"{tool}_bytes"] / facts["bytes"]
            for tool in ("xz", "zstd")
            if facts.get(f"{tool}_bytes")
        }
        for name, facts in heldout.items()
        if facts.get("bytes")
    }


def plain(values: np.ndarray) -> Column:
    """Return floats with six significant digits for JSON, None where there is no finite number."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
