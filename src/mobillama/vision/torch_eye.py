"""A model folder that sees, as a language model with an eye, computed by torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobillama.engine import LanguageModel, read_chat_template, read_tokenizer
from mobillama.model import TorchSession

from .images import ImageRules, opened
from .loading import load_vision_model


class TorchEye:
    """Shows images to a loaded model by its own tower and projector."""

    def __init__(self, model: Any, rules: ImageRules) -> None:
        self.model = model
        self.rules = rules

    @torch.inference_mode()
    def __call__(self, image: Any, /) -> NDArray[np.float32]:
        """Return an image - a path, its bytes, or a PIL image - as rows (tokens, hidden_size).

        Raises:
            UserError: the image cannot be read.
        """
        pixels = torch.from_numpy(self.rules.pixels(opened(image)))
        features = self.model.get_image_features(
            pixels.to(self.model.device, self.model.dtype), return_dict=True
        ).pooler_output
        return torch.cat(tuple(features)).float().cpu().numpy()


def open_checkpoint(directory: Path, *, device: str | None = None, dtype: str = "auto") -> LanguageModel:
    """Return the language model of a folder with a model that sees.

    Raises:
        UserError: it cannot be loaded.
    """
    model = load_vision_model(directory, device=device, dtype=dtype)
    return LanguageModel(
        name=directory.name,
        tokenizer=read_tokenizer(directory),
        open_session=lambda: TorchSession(model),
        chat_template=read_chat_template(directory),
        image_token=model.config.image_token_id,
        eye=TorchEye(model, ImageRules.read(directory)),
    )
