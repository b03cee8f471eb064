"""What the page says in words and tables: key figures, held-out results, mixture, drops, samples."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobillama.core.errors import UserError
from mobillama.core.tensors import model_tensors

from .run import Run, flat
from .series import (
    baselines,
    column,
    heldout_sizes,
    mean_baseline,
    mean_bits_per_byte,
    training_shares,
)

SAMPLE_COLUMNS = 8


@dataclass(frozen=True)
class Summary:
    """The figures a reader looks for first; None where nothing was recorded."""

    steps: int | None
    tokens: float | None
    elapsed_s: float | None
    loss: float | None
    bits_per_byte: float | None
    whole: bool
    """Whether the last evaluation read all held-out text, as the compressors did."""
    xz: float | None
    zstd: float | None
    parameters: int | None
    layers: int | None
    ffns: int | None
    tokens_per_second: float | None
    checkpoints: int
    stopped: str | None

    @property
    def of_xz(self) -> float | None:
        """Held-out bits per byte as a share of what xz needs."""
        return self.bits_per_byte / self.xz if self.bits_per_byte and self.xz else None


def summary(run: Run) -> Summary:
    """Return the key figures of a run."""
    model = run.model
    sharing = model.get("ffn_of_layer")
    rates = column(run.metrics, "tokens_per_second")
    stops = [entry for entry in run.ledger if entry.get("event") == "stop"]
    return Summary(
        steps=run.metrics[-1]["step"] if run.metrics else None,
        tokens=last(run, "tokens"),
        elapsed_s=last(run, "elapsed_s"),
        loss=recent_mean(column(run.metrics, "loss")),
        bits_per_byte=mean_bits_per_byte(run, run.evaluations[-1]) if run.evaluations else None,
        whole=bool(run.evaluations) and run.evaluations[-1].get("whole", True),
        xz=mean_baseline(run, "xz"),
        zstd=mean_baseline(run, "zstd"),
        parameters=stored_parameters(run),
        layers=model.get("num_hidden_layers"),
        ffns=len(set(sharing)) if sharing else None,
        tokens_per_second=None if np.isnan(rates).all() else float(np.nanmedian(rates)),
        checkpoints=len(run.checkpoints),
        stopped=stops[-1].get("reason", "stopped") if stops else None,
    )


def last(run: Run, key: str) -> float | None:
    """Return the last recorded value of a metric."""
    return next((entry[key] for entry in reversed(run.metrics) if entry.get(key) is not None), None)


def recent_mean(values: np.ndarray, share: float = 0.02) -> float | None:
    """Return the mean of the last ``share`` of a curve: one step's loss alone says little."""
    recent = values[-math.ceil(len(values) * share) :] if len(values) else values
    return None if np.isnan(recent).all() else float(np.nanmean(recent))


def stored_parameters(run: Run) -> int | None:
    """Return how many values the last checkpoint stores, counted in its files."""
    if not run.checkpoints:
        return None
    try:
        weights = model_tensors(run.checkpoints[-1].path)
    except UserError:
        return None
    return sum(file.tensors[name].size for name, file in weights.items())


def heldout_rows(run: Run) -> list[dict[str, Any]]:
    """Return by subset: held-out bytes, the compressors' and the model's bits per byte, and the ratio."""
    if not run.evaluations:
        return []
    sizes, compressors = heldout_sizes(run), baselines(run)
    rows = []
    for name, result in run.evaluations[-1].get("subsets", {}).items():
        bits, known = result.get("bits_per_byte"), compressors.get(name, {})
        rows.append(
            {
                "subset": name,
                "size_bytes": sizes.get(name),
                "bits_per_byte": bits,
                "xz": known.get("xz"),
                "zstd": known.get("zstd"),
                "of_xz": bits / known["xz"] if bits and known.get("xz") else None,
            }
        )
    return rows


def mixture(run: Run) -> list[dict[str, Any]]:
    """Return by subset its documents and tokens in the corpus and its share of the samples of training."""
    subsets = run.corpus.manifest.get("subsets", {}) if run.corpus else {}
    shares = training_shares(run)
    rows = [{"subset": name, "share": shares[name], **subsets[name]["train"]} for name in shares]
    return sorted(rows, key=lambda row: -row["share"])


def dropped_counts(run: Run) -> list[tuple[str, str, int]]:
    """Return (subset, reason, documents or lines) of what preparation left out, most first."""
    subsets = run.corpus.manifest.get("subsets", {}) if run.corpus else {}
    rows = [
        (name, reason, number)
        for name, facts in subsets.items()
        for reason, number in [
            *facts.get("dropped", {}).items(),
            ("bad input, quarantined", facts.get("quarantined", 0)),
        ]
    ]
    return sorted((row for row in rows if row[2]), key=lambda row: -row[2])


def sample_rows(run: Run) -> tuple[list[int], dict[str, list[str]]]:
    """Return steps, first and last among at most ``SAMPLE_COLUMNS``, and each prompt's text at them."""
    steps = sorted({entry["step"] for entry in run.samples})
    if len(steps) > SAMPLE_COLUMNS:
        chosen = np.linspace(0, len(steps) - 1, SAMPLE_COLUMNS).round().astype(int)
        steps = [steps[index] for index in chosen]
    texts = {(entry["prompt"], entry["step"]): entry["text"] for entry in run.samples}
    prompts = dict.fromkeys(entry["prompt"] for entry in run.samples)
    return steps, {prompt: [texts.get((prompt, step), "") for step in steps] for prompt in prompts}


def compared_recipes(runs: list[Run]) -> list[tuple[str, list[Any], bool]]:
    """Return (dotted path, value in each run, whether they differ), the differing ones first."""
    recipes = [flat(run.recipe) for run in runs]
    rows = []
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        values = [recipe.get(key) for recipe in recipes]
        rows.append((key, values, any(value != values[0] for value in values)))
    return sorted(rows, key=lambda row: not row[2])
