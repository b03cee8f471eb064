"""Opening a device file (.gguf) as a language model."""

from pathlib import Path
from typing import Any

from mobillama.core.environment import processors
from mobillama.core.errors import UserError
from mobillama.core.hashing import blake3_file
from mobillama.core.records import manifest_path, read_manifest

from .language_model import LanguageModel
from .tokenizer import Tokenizer

DEFAULT_THREADS = 2


def load(
    path: Path,
    *,
    threads: int | None = None,
    kv_type: str = "q8_0",
    context: int | None = None,
) -> LanguageModel:
    """Return the language model of a ``.gguf`` file of this project.

    Arguments:
        threads: how many compute; if not given two, or one where this process has one processor only.
        kv_type: how keys and values are cached: ``f16`` or ``q8_0``.
        context: tokens a session can hold; the model's own context length if not given.

    Raises:
        UserError: the file cannot be read, is damaged, or is not of this architecture.
    """
    from . import native

    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a .gguf")
    options: dict[str, Any] = {"kv_type": kv_type}
    # Two threads on one processor, as in a small container, only wait for each other.
    options["threads"] = threads if threads is not None else min(DEFAULT_THREADS, processors())
    if context is not None:
        options["context"] = context
    identity = checked(path)
    model = native.Model(path, **options)
    metadata = dict(model.metadata)
    return LanguageModel(
        name=str(metadata.get("general.name") or path.stem),
        tokenizer=tokenizer_of(metadata, path),
        open_session=model.session,
        chat_template=metadata.get("tokenizer.chat_template"),
        metadata=metadata,
        identity=identity,
        image_token=metadata.get("mobillama.vision.image_token"),
    )


def checked(path: Path) -> str:
    """Return the BLAKE3 of a device file, which its manifest must name where one lies beside it.

    Raises:
        UserError: the file or its manifest was changed.
    """
    identity = blake3_file(path)
    if manifest_path(path).is_file():
        (entry,) = read_manifest(path)["files"]
        if entry["blake3"] != identity:
            raise UserError(f"{path}: content differs from the manifest; restore it or make it again")
    return identity


def tokenizer_of(metadata: dict[str, Any], path: Path) -> Tokenizer:
    """Return the tokenizer that a device file carries.

    Raises:
        UserError: it carries none.
    """
    definition = metadata.get("tokenizer.huggingface.json")
    if not isinstance(definition, str):
        raise UserError(f"{path}: tokenizer.huggingface.json is missing; quantize the checkpoint again")
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    begins = (
        metadata.get("tokenizer.ggml.bos_token_id") if metadata.get("tokenizer.ggml.add_bos_token") else None
    )
    return Tokenizer(definition, frozenset(int(end) for end in ends if end is not None), begins)
