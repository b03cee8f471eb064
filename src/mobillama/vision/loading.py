"""Loading a model that sees whole: every weight from its files, or a clear error."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import LlavaForConditionalGeneration
from transformers.utils import logging

from mobillama.core.errors import UserError
from mobillama.model import checkpoint

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
    logging.disable_progress_bar()  # It would stand among answers and our own bars.
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
    try:
        result: Any = LlavaForConditionalGeneration.from_pretrained(directory, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{directory}: cannot be loaded as a model that sees: {reason}") from error
    loaded, info = result
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{directory}: {len(missing)} weights are missing, first {missing[0]}; restore its files"
        )
    return loaded.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
