"""Loading a language model whole: every weight from its files, or a clear error."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from mobillama.core.errors import UserError

from . import checkpoint, official
from .modeling import MobiLlamaForCausalLM

SEEING = "llava"
"""The model type of a language model with a vision tower and a projector."""
LANGUAGE_HALF = {
    r"^(?:model\.language_model|language_model\.model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""The names of its language half's weights, as transformers has them and as it writes them to files."""


def load_language_model(
    model: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> PreTrainedModel:
    """Return the causal language model of a checkpoint, of a run's last checkpoint or of a model folder.

    It is in evaluation mode. Of a model that sees it is the language half.

    Arguments:
        device: where it goes; CUDA where present, else the CPU, if not given.
        dtype: of its weights; that of the files if not given.

    Raises:
        UserError: there is no model there, its files were changed, cannot be read, or lack a weight.
    """
    directory = checkpoint.locate(model)
    checkpoint.require_intact(directory)
    # A release's configuration may name Llama, whose class would not fit its weights.
    loader = MobiLlamaForCausalLM if official.is_release(directory) else AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": dtype}
    if sees(directory):
        options |= {"config": text_config(directory), "key_mapping": LANGUAGE_HALF}
    return load_whole(loader, directory, "language model", device=device, **options)


def load_whole(
    loader: Any, directory: Path, kind: str, *, device: str | torch.device | None, **options: Any
) -> Any:
    """Return the model that ``loader`` makes of a folder, in evaluation mode, with every weight it needs.

    Raises:
        UserError: its files cannot be read as a ``kind``, or lack a weight.
    """
    transformers_logging.disable_progress_bar()  # A bar of its own, over in a moment, would tear ours.
    try:
        loaded, info = loader.from_pretrained(
            directory, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{directory}: cannot be loaded as a {kind}: {reason}") from error
    # transformers would start absent weights at random and only warn.
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{directory}: {len(missing)} weights are missing, first {missing[0]}; restore its files"
        )
    return loaded.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def sees(directory: Path) -> bool:
    """Tell whether a model folder's model takes images."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return False  # Who loads the model says what is wrong with it.
    return config.get("model_type") == SEEING


def text_config(directory: Path) -> PreTrainedConfig:
    """Return the language half's configuration of a model that sees."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return AutoConfig.for_model(**config["text_config"])
