"""Features of a frozen tower, computed once for every image of a set and read from disk while training."""

import hashlib
import os
import time
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mobillama.core import atomic, records
from mobillama.core.checked import require_checked
from mobillama.core.hashing import canonical_json, sha256_text
from mobillama.core.progress import progress

from .samples import ImageSamples

KIND = "features"
FILE = "features.f2"
IMAGES_AT_ONCE = 32


def use_cached(model: LlavaForConditionalGeneration, samples: ImageSamples) -> None:
    """Let samples hand a model its frozen tower's features in place of pixels.

    They are the hidden states that LLaVA takes, in half precision, beside the image set. The leading rank
    computes them, the others wait. The tower keeps its weights and, shown pixels, works as before.
    """
    directory = place_of(model, samples)
    if not (directory / records.MANIFEST).exists():
        if int(os.environ.get("RANK", "0")) == 0:
            compute(model, samples, directory)
        while not (directory / records.MANIFEST).exists():
            time.sleep(1)
    shape = tuple(require_checked(directory, KIND)["shape"])
    samples.features = np.memmap(directory / FILE, dtype="<f2", mode="r", shape=shape)
    model.model.vision_tower.forward = MethodType(forward_or_pass, model.model.vision_tower)


def forward_or_pass(tower: Any, pixel_values: torch.Tensor, **arguments: Any) -> BaseModelOutputWithPooling:
    """Return a tower's outputs, of pixels (n, 3, S, S) or of features (n, tokens, width) that are ready."""
    if pixel_values.ndim == 4:
        return type(tower).forward(tower, pixel_values, **arguments)
    ready: Any = EveryLayer(pixel_values.to(next(tower.parameters()).dtype))
    return BaseModelOutputWithPooling(last_hidden_state=ready[-1], hidden_states=ready)


class EveryLayer:
    """Hidden states of which only those of the layer that LLaVA takes are known."""

    def __init__(self, features: torch.Tensor):
        self.features = features

    def __getitem__(self, layer: int) -> torch.Tensor:
        return self.features


def place_of(model: LlavaForConditionalGeneration, samples: ImageSamples) -> Path:
    """Return where the features of a set lie: named for the images, the tower and how images are shown."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.model.vision_tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy().tobytes())
    facts = {
        "images": samples.set.identity,
        "tower": digest.hexdigest(),
        "layer": model.config.vision_feature_layer,
        "rules": vars(samples.rules),
    }
    key = sha256_text(canonical_json(facts))[:12]
    directory = samples.set.directory
    return directory.with_name(f"{directory.name}.features-{key}")


@torch.inference_mode()
def compute(model: LlavaForConditionalGeneration, samples: ImageSamples, directory: Path) -> None:
    """Write the features of all squares of all images, in the order of the set's table."""
    tower, layer = model.model.vision_tower, model.config.vision_feature_layer
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tower.to(device)
    count, shape = len(samples.squares), None
    with atomic.atomic_directory(directory) as partial, (partial / FILE).open("wb") as file:
        with progress("features of the tower", count, "images") as advance:
            for first in range(0, count, IMAGES_AT_ONCE):
                some = list(range(first, min(first + IMAGES_AT_ONCE, count)))
                pixels = torch.from_numpy(samples.pixels(some)).to(device)
                states = tower(pixels, output_hidden_states=True).hidden_states[layer]
                file.write(states.cpu().numpy().astype("<f2").tobytes())
                shape = [int(samples.squares.sum()), *states.shape[1:]]
                advance(some[-1] + 1)
        file.flush()
        records.write_manifest(partial, KIND, shape=shape, images=samples.set.identity)
    tower.cpu()
