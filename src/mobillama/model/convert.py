"""``mobillama convert``: released checkpoints and Llamas become model folders of ours, and ours Llamas.

A plain conversion reads and writes one tensor at a time: memory stays near the size of the largest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from mobillama.core import atomic
from mobillama.core.errors import UserError
from mobillama.core.hashing import hash_file
from mobillama.core.making import write_made_manifest
from mobillama.core.progress import progress
from mobillama.core.records import MANIFEST, manifest_hash
from mobillama.core.tensors import WEIGHTS

from . import checkpoint, llama
from .modeling import MobiLlamaForCausalLM
from .official import Release
from .sharing import ffn_of_layer
from .weight_files import raw_bytes, weight_files

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
KIND = "model"
CALIBRATION_TOKENS = 256
OURS_ALONE = ("model_type", "architectures", "ffn_of_layer", "ffn_delta_rank", "ffn_gains")
# Source: FastChat's "one_shot", which the chat model was tuned with, without its worked example.
CHAT_TEMPLATE = (
    "{%- set system = 'A chat between a curious human and an artificial intelligence assistant. '"
    " ~ 'The assistant gives helpful, detailed, and polite answers to the human\\'s questions.' -%}\n"
    "{%- if messages and messages[0]['role'] == 'system' -%}\n"
    "{%- set system = messages[0]['content'] -%}\n"
    "{%- endif -%}\n"
    "{{- system -}}\n"
    "{%- for message in messages if message['role'] != 'system' -%}\n"
    "{%- set name = 'Human' if message['role'] == 'user' else 'Assistant' -%}\n"
    "{{- '\\n### ' ~ name ~ ': ' ~ message['content'] -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '\\n### Assistant:' -}}{%- endif -%}\n"
)


@dataclass(frozen=True)
class Sharing:
    """How layers that own their FFNs are made to share them.

    Attributes:
        scheme: as in a recipe's `ffn_sharing`: `all`, `pairs`, `groups:4`, ...
        start: what a shared FFN starts as: `mean`, `nearest` or `least-squares`.
        delta_rank: of each layer's own low-rank addition; 0 for none.
        calibration: text for `least-squares`.
    """

    scheme: str
    start: llama.Start = "mean"
    delta_rank: int = 0
    calibration: Path | None = None


def convert(
    source: str | Path,
    destination: Path,
    *,
    average: bool = False,
    sharing: Sharing | None = None,
    stock_llama: bool = False,
) -> Path:
    """Write the model of `source` to `destination` and return `destination`.

    Arguments:
        source: a folder of the release's, of Llama's or of our layout, or a name on the Hub.
        average: take the mean of copies of a released shared FFN that differ.
        sharing: make layers share FFNs that they own.
        stock_llama: write Llama's layout, every layer with its FFN, for tools that know only that.

    Raises:
        UserError: the source cannot be converted; nothing is left at `destination`.
    """
    if destination.exists() and any(destination.iterdir()):
        raise UserError(f"{destination}: is not empty; give a folder that does not exist")
    folder = checkpoint.locate(source)
    checkpoint.require_intact(folder)
    with atomic.atomic_directory(destination) as partial:
        if sharing is None and not stock_llama:
            copy_release(Release(folder, average=average), partial)
        else:
            model = open_model(folder, average=average)
            if sharing is not None:
                model = share(model, folder, sharing)
            write_llama(model, partial) if stock_llama else model.save_pretrained(partial)
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        if is_chat(source, folder) and not has_chat_template(partial):
            atomic.write_text(partial / "chat_template.jinja", CHAT_TEMPLATE)
        write_made_manifest(
            partial, KIND, **origin(source, folder), averaged=average, sharing=facts_of(sharing)
        )
    return destination


def origin(source: str | Path, folder: Path) -> dict[str, Any]:
    """Return what a conversion was made from: a manifest of ours by its hash, other files by theirs."""
    name = str(source) if checkpoint.is_hub_name(source) else folder.name
    if (folder / MANIFEST).is_file():
        return {"converted_from": name, "parent": manifest_hash(folder), "inputs": []}
    files = [folder / "config.json", *(file.path for file in weight_files(folder))]
    inputs = [{"path": path.name, **asdict(hash_file(path))} for path in files]
    return {"converted_from": name, "parent": None, "inputs": inputs}


def facts_of(sharing: Sharing | None) -> dict[str, Any] | None:
    """Return how FFNs came to be shared, as a manifest records it; the calibration text by its hash."""
    if sharing is None:
        return None
    text = None if sharing.calibration is None else hash_file(sharing.calibration).sha256
    return asdict(sharing) | {"calibration": text}


def copy_release(release: Release, directory: Path) -> None:
    """Write a release's weights and configuration as ours, a tensor at a time."""
    check_tokenizer(release)
    entries = list(release.entries())
    shapes = {entry.name: release.shape(entry.sources[0]) for entry in entries}
    dtypes = {
        entry.name: getattr(torch, release.file_of[entry.sources[0]].dtype(entry.sources[0]))
        for entry in entries
    }
    tensors = (release.tensor(entry) for entry in entries)
    write_safetensors(directory / WEIGHTS, shapes, dtypes, tensors)
    release.config.save_pretrained(directory)


