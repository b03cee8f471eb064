"""What a recipe of a model that sees has of its own: ``[images]``, ``[data]``, ``[vision]``, ``[learn]``."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from mobillama.core.config import Section
from mobillama.model.recipe import ModelSection

Share = Annotated[float, Field(ge=0, lt=1)]
Kind = Literal["llava", "jsonl", "parquet", "webdataset", "easy_vqa", "figures"]
Template = Literal["vicuna", "plain", "caption"]


class ImageSourceSection(Section):
    """One source of conversations about images, ``[[images.sources]]``."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    kind: Kind
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files relative to ``images.root``; ``*`` is a pattern."""
    folder: Path = Path()
    """For ``llava`` and ``jsonl``: what the images' paths are relative to, from ``images.root``."""
    license: str
    split: str = "train"
    """For ``easy_vqa`` and ``figures``: which of their own splits."""
    heldout: bool = False
    """All of it is held out; otherwise ``images.heldout_share`` is."""


class ImageTokenizerSection(Section):
    """Train a byte-level BPE on the conversations, or take one that exists, ``[images.tokenizer]``."""

    vocab_size: Annotated[int, Field(ge=258)] = 512
    path: Path | None = None
    """A ``tokenizer.json``; ``<image>`` is added as its last token if it lacks one."""
    end_of_text: str = "<|endoftext|>"


class ImagesSection(Section):
    """What ``mobillama prepare`` makes of images, ``[images]``."""

    directory: Path
    root: Path = Path()
    sources: Annotated[tuple[ImageSourceSection, ...], Field(min_length=1)]
    tokenizer: ImageTokenizerSection = ImageTokenizerSection()
    template: Template = "vicuna"
    heldout_share: Share = 0.0
    """Of the images, chosen by the hash of their content: no held-out image is trained on."""
    on_bad: Literal["stop", "quarantine"] = "stop"
    shard_bytes: PositiveInt = 256 << 20
    workers: Annotated[int, Field(ge=0)] = 0
    """Threads that decode; 0 takes one for each processor."""


Weights = dict[str, Annotated[float, Field(ge=0)]]


class PhaseSection(Section):
    """Another mixture for the first samples of a run, ``[[data.phases]]``."""

    samples: PositiveInt
    weights: Weights


class VisionDataSection(Section):
    """How training reads prepared images, ``[data]``."""

    sequence_length: PositiveInt = 2048
    """Longer conversations are cut."""
    weights: Weights | None = None
    """Share of the samples by category (a source's name, unless its records name one); else by size."""
    phases: tuple[PhaseSection, ...] = ()
    """Mixtures to begin with, one after another: what is hard to learn may need to come first."""
    length_groups: Annotated[int, Field(ge=1)] = 1
    """Batches over which samples are sorted by length, so that little is padded; 1 leaves them as drawn."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    tiles: Annotated[int, Field(ge=0)] = 0
    """Most tiles a large image is cut into beside the whole."""
    blind: bool = False
    """Show every image as plain grey: a control that learns what can be told without sight."""
    cache_features: bool = False
    """Compute the features of a frozen tower once and keep them beside the images."""
    workers: PositiveInt = 4
    """Threads that decode images while the model computes."""


class TowerSection(Section):
    """What encodes images, ``[vision.tower]``: a pretrained tower's folder, or a new one."""

    path: str | None = None
    """A folder or Hub name of a CLIP or SigLIP model (its vision part is taken), or of a tower of ours."""
    kind: Literal["conv", "clip", "siglip"] = "conv"
    image_size: PositiveInt = 64
    channels: tuple[PositiveInt, ...] = (32, 64, 96, 128)
    """Of a ``conv`` tower's stages."""
    hidden_size: PositiveInt = 192
    num_hidden_layers: PositiveInt = 6
    num_attention_heads: PositiveInt = 3
    patch_size: PositiveInt = 8

    @property
    def is_new(self) -> bool:
        """Whether it starts without any training."""
        return self.path is None


class VisionSection(Section):
    """Between image and language model, ``[vision]``."""

    tower: TowerSection = TowerSection()
    feature_layer: int = -2
    """Hidden states that are taken as features; -2 is LLaVA's, the last but one."""
    shuffle: PositiveInt = 1
    """Side of the squares of features that become one token (pixel shuffle): 2 leaves a quarter of them."""


class LearnSection(Section):
    """Which parts learn, ``[learn]``: in LLaVA's stage 1 the projector, in stage 2 the language model too."""

    projector: bool = True
    language: bool = True
    tower: bool = False
    tower_lr: Annotated[float, Field(gt=0)] | None = None
    """The tower's own learning rate; ``train.optimizer.lr`` when not given."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Above 0, the language model's matrices stay and learn additions of this rank (LoRA)."""

    @model_validator(mode="after")
    def _language_learns(self) -> "LearnSection":
        if self.lora_rank and not self.language:
            raise ValueError("learn.lora_rank is how the language model learns; set learn.language = true")
        return self


class VisionSections(Section):
    """What a recipe has where a model learns to see."""

    images: ImagesSection
    data: VisionDataSection = VisionDataSection()
    model: ModelSection
    vision: VisionSection = VisionSection()
    learn: LearnSection = LearnSection()

    @model_validator(mode="before")
    @classmethod
    def _names_of_tables(cls, values: Any) -> Any:
        if isinstance(values, dict) and "corpus" in values:
            raise ValueError("[corpus] is for text; [images] says what this model learns from")
        return values

    @model_validator(mode="after")
    def _frozen_features(self) -> "VisionSections":
        if self.data.cache_features and self.learn.tower:
            raise ValueError("data.cache_features needs a frozen tower: set learn.tower = false")
        if self.vision.tower.is_new and not self.learn.tower and self.model.start_from is None:
            raise ValueError("vision.tower is new: give vision.tower.path, or set learn.tower = true")
        if self.learn.lora_rank and self.model.start_from is None:
            raise ValueError("learn.lora_rank adds to a model that has learnt: give model.start_from")
        return self
