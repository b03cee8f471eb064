"""The `[model]` table of a recipe: a preset, a sharing scheme, and sizes that differ from the preset.

Or a model that exists, to go on from: `start_from`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mobillama.core.config import Section
from mobillama.core.errors import UserError, did_you_mean

from . import checkpoint, sharing
from .presets import PRESETS, Preset

if TYPE_CHECKING:
    from .configuration import MobiLlamaConfig

FROM_PRESET: Any = Field(default=None, validate_default=True)
SET_BY_PRESET = tuple(field.name for field in dataclasses.fields(Preset))
Count = Annotated[int, Field(ge=1)]
# What a model's configuration and `[model]` call alike; not all of them are a preset's.
SIZES = (
    "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_size",
    "ffn_delta_rank", "ffn_gains", "tie_word_embeddings", "max_position_embeddings", "rms_norm_eps",
    "initializer_range", "attention_dropout",
)  # fmt: skip


class ModelSection(Section):
    """What is built. Values that are not given are the preset's, and a dump names them all.

    `ffn_sharing` is a scheme (`all`, `none`, `pairs`, `groups:k`, `cycle:k`, `sandwich`, `middle`)
    or the FFN index of each layer.
    """

    preset: str | None = None
    start_from: Path | None = None
    """A checkpoint, a run (its last) or a converted model of ours, whose weights and sizes training begins
    with. Sizes that are given as well have to be its own."""
    num_hidden_layers: Count = FROM_PRESET
    intermediate_size: Count = FROM_PRESET
    num_attention_heads: Count = FROM_PRESET
    num_key_value_heads: Count = FROM_PRESET
    hidden_size: Count = FROM_PRESET
    ffn_sharing: str | list[int] = FROM_PRESET
    ffn_delta_rank: int = Field(default=0, ge=0)
    ffn_gains: bool = False
    tie_word_embeddings: bool = FROM_PRESET
    max_position_embeddings: Count = FROM_PRESET
    rope_theta: float = Field(default=10000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    initializer_range: float = Field(default=0.02, gt=0)
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def take_from_start(cls, values: Any) -> Any:
        """Fill in the sizes of the model to start from."""
        if not isinstance(values, dict):
            return values
        if values.get("start_from") is None:
            if values.get("preset") is None:
                raise ValueError(f"give a preset ({', '.join(PRESETS)}), or start_from")
            return values
        # A run's own recipe names them all, and is read also where that model is no longer.
        if not Path(values["start_from"]).exists():
            if set(SET_BY_PRESET) <= values.keys():
                return values
            raise ValueError(f"start_from: {values['start_from']}: no such folder")
        try:
            folder, own = sizes_of(values["start_from"])
        except UserError as error:
            raise ValueError(f"start_from: {error}") from None
        for key, value in own.items():
            given = values.get(key, value)
            if key == "ffn_sharing" and isinstance(given, str):
                given = sharing.ffn_of_layer(given, own["num_hidden_layers"])
            if given != value:
                raise ValueError(f"{key} = {given}, but {folder} has {value}; leave it out")
        return {**values, **own, "start_from": folder}

    @field_validator("preset")
    @classmethod
    def check_preset(cls, preset: str | None) -> str | None:
        """Refuse a preset that does not exist."""
        if preset is not None and preset not in PRESETS:
            hint = did_you_mean(preset, PRESETS) or f"; choose one of {', '.join(PRESETS)}"
            raise ValueError(f"no such preset{hint}")
        return preset

    @field_validator(*SET_BY_PRESET, mode="before")
    @classmethod
    def take_from_preset(cls, value: Any, info: ValidationInfo) -> Any:
        """Fill in what the recipe leaves to its preset."""
        # A wrong preset is reported once, by its own field; the others then pass with any values.
        preset = PRESETS[info.data.get("preset") or "tiny"]
        return getattr(preset, info.field_name or "") if value is None else value

    @field_validator("num_key_value_heads")
    @classmethod
    def check_kv_heads(cls, kv_heads: int, info: ValidationInfo) -> int:
        """Refuse KV heads that cannot be shared evenly."""
        heads = info.data.get("num_attention_heads", kv_heads)
        if heads % kv_heads:
            raise ValueError(f"must divide num_attention_heads = {heads}")
        return kv_heads

    @field_validator("hidden_size")
    @classmethod
    def check_hidden_size(cls, hidden_size: int, info: ValidationInfo) -> int:
        """Refuse a width that does not give heads of even width."""
        heads = info.data.get("num_attention_heads", 1)
        if hidden_size % (2 * heads):
            raise ValueError(f"must be a multiple of {2 * heads} with num_attention_heads = {heads}")
        return hidden_size

    @field_validator("ffn_sharing")
    @classmethod
    def check_sharing(cls, ffn_sharing: str | list[int], info: ValidationInfo) -> str | list[int]:
        """Refuse a scheme or a list that does not fit the layers."""
        if layers := info.data.get("num_hidden_layers"):
            try:
                table_of(ffn_sharing, layers)
            except UserError as error:
                raise ValueError(str(error)) from None
        return ffn_sharing

    @property
    def ffn_of_layer(self) -> list[int]:
        """The FFN index of each layer."""
        return table_of(self.ffn_sharing, self.num_hidden_layers)

    def config(self, vocab_size: int, **token_ids: int | None) -> MobiLlamaConfig:
        """Return the model's configuration for a vocabulary. Imports torch.

        Arguments:
            vocab_size: entries of the tokenizer.
            token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id` where the tokenizer has them.
        """
        from .configuration import MobiLlamaConfig

        sizes = self.model_dump(exclude={"preset", "start_from", "ffn_sharing"})
        tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **token_ids}
        return MobiLlamaConfig(vocab_size=vocab_size, ffn_of_layer=self.ffn_of_layer, **sizes, **tokens)


def table_of(ffn_sharing: str | list[int], layers: int) -> list[int]:
    """Return the FFN index of each layer, from a scheme or a list.

    Raises:
        UserError: neither fits.
    """
    if isinstance(ffn_sharing, str):
        return sharing.ffn_of_layer(ffn_sharing, layers)
    sharing.require_valid(ffn_sharing, layers)
    return ffn_sharing


def sizes_of(model: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a model of ours, and what `[model]` says of one like it.

    Raises:
        UserError: there is no model, or it is of another architecture.
    """
    folder = checkpoint.locate(model)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)  # Of a model that sees, its language half.
        sizes = {name: config[name] for name in SIZES}
        sizes["ffn_sharing"] = config["ffn_of_layer"]
        sizes["rope_theta"] = config["rope_parameters"]["rope_theta"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: no model of ours ({error!r} in config.json); mobillama convert makes it one"
        ) from None
    return folder, sizes