def open_model(folder: Path, *, average: bool) -> MobiLlamaForCausalLM:
    """Return the model of a folder of any of the layouts, in memory."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "ffn_of_layer" in settings:
        model = MobiLlamaForCausalLM.from_pretrained(folder, dtype="auto").eval()
        for name, tensor in model.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise UserError(f"{folder}: tensor {name} holds NaN or infinity; do not use it")
        return model
    release = Release(folder, average=average)
    check_tokenizer(release)
    options = {"config": release.config, "state_dict": release.state_dict(), "dtype": "auto"}
    return MobiLlamaForCausalLM.from_pretrained(None, **options).eval()


def share(model: MobiLlamaForCausalLM, folder: Path, sharing: Sharing) -> MobiLlamaForCausalLM:
    """Return the model with shared FFNs."""
    if sharing.start not in llama.STARTS:
        raise UserError(f"--start {sharing.start}: choose one of {', '.join(llama.STARTS)}")
    table = ffn_of_layer(sharing.scheme, model.config.num_hidden_layers)
    batches = calibration_batches(folder, sharing.calibration) if sharing.calibration else None
    return llama.share(model, table, start=sharing.start, delta_rank=sharing.delta_rank, batches=batches)


def calibration_batches(folder: Path, text: Path) -> Iterator[Tensor]:
    """Yield the tokens of a text file, (1, CALIBRATION_TOKENS) at a time.

    Raises:
        UserError: the text cannot be read, or is too short.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = tokenizer.encode(text.read_text(encoding="utf-8")).ids
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{text}: cannot be read as calibration text ({error})") from None
    if len(tokens) < CALIBRATION_TOKENS:
        raise UserError(f"{text}: {len(tokens)} tokens; calibration needs {CALIBRATION_TOKENS} or more")
    for start in range(0, len(tokens) - CALIBRATION_TOKENS + 1, CALIBRATION_TOKENS):
        yield torch.tensor([tokens[start : start + CALIBRATION_TOKENS]])


def write_llama(model: MobiLlamaForCausalLM, directory: Path) -> None:
    """Write a model in Llama's layout."""
    ours = model.config
    kept = {key: value for key, value in ours.to_dict().items() if key not in OURS_ALONE}
    config = LlamaConfig(**kept, architectures=["LlamaForCausalLM"], head_dim=ours.head_dim)
    weights = dict(llama.llama_weights(model))
    if ours.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    dtypes = {name: tensor.dtype for name, tensor in weights.items()}
    write_safetensors(directory / WEIGHTS, shapes, dtypes, weights.values())
    config.save_pretrained(directory)


def write_safetensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    dtypes: dict[str, torch.dtype],
    tensors: Iterable[Tensor] | Iterator[Tensor],
) -> None:
    """Write tensors, given one after another in the order of `shapes`, as a safetensors file.

    Source: the format's own description; safetensors' writer wants all tensors at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        if dtypes[name] not in SAFETENSORS_DTYPES:
            raise UserError(
                f"tensor {name} is {dtypes[name]}; only float32, float16 and bfloat16 are converted"
            )
        size_bytes = torch.Size(shape).numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[dtypes[name]],
            "shape": list(shape),
            "data_offsets": [offset, offset + size_bytes],
        }
        offset += size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to eight bytes
    with path.open("wb") as file, progress("convert", offset / 1e6, "MB") as advance:
        file.write(len(text).to_bytes(8, "little") + text)
        written = 0
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            assert tuple(tensor.shape) == shape and tensor.dtype == dtypes[name]
            written += file.write(raw_bytes(tensor))
            advance(written / 1e6, name)


def check_tokenizer(release: Release) -> None:
    """Stop where a tokenizer has more tokens than the embedding has rows."""
    path = release.folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    try:
        tokens = Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{path}: cannot be read ({error})") from None
    if tokens > release.config.vocab_size:
        raise UserError(
            f"{path}: {tokens} tokens, but model.embed_tokens.weight has {release.config.vocab_size} rows; "
            "the tokenizer is of another model"
        )


def is_chat(source: str | Path, folder: Path) -> bool:
    """Return whether the model's name says that it was tuned for chat."""
    return "chat" in f"{source} {folder.name}".lower()


def has_chat_template(folder: Path) -> bool:
    """Return whether a model folder has a chat template of its own."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
