"""The `[model]` table of a recipe: a preset, a sharing scheme, and sizes that differ from the preset."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from mobillama.core.config import Section
from mobillama.core.errors import UserError, did_you_mean

from . import sharing
from .presets import PRESETS, Preset

if TYPE_CHECKING:
    from .configuration import MobiLlamaConfig

FROM_PRESET: Any = Field(default=None, validate_default=True)
SET_BY_PRESET = tuple(field.name for field in dataclasses.fields(Preset))
Count = Annotated[int, Field(ge=1)]


class ModelSection(Section):
    """What is built. Values that are not given are the preset's, and a dump names them all.

    `ffn_sharing` is a scheme (`all`, `none`, `pairs`, `groups:k`, `cycle:k`, `sandwich`, `middle`)
    or the FFN index of each layer.
    """

    preset: str
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

    @field_validator("preset")
    @classmethod
    def check_preset(cls, preset: str) -> str:
        """Refuse a preset that does not exist."""
        if preset not in PRESETS:
            hint = did_you_mean(preset, PRESETS) or f"; choose one of {', '.join(PRESETS)}"
            raise ValueError(f"no such preset{hint}")
        return preset

    @field_validator(*SET_BY_PRESET, mode="before")
    @classmethod
    def take_from_preset(cls, value: Any, info: ValidationInfo) -> Any:
        """Fill in what the recipe leaves to its preset."""
        # A wrong preset is reported once, by its own field; the others then pass with any values.
        preset = PRESETS[info.data.get("preset", "tiny")]
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

        sizes = self.model_dump(exclude={"preset", "ffn_sharing"})
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
