"""Any model (device file, checkpoint, run, folder, Hub name) as a language model, with its eye if any."""

from pathlib import Path

from mobillama import engine
from mobillama.core.errors import UserError, require_extra
from mobillama.model.checkpoint import is_hub_name, locate

from .onnx_eye import open_device_file

DEVICE_FILE = ".gguf"


def open_model(
    model: str | Path,
    *,
    threads: int | None = None,
    kv_type: str = "q8_0",
    device: str | None = None,
    dtype: str = "auto",
) -> engine.LanguageModel:
    """Return the language model that ``model`` means; a ``.gguf`` runs without torch.

    Arguments:
        threads: how many compute; all cores if not given.
        kv_type: how a ``.gguf`` model's keys and values are cached.
        device, dtype: of a model in torch; CUDA where present, and the type of its files, if not given.

    Raises:
        UserError: there is no model there, or it cannot be loaded.
    """
    if str(model).endswith(DEVICE_FILE):
        return open_device_file(Path(model), threads=threads, kv_type=kv_type)
    if not Path(model).is_dir() and not is_hub_name(model):
        raise UserError(f"{model}: no such model; give a .gguf file, a checkpoint, a run or a model folder")
    require_extra("train", "torch", "transformers")
    import torch

    from mobillama.model.loading import sees

    if threads is not None:
        torch.set_num_threads(threads)
    directory = locate(model)
    if not sees(directory):
        return open_text_model(directory, device, dtype)
    require_extra("vision", "PIL")
    from .torch_eye import open_checkpoint

    return open_checkpoint(directory, device=device, dtype=dtype)


def open_text_model(directory: Path, device: str | None, dtype: str) -> engine.LanguageModel:
    """Return a folder's model of text only, computed by torch."""
    from mobillama.model import TorchSession
    from mobillama.model.loading import load_language_model

    weights = load_language_model(directory, device=device, dtype=dtype)
    return engine.LanguageModel(
        name=directory.name,
        tokenizer=engine.read_tokenizer(directory),
        open_session=lambda: TorchSession(weights),
        chat_template=engine.read_chat_template(directory),
    )
