"""Loading a model that sees whole: every weight from its files, or a clear error."""

from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from mobillama.model import checkpoint
from mobillama.model.loading import load_whole

# Registers our towers with AutoModel, which builds the model.
from . import tower  # noqa: F401


def load_vision_model(
    model: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> LlavaForConditionalGeneration:
    """Return the LLaVA of a checkpoint, of a run's last checkpoint or of a model folder, in evaluation mode.

    Arguments:
        device: where it goes; CUDA where present, else the CPU, if not given.
        dtype: of its weights; that of the files if not given.

    Raises:
        UserError: no model that sees is there, or its files were changed, cannot be read, or lack a weight.
    """
    directory = checkpoint.locate(model)
    checkpoint.require_intact(directory)
    return load_whole(LlavaForConditionalGeneration, directory, "model that sees", device=device, dtype=dtype)
