"""From a recipe to a LLaVA: tower, projector and language model, new or from an earlier run."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mobillama.core.errors import UserError
from mobillama.model import MobiLlamaForCausalLM, checkpoint
from mobillama.model.loading import load_language_model
from mobillama.model.lora import add_lora

from .images import CLIP_MEAN, CLIP_STD, PROCESSOR_FILE, ImageRules
from .loading import load_vision_model
from .recipe import LearnSection, TowerSection, VisionSection, VisionSections
from .tower import ConvTowerConfig, ShuffledTowerConfig

PRETRAINED: dict[str, Any] = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}
HALF = (0.5, 0.5, 0.5)
TOWER, PROJECTOR, LANGUAGE = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."


def sees(folder: Path) -> bool:
    """Return whether a model folder holds a LLaVA, not a model of text only."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type") == LlavaConfig.model_type


def image_rules(recipe: VisionSections) -> ImageRules:
    """Return how images are shown to the model that a recipe describes, without building it.

    Raises:
        UserError: the tower is not here, or its features make no whole squares to shuffle.
    """
    if recipe.model.start_from is not None and sees(folder := checkpoint.locate(recipe.model.start_from)):
        return ImageRules.read(folder)
    section = recipe.vision
    config = tower_config(section.tower)
    side = config.image_size // config.patch_size
    if side % section.shuffle:
        raise UserError(
            f"vision.shuffle = {section.shuffle} does not divide the {side} features on a side of "
            f"{config.image_size} pixels; give a divisor"
        )
    mean, std = colours(section.tower, config)
    return ImageRules(
        image_size=config.image_size, tokens=(side // section.shuffle) ** 2,
        fit=recipe.data.fit, tiles=recipe.data.tiles, mean=mean, std=std,
    )  # fmt: skip


def colours(section: TowerSection, config: PreTrainedConfig) -> tuple[Any, Any]:
    """Return the mean and deviation that a tower wants its pixels to have had."""
    if section.path is not None and (file := Path(section.path) / PROCESSOR_FILE).is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        if "image_mean" in values:
            return tuple(values["image_mean"]), tuple(values["image_std"])
    return (CLIP_MEAN, CLIP_STD) if config.model_type == "clip_vision_model" else (HALF, HALF)


def tower_config(section: TowerSection) -> Any:
    """Return a tower's configuration.

    Raises:
        UserError: a pretrained tower is not here.
    """
    if section.path is None:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
        sizes = {name: getattr(section, name) for name in names}
        new = {
            "clip": lambda: CLIPVisionConfig(**sizes, intermediate_size=4 * section.hidden_size),
            "siglip": lambda: SiglipVisionConfig(
                **sizes, intermediate_size=4 * section.hidden_size, vision_use_head=False
            ),
            "conv": lambda: ConvTowerConfig(image_size=section.image_size, channels=list(section.channels)),
        }
        return new[section.kind]()
    try:
        config = AutoConfig.from_pretrained(section.path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"vision.tower.path: {section.path} cannot be read ({reason}); download it, or give its folder"
        ) from None
    return getattr(config, "vision_config", config)


def open_tower(section: TowerSection) -> PreTrainedModel:
    """Return a tower in fp32: its pretrained weights, or new ones.

    Raises:
        UserError: a pretrained tower is not here.
    """
    config = tower_config(section)
    if section.path is None:
        return AutoModel.from_config(config)
    kind = PRETRAINED.get(config.model_type, AutoModel)
    try:
        return kind.from_pretrained(section.path, config=config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"vision.tower.path: {section.path} cannot be loaded ({reason})") from None


def build_model(
    recipe: VisionSections, *, vocab_size: int, image_id: int, end_id: int
) -> LlavaForConditionalGeneration:
    """Return the model before its first step, in fp32, with what does not learn frozen.

    Arguments:
        vocab_size: tokens of the image set's tokenizer, the image's own included.

    Raises:
        UserError: a part to start from is not here or does not fit.
    """
    start = recipe.model.start_from
    if start is not None and sees(checkpoint.locate(start)):
        model = load_vision_model(start, device="cpu", dtype=torch.float32)
        held = model.config.get_text_config().vocab_size
        if held < vocab_size or model.config.image_token_id != image_id:
            raise UserError(
                f"{start}: not made with the tokenizer of images.directory; prepare them with its own"
            )
    else:
        language = language_model(recipe, vocab_size, end_id)
        model = composed(recipe.vision, open_tower(recipe.vision.tower), language, image_id)
    freeze(model, recipe.learn)
    return model


def language_model(recipe: VisionSections, vocab_size: int, end_id: int) -> MobiLlamaForCausalLM:
    """Return the language model, new or as it was, with a row for every token."""
    section = recipe.model
    if section.start_from is None:
        return MobiLlamaForCausalLM(section.config(vocab_size, bos_token_id=end_id, eos_token_id=end_id))
    model = load_language_model(section.start_from, device="cpu", dtype=torch.float32)
    if model.config.vocab_size < vocab_size:
        # One row more, for the image's token; a new row's values are never used.
        model.resize_token_embeddings(vocab_size)
    return model  # pyright: ignore[reportReturnType]


def composed(
    section: VisionSection, tower: PreTrainedModel, language: MobiLlamaForCausalLM, image_id: int
) -> LlavaForConditionalGeneration:
    """Return a LLaVA of these parts, with a new projector between them."""
    inner: Any = tower.config
    layer, drop_first = section.feature_layer, inner.model_type == "clip_vision_model"
    vision: Any = inner
    if section.shuffle > 1:
        vision = ShuffledTowerConfig(
            tower=inner, shuffle=section.shuffle, feature_layer=layer, drop_first=drop_first
        )
        layer, drop_first = -1, False
    new_config: Any = LlavaConfig  # The base class takes more names than its type says.
    config = new_config(
        vision_config=vision,
        text_config=language.config,
        image_token_index=image_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if drop_first else "full",
        tie_word_embeddings=language.config.tie_word_embeddings,
        initializer_range=language.config.initializer_range,
        bos_token_id=language.config.bos_token_id,
        eos_token_id=language.config.eos_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    held: Any = model.model.vision_tower
    (held.tower if section.shuffle > 1 else held).load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    if not config.tie_word_embeddings:
        model.lm_head.load_state_dict(language.lm_head.state_dict())
    return model


def freeze(model: LlavaForConditionalGeneration, section: LearnSection) -> None:
    """Let only the parts learn that a recipe names."""
    language = section.language and not section.lora_rank
    learns = {TOWER: section.tower, PROJECTOR: section.projector, LANGUAGE: language}
    for name, weight in model.named_parameters():
        part = next((prefix for prefix in learns if name.startswith(prefix)), LANGUAGE)
        weight.requires_grad_(learns[part])
    if section.lora_rank:
        add_lora(model.model.language_model, section.lora_rank)


def rates_of(section: LearnSection) -> dict[str, float]:
    """Return the learning rates of parts that have their own."""
    return {TOWER: section.tower_lr} if section.tower and section.tower_lr else {}
