"""Which answers a gallery shows, and how they become its pictures."""

import io
import random
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mobillama import engine
from mobillama.report import gallery
from mobillama.vision.images import ImageRules, opened

from .vision_data import VisionItem

SEED = 0
SMALL_PIXELS = 128
"""Squares up to this side are kept as PNG, exactly as they are."""
HEAT = (255, 214, 10)
Entry = dict[str, Any]
Shown = tuple[VisionItem, Entry]
Titles = tuple[str, str]


def write_gallery(
    model: engine.LanguageModel, titles: Titles, tasks: dict[str, Any], answers: Sequence[Shown], out: Path
) -> Path:
    """Write the page of some answers to one benchmark and return its path.

    Arguments:
        titles: what the model and the benchmark are called.
        tasks: the benchmark's results by name, shown rightly first, then otherwise.
        answers: the questions that are shown, with their log entries.
    """
    first = next(iter(tasks.values()))
    metric = first["metric"]
    parts = first["parts"]
    rows = [
        (part, [f"{100 * task['parts'][part][metric]:.2f} %" for task in tasks.values()])
        for part in parts
        if metric in parts[part]
    ]
    return gallery.write(
        gallery.Gallery(
            model=titles[0],
            benchmark=titles[1],
            score=first["value"],
            questions=first["questions"],
            pictures=[picture(model, item, entry) for item, entry in answers],
            columns=("", *(HEADINGS[name.partition(":")[2]] for name in tasks)),
            rows=rows,
        ),
        out,
    )


HEADINGS = {"": "right images", "shuffled": "other images", "none": "no image"}


def chosen(answers: Sequence[Shown], count: int) -> list[Shown]:
    """Return so many answers to show: first wrong ones, up to half, then right ones; parts take turns."""
    drawn = list(answers)
    random.Random(SEED).shuffle(drawn)
    wrong = list(mixed([shown for shown in drawn if not is_right(shown[1])]))[: count // 2]
    rest = list(mixed([shown for shown in drawn if is_right(shown[1])]))
    return wrong + rest[: count - len(wrong)]


def mixed(answers: Sequence[Shown]) -> Iterator[Shown]:
    """Yield answers so that the parts take turns."""
    parts: dict[str, list[Shown]] = {}
    for shown in answers:
        parts.setdefault(shown[0].part, []).append(shown)
    for turn in zip_longest(*parts.values()):
        yield from (shown for shown in turn if shown is not None)


def picture(model: engine.LanguageModel, item: VisionItem, entry: Entry) -> gallery.Picture:
    """Return an answer as the gallery shows it; with a map where the model is in torch."""
    eye: Any = model.eye
    rules: ImageRules = eye.rules
    assert item.image is not None
    square = rules.squares(opened(item.image if isinstance(item.image, Path) else item.image()))[0]
    said = entry["responses"][0]
    gold = item.gold if isinstance(item.gold, str) else gold_text(item)
    return gallery.Picture(
        image=encoded(square),
        question=item.question,
        answer=said,
        gold=gold,
        right=is_right(entry),
        part=item.part,
        map=weights_map(model, eye, square, item.question, said),
    )


def gold_text(item: VisionItem) -> str:
    """Return a gold answer that is no text in words."""
    if isinstance(item.gold, int):
        return "ABCDE"[item.gold]
    return ", ".join(dict.fromkeys(item.gold))


def is_right(entry: Entry) -> bool:
    """Tell whether an answer scored at least half of what it could."""
    return next(iter(entry["scores"].values())) >= 0.5


def weights_map(
    model: engine.LanguageModel, eye: Any, square: Image.Image, question: str, said: str
) -> bytes | None:
    """Return where in a square an answer came from, to lay over it; None for a model that is not in torch."""
    tower = getattr(eye, "model", None)
    answer = model.tokenizer.encode(said, special=False)
    if tower is None or not answer:
        return None
    from mobillama.vision.gradient_map import gradient_map

    pixels = eye.rules.normalised(np.asarray(square)[None])[0]
    prompt = model.chat_prompt([{"role": "user", "content": question, "images": [square]}])
    return heat(gradient_map(tower, pixels, prompt, answer))


def heat(weights: NDArray[np.float32]) -> bytes:
    """Return weights (S, S) from 0 to 1 as a PNG whose opacity they are, over a dark veil."""
    side = weights.shape[0]
    blurred = Image.fromarray((255 * weights).astype(np.uint8)).filter(ImageFilter.GaussianBlur(side / 64))
    strength = np.asarray(blurred, dtype=np.float32)[..., None] / 255
    veil = np.full((side, side, 4), (0, 0, 0, 70), dtype=np.float32)
    glow = np.full((side, side, 4), (*HEAT, 190), dtype=np.float32)
    layer = veil + strength * (glow - veil)
    return encoded(Image.fromarray(layer.round().astype(np.uint8)))


def encoded(image: Image.Image) -> bytes:
    """Return an image as a file: PNG where it is small or transparent, else JPEG."""
    content = io.BytesIO()
    exact = image.mode == "RGBA" or image.width <= SMALL_PIXELS
    image.save(content, "PNG" if exact else "JPEG", **({"optimize": True} if exact else {"quality": 85}))
    return content.getvalue()
