"""Released MobiLlama checkpoints: found on the Hub, read in every form they were published in.

The base models are fp32 pickle shards with the shared FFN written once for every layer; the chat model
is bf16 safetensors with it written under one layer's name. Their configuration says four KV heads where
the weights have all 32. What is true is read off the tensors.

Source: the release of arXiv 2402.16840 (MBZUAI/MobiLlama-05B, -08B, -1B, -05B-Chat).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mobillama.core.errors import UserError

from . import checkpoint
from .configuration import MobiLlamaConfig
from .weight_files import WeightFile, weight_files

FFN_KEY = re.compile(r"model\.layers\.(\d+)\.mlp\.((?:gate|up|down)_proj\.weight)")
LAYER_KEY = re.compile(r"model\.layers\.(\d+)\.(?:self_attn\.[qkvo]_proj|\w+_layernorm)\.weight")
TOP_KEYS = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
# Buffers that old transformers saved; they are computed from rope_theta.
IGNORED_KEY = re.compile(r".*rotary_emb\.inv_freq")
BIAS_KEY = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj\.bias")
# Of Llama's arithmetic and layout where they have no biases and look back without a window.
LLAMA_LIKE = ("llama", "mistral", "qwen2", MobiLlamaConfig.model_type)
FFN_PARTS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
# FFNs trained apart are about 1.4 norms away from each other; copies of one are not.
UNRELATED = 0.5
FINITE_PIECE = 1 << 22


def find(model: str | Path | None, **options: Any) -> Path | None:
    """Return the local folder of a released checkpoint that `from_pretrained` is asked for, else None.

    Arguments:
        options: of `from_pretrained`; `revision`, `cache_dir`, `local_files_only` and `token` count.
    """
    if model is None or options.get("state_dict") is not None:
        return None
    if (Path(model) / "config.json").is_file():
        return Path(model) if is_release(Path(model)) else None
    if not checkpoint.is_hub_name(model):
        return None
    from huggingface_hub import hf_hub_download, snapshot_download

    places = {
        key: options[key] for key in ("revision", "cache_dir", "local_files_only", "token") if key in options
    }
    try:
        settings = Path(hf_hub_download(str(model), "config.json", **places))
        if not is_release(settings.parent):
            return None
        return Path(snapshot_download(str(model), allow_patterns=checkpoint.HUB_FILES, **places))
    except OSError:  # transformers says what is wrong
        return None


def is_release(folder: Path) -> bool:
    """Return whether a model folder is MobiLlama's with its FFNs under the layers, as in the release."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if settings.get("model_type") == MobiLlamaConfig.model_type:
        return "ffn_of_layer" not in settings
    return settings.get("model_type") == "llama" and "mobillama" in json.dumps(settings.get("auto_map", {}))


@dataclass(frozen=True)
class Entry:
    """One of our weights, and the stored tensors it comes from: one, or copies to be averaged."""

    name: str
    sources: tuple[str, ...]


