"""A few small images with questions about them, prepared and trained on in seconds."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_runs import MODEL

from mobillama.core import config
from mobillama.lineage.kinds import VisionRecipe

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230), "white": (250, 250, 250)}


def picture(colour: str, number: int) -> bytes:
    """Return a PNG of one colour with noise, so that each number gives another file."""
    noise = np.random.default_rng(number).integers(-20, 21, (16, 16, 3))
    data = io.BytesIO()
    Image.fromarray((COLOURS[colour] + noise).clip(0, 255).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def write_pictures(folder: Path, count: int = 40) -> Path:
    """Write pictures and ``pictures.jsonl``: two questions about each, of two categories."""
    lines = []
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / f"{number}.png").write_bytes(picture(colour, number))
        asked = {
            "color": ("what color is it?", colour),
            "yes/no": ("is it red?", "yes" if colour == "red" else "no"),
        }
        for category, (question, answer) in asked.items():
            line = {"id": f"{category} {number}", "image": f"pictures/{number}.png", "category": category}
            messages = [
                {"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": answer}
            ]  # fmt: skip
            lines.append(json.dumps(line | {"messages": messages}))
    (folder / "pictures.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recipe(folder: Path, **parts: Any) -> config.Loaded[VisionRecipe]:
    """Return the recipe of a run in ``folder / "run"`` on the pictures in ``folder``."""
    values: dict[str, Any] = {
        "name": "pictures",
        "seed": 3,
        "run_dir": folder / "run",
        "images": {
            "directory": folder / "images",
            "root": folder,
            "template": "plain",
            "heldout_share": 0.25,
            "tokenizer": {"vocab_size": 300},
            "sources": [
                {"name": "pictures", "kind": "jsonl", "paths": ["pictures.jsonl"], "license": "CC0-1.0"}
            ],
        },
        "data": {"sequence_length": 48, "length_groups": 3},
        "model": MODEL,
        "vision": {
            "feature_layer": -1,
            "tower": {"kind": "conv", "image_size": 16, "channels": [8, 16]},
        },
        "learn": {"tower": True},
        "train": {
            "batch_samples": 8,
            "micro_batch": 4,
            "max_steps": 12,
            "precision": "fp32",
            "threads": 1,
            "optimizer": {"lr": 3e-3},
        },
        "checkpoint": {"count": 3, "keep_states": 9},
    }
    for name, changes in parts.items():
        given = values.get(name)
        values[name] = {**given, **changes} if isinstance(given, dict) else changes
    return config.Loaded(VisionRecipe.model_validate(values), {})
