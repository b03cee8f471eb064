"""What held-out answers owe to sight: their loss with the right image and with wrong ones, and retrieval."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobillama.core import records
from mobillama.core.checked import require_checked
from mobillama.core.environment import environment
from mobillama.core.errors import UserError
from mobillama.core.progress import progress
from mobillama.model.checkpoint import locate
from mobillama.vision.image_set import KIND, ImageSet
from mobillama.vision.images import ImageRules
from mobillama.vision.loading import load_vision_model
from mobillama.vision.recipe import VisionDataSection
from mobillama.vision.samples import IGNORED, ImageSamples

from .evaluation import FORMAT, directory_of, write_result
from .statistics import bootstrap, standard_error
from .subjects import Identity, model_identity, name_of, torch_facts

SIGHT = "sight"
GROUP = 20
"""Images that an answer is tried with: its own, and the wrong ones."""
SEED = 0


def evaluate_sight(
    model: str, directory: Path, out: Path, *, device: str | None = None, dtype: str = "auto"
) -> dict[str, Any]:
    """Measure a model on an image set's held-out answers and return the result, as written to `out`.

    Every answer is scored with its own image and with those of `GROUP` - 1 others, drawn once. Its gain is
    the nats per token by which the right image makes it likelier than the wrong ones do on average. An
    image's answer is retrieved if none of its group's others gains more by the image: by how much likelier
    than on average over the group's images, since what is rare is unlikely with any image.

    Raises:
        UserError: the images are not here or were changed, or fewer than two are held out.
    """
    require_checked(directory, KIND)
    source, images = locate(model), ImageSet(directory)
    loaded = load_vision_model(model, device=device, dtype=dtype)
    rules = ImageRules.read(source)
    length = loaded.config.get_text_config().max_position_embeddings
    samples = ImageSamples(images, VisionDataSection(sequence_length=length), rules, seed=SEED, step=1)
    rows = rows_of_one_image(samples)
    size = min(GROUP, len(rows))
    if size < 2:
        raise UserError(f"{directory}: fewer than two images are held out; set images.heldout_share")
    groups = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    nats: list[NDArray[np.float64]] = []
    with progress(f"sight {source.name}", len(groups), "groups") as advance:
        for done, group in enumerate(groups, start=1):
            nats.append(nats_by_image(loaded, samples, group))
            advance(done)
    name, identity = name_of(model, source), model_identity(source)
    subject = Identity(name=name, identity=identity, facts=torch_facts(loaded, source))
    result = {
        "kind": SIGHT,
        "format": FORMAT,
        "model": {"name": subject.name, "identity": subject.identity, **subject.facts},
        "images": images.identity,
        "settings": {"group": size, "seed": SEED},
        "environment": environment(),
        "finished_at": records.now(),
        "answers": size * len(groups),
        "of": len(rows),
        **figures(nats),
    }
    write_result(out, directory_of(out, subject).name, result, suffix=f".{SIGHT}")
    return result


def rows_of_one_image(samples: ImageSamples) -> list[int]:
    """Return a held-out conversation for each image that it shows alone, as one square, in drawn order."""
    table = samples.set.heldout
    by_image: dict[int, int] = {}
    for row in range(len(table)):
        shown = table.images_of(row)
        if len(shown) == 1 and samples.squares[shown[0]] == 1:
            by_image.setdefault(shown[0], row)
    rows = list(by_image.values())
    random.Random(SEED).shuffle(rows)
    return rows


@torch.inference_mode()
def nats_by_image(model: Any, samples: ImageSamples, rows: Sequence[int]) -> NDArray[np.float64]:
    """Return the nats per token of each row's answer with each row's image, (answers, images)."""
    table, device = samples.set.heldout, model.device
    pixels = torch.from_numpy(samples.pixels([table.images_of(row)[0] for row in rows]))
    seen = model.get_image_features(pixels.to(device, model.dtype), return_dict=True).pooler_output
    features = torch.stack(tuple(seen))  # (images, tokens, hidden_size)
    nats = []
    for row in rows:
        batch = samples.collate(table, [row])
        ids, labels = (torch.from_numpy(batch[name]).to(device) for name in ("input_ids", "labels"))
        inputs = model.get_input_embeddings()(ids).repeat(len(rows), 1, 1)  # (images, T, hidden_size)
        inputs[:, ids[0] == samples.set.image_id] = features
        states = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        counted = labels[0] != IGNORED
        likely = model.lm_head(states[:, counted]).float().log_softmax(-1)  # (images, answer, vocab_size)
        wanted = labels[0, counted].expand(len(rows), -1).unsqueeze(-1)
        nats.append(-likely.gather(2, wanted).mean(dim=(1, 2)).double().cpu().numpy())
    return np.stack(nats)


def figures(groups: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Return what the nats of groups, (answers, images) each, say of sight."""
    right, wrong, retrieved = [], [], []
    for nats in groups:
        size, own = len(nats), np.diag(nats)
        right += own.tolist()
        wrong += ((nats.sum(axis=1) - own) / (size - 1)).tolist()
        gains = nats.mean(axis=1, keepdims=True) - nats
        retrieved += (gains.argmax(axis=0) == np.arange(size)).astype(float).tolist()
    gained = (np.asarray(wrong) - np.asarray(right)).tolist()
    return {
        "nats_right": float(np.mean(right)),
        "nats_wrong": float(np.mean(wrong)),
        "gain": mean(gained),
        "retrieval": mean(retrieved) | {"chance": 1 / len(groups[0])},
    }


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Return a mean with its standard error and 95 % interval."""
    interval = bootstrap(values)
    return {
        "value": float(np.mean(values)),
        "standard_error": standard_error(values),
        "interval": [interval.low, interval.high],
    }