class Release:
    """A released checkpoint, or any of Llama's layout, opened without reading its weights.

    Arguments:
        average: take the mean of copies of the shared FFN that differ.

    Raises:
        UserError: a file or a tensor is missing, has a wrong shape, or is not of this architecture; or
            copies of the shared FFN differ. The message names file and tensor.
    """

    def __init__(self, folder: Path, *, average: bool = False):
        self.folder = folder
        self.settings = read_settings(folder)
        self.files = weight_files(folder)
        self.average = average
        self.file_of: dict[str, WeightFile] = {}
        for file in self.files:
            for name in file.names():
                if BIAS_KEY.fullmatch(name):
                    require_zero(file, name)
                elif not IGNORED_KEY.fullmatch(name):
                    self.file_of[name] = file
        self.layers = self._require_layers()
        self.config = self._config()
        self._check_shapes()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a stored tensor's shape."""
        return self.file_of[name].shape(name)

    def read(self, name: str) -> Tensor:
        """Return a stored tensor.

        Raises:
            UserError: it holds values that are not numbers.
        """
        tensor = self.file_of[name].read(name)
        # In pieces: what `isfinite` computes is twice as large as the tensor.
        if not all(bool(piece.isfinite().all()) for piece in tensor.flatten().split(FINITE_PIECE)):
            raise UserError(f"{self.file_of[name].path}: tensor {name} holds NaN or infinity; do not use it")
        return tensor

    def _require_layers(self) -> int:
        """Return the number of layers, after checking that every tensor is known and none is missing."""
        layers: int = self.settings["num_hidden_layers"]
        found = {int(match.group(1)) for name in self.file_of if (match := LAYER_KEY.fullmatch(name))}
        if not found:
            raise UserError(f"{self.folder}: no model.layers.N.self_attn weights; not a Llama-like model")
        if layers != max(found) + 1:
            raise UserError(
                f"{self.folder}: config.json says {layers} layers, the weights have {max(found) + 1}; "
                "one of them is of another model"
            )
        for name, file in self.file_of.items():
            if name not in TOP_KEYS and not LAYER_KEY.fullmatch(name) and not FFN_KEY.fullmatch(name):
                raise UserError(
                    f"{file.path}: tensor {name} is of no MobiLlama or Llama; cannot be converted"
                )
        tied = bool(self.settings.get("tie_word_embeddings"))
        wanted = [name for name in TOP_KEYS if not (tied and name == "lm_head.weight")]
        for layer in range(layers):
            wanted += [f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkvo"]
            wanted += [
                f"model.layers.{layer}.{norm}_layernorm.weight" for norm in ("input", "post_attention")
            ]
        self._require(wanted)
        return layers

    def _require(self, names: list[str]) -> None:
        if missing := [name for name in names if name not in self.file_of]:
            raise UserError(
                f"{self.folder}: {len(missing)} tensors are missing, first {missing[0]}; is a file missing?"
            )

    def _config(self) -> MobiLlamaConfig:
        """Return our configuration: the release's own, corrected by what the tensors show."""
        hidden_size = self.settings["hidden_size"]
        heads = self.settings["num_attention_heads"]
        head_dim = hidden_size // heads
        kv_heads = self.shape("model.layers.0.self_attn.k_proj.weight")[0] // head_dim
        stated = self.settings.get("num_key_value_heads", heads)
        if kv_heads != stated:
            warnings.warn(
                f"{self.folder / 'config.json'}: says num_key_value_heads = {stated}; the weights have "
                f"{kv_heads}, which is used",
                stacklevel=2,
            )
        kept = {
            key: value for key, value in self.settings.items() if key in MobiLlamaConfig.__dataclass_fields__
        }
        dtype = self.file_of[TOP_KEYS[0]].dtype(TOP_KEYS[0])
        kept |= {"num_key_value_heads": kv_heads, "ffn_of_layer": self.table, "dtype": dtype}
        kept["architectures"] = ["MobiLlamaForCausalLM"]
        if (theta := self.settings.get("rope_theta")) is not None and "rope_parameters" not in kept:
            kept["rope_theta"] = theta
        if (scaling := self.settings.get("rope_scaling")) is not None:
            kept["rope_parameters"] = {"rope_theta": theta or 10000.0, **scaling}
        return MobiLlamaConfig(**kept)

    def _check_shapes(self) -> None:
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        kv_size = config.num_key_value_heads * config.head_dim
        shapes = {
            "model.embed_tokens.weight": (config.vocab_size, hidden),
            "lm_head.weight": (config.vocab_size, hidden),
            "model.norm.weight": (hidden,),
        }
        by_part = {
            "q_proj": (hidden, hidden),
            "k_proj": (kv_size, hidden),
            "v_proj": (kv_size, hidden),
            "o_proj": (hidden, hidden),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }
        for name, file in self.file_of.items():
            wanted = shapes.get(name) or by_part[name.split(".")[-2]]
            if self.shape(name) != wanted:
                raise UserError(
                    f"{file.path}: tensor {name} is {list(self.shape(name))}, "
                    f"config.json asks for {list(wanted)}"
                )

    @cached_property
    def table(self) -> list[int]:
        """Which FFN each layer uses: one where one is stored or all copies are equal, else one each.

        Raises:
            UserError: some copies are equal and some are not, or they differ by little.
        """
        holders = sorted({int(match.group(1)) for name in self.file_of if (match := FFN_KEY.fullmatch(name))})
        if not holders:
            raise UserError(f"{self.folder}: no model.layers.N.mlp weights; is a file missing?")
        self._require([ffn_key(layer, part) for layer in holders for part in FFN_PARTS])
        if len(holders) == 1:
            return [0] * self.layers
        if len(holders) != self.layers:
            absent = next(layer for layer in range(self.layers) if layer not in holders)
            raise UserError(
                f"{self.folder}: tensor {ffn_key(absent, FFN_PARTS[0])} is missing; is a file missing?"
            )
        if self.average:
            return [0] * self.layers
        return self._compare_copies()

    def _compare_copies(self) -> list[int]:
        """Return the table of a model with an FFN stored under every layer."""
        digests = [
            tuple(self.file_of[key].digest(key) for key in (ffn_key(layer, part) for part in FFN_PARTS))
            for layer in range(self.layers)
        ]
        if len(set(digests)) == 1:
            return [0] * self.layers
        if len(set(digests)) == self.layers and self._are_unrelated():
            return list(range(self.layers))
        usual = max(digests, key=digests.count)
        layer = next(layer for layer, digest in enumerate(digests) if digest != usual)
        part = next(part for part, a, b in zip(FFN_PARTS, digests[layer], usual, strict=True) if a != b)
        key = ffn_key(layer, part)
        raise UserError(
            f"{self.file_of[key].path}: tensor {key} differs from the copies of the shared FFN in other "
            "layers; --average takes their mean"
        )

    def _are_unrelated(self) -> bool:
        """Return whether every layer's FFN is far from the first layer's: then each layer owns one."""
        first = self.read(ffn_key(0, FFN_PARTS[0])).float()
        return all(
            float((self.read(ffn_key(layer, FFN_PARTS[0])).float() - first).norm())
            > UNRELATED * float(first.norm())
            for layer in range(1, self.layers)
        )

    def entries(self) -> Iterator[Entry]:
        """Yield our weights, in the order of the layers, each with what it comes from."""
        for name in self.file_of:
            if not FFN_KEY.fullmatch(name) and not (
                self.config.tie_word_embeddings and name == "lm_head.weight"
            ):
                yield Entry(name, (name,))
        for ffn in range(self.config.num_ffns):
            users = [layer for layer, used in enumerate(self.table) if used == ffn]
            for part in FFN_PARTS:
                stored = tuple(
                    ffn_key(layer, part) for layer in users if ffn_key(layer, part) in self.file_of
                )
                if not stored:
                    stored = (next(name for name in self.file_of if name.endswith(f".mlp.{part}")),)
                yield Entry(f"model.ffns.{ffn}.{part}", stored if self.average else stored[:1])

    def tensor(self, entry: Entry) -> Tensor:
        """Return one of our weights, in the type it is stored in."""
        first = self.read(entry.sources[0])
        if len(entry.sources) == 1:
            return first
        total = first.double()
        for name in entry.sources[1:]:
            total += self.read(name)
        return (total / len(entry.sources)).to(first.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of our weights, memory-mapped where the files allow it."""
        return {entry.name: self.tensor(entry) for entry in self.entries()}


def require_zero(file: WeightFile, name: str) -> None:
    """Stop at a bias that does something; one of zeros may be left out."""
    if bool(file.read(name).any()):
        raise UserError(f"{file.path}: tensor {name} is not zero, and our layers have no biases")


def ffn_key(layer: int, part: str) -> str:
    """Return the release's name of a layer's FFN weight."""
    return f"model.layers.{layer}.mlp.{part}"


def read_settings(folder: Path) -> dict[str, Any]:
    """Return a model folder's `config.json`.

    Raises:
        UserError: it cannot be read, or is of another architecture.
    """
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json here; give a model folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    kind = settings.get("model_type")
    if kind not in LLAMA_LIKE or settings.get("ffn_of_layer") is not None:
        what = "already ours" if settings.get("ffn_of_layer") is not None else f"of type {kind!r}"
        raise UserError(f"{path}: the model is {what}; only Llama's and the release's layout are converted")
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size"):
        if type(settings.get(key)) is not int:
            raise UserError(f"{path}: {key} is missing or no whole number")
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    if window is not None and window < settings.get("max_position_embeddings", window):
        raise UserError(
            f"{path}: its layers see only {window} tokens back (sliding_window), ours see all; to convert it "
            f"for texts of up to {window} tokens, set max_position_embeddings to that"
        )
    return settings
