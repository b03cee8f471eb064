"""How the weights moved: their norms at each checkpoint, and the change from one to the next.

Both are gathered by part of the network - each layer's own weights, each shared FFN, the embeddings,
the output head - so that one sees what a shared FFN does that 22 private ones do not.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobillama.core import atomic
from mobillama.core.records import digest, require_intact, sealed
from mobillama.core.tensors import TensorFile, model_tensors

from .run import Checkpoint, Run

CACHE = ".timeline.json"
PARTS = (
    (re.compile(r"model\.layers\.(\d+)\."), "layer {}"),
    (re.compile(r"model\.ffns\.(\d+)\."), "FFN {}"),
    (re.compile(r"model\.embed_tokens\."), "embeddings"),
    (re.compile(r"lm_head\."), "output head"),
)


@dataclass(frozen=True)
class Timeline:
    """Norms and relative changes, by part, for each checkpoint; the first has no change (None)."""

    steps: list[int]
    parts: list[str]
    norms: list[list[float]]
    changes: list[list[float | None]]


def part_of(name: str) -> str:
    """Return the part of the network that a weight belongs to."""
    for pattern, label in PARTS:
        if match := pattern.match(name):
            return label.format(*match.groups())
    return "final norm"


def timeline(run: Run) -> Timeline:
    """Return the timeline of a run, measured where the cache beside the run does not have it yet."""
    cache_path = run.path / CACHE
    cache = read_cache(cache_path)
    used: dict[str, Any] = {}
    previous: Checkpoint | None = None
    for checkpoint in run.checkpoints:
        key = f"{weights_id(previous) if previous else ''}>{weights_id(checkpoint)}"
        used[key] = cache.get(key) or measure(checkpoint.path, previous.path if previous else None)
        previous = checkpoint
    if used != cache:
        atomic.write_text(cache_path, json.dumps(sealed({"measured": used})))
    measured = list(used.values())
    parts = sorted({part for one in measured for part in one}, key=part_order)
    return Timeline(
        steps=[checkpoint.step for checkpoint in run.checkpoints],
        parts=parts,
        norms=[[one.get(part, [None, None])[0] for one in measured] for part in parts],
        changes=[[one.get(part, [None, None])[1] for one in measured] for part in parts],
    )


def read_cache(path: Path) -> dict[str, Any]:
    """Return what was measured before; nothing where there is no cache or it was changed."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["measured"] if record["digest"] == digest(record) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def part_order(part: str) -> tuple[int, int]:
    """Sort parts as the data flow: embeddings, layers, shared FFNs, final norm, output head."""
    name, _, number = part.partition(" ")
    order = ["embeddings", "layer", "FFN", "final", "output"]
    return order.index(name), int(number) if number.isdigit() else 0


def weights_id(checkpoint: Checkpoint) -> str:
    """Return what identifies a checkpoint's weights: the hashes of its safetensors files."""
    files = checkpoint.manifest["files"]
    return ",".join(
        file["blake3"][:16]
        for file in files
        if file["path"].endswith(".safetensors") and "/" not in file["path"]
    )


def measure(checkpoint: Path, previous: Path | None) -> dict[str, list[float | None]]:
    """Return by part the norm of its weights and the norm of their change relative to it.

    Sums run in float64 over float32 pieces, so memory stays constant and bf16 is exact.

    Raises:
        UserError: one of the checkpoints was changed.
    """
    for folder in (checkpoint, previous) if previous else (checkpoint,):
        require_intact(folder)
    now = model_tensors(checkpoint)
    before = model_tensors(previous) if previous else {}
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, file in now.items():
        total = squares[part_of(name)]
        total[0] += sum(square_sum(piece) for piece in file.chunks(name))
        if name in before:
            total[1] += change_square_sum(file, before[name], name)
    return {
        part: [norm**0.5, (change / norm) ** 0.5 if previous and norm else None]
        for part, (norm, change) in squares.items()
    }


def square_sum(values: np.ndarray) -> float:
    """Return the sum of squares in float64."""
    return float(np.einsum("i,i->", values, values, dtype=np.float64))


def change_square_sum(file: TensorFile, before: TensorFile, name: str) -> float:
    """Return the squared norm of the difference of one weight between two files."""
    pairs = zip(file.chunks(name), before.chunks(name), strict=True)
    return sum(square_sum(new - old) for new, old in pairs)
