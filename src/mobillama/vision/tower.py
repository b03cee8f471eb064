"""Vision towers of our own: one small enough to learn from scratch, and one that hands on fewer tokens.

Both are transformers models that LLaVA takes as its ``vision_tower``, like CLIP's and SigLIP's.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

NORM_GROUPS = 8


class ConvTowerConfig(PreTrainedConfig):
    """Sizes of a `ConvTower`.

    Arguments:
        image_size: side of the square image, in pixels.
        channels: of each stage; every stage halves the side, and the last one's are the features.
    """

    model_type = "mobillama_conv_tower"

    image_size: int = 64
    channels: list[int] | tuple[int, ...] = (32, 64, 96, 128)
    initializer_range: float = 0.02

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self.channels[-1]

    @property
    def patch_size(self) -> int:
        """Side, in pixels, of what one feature stands for."""
        return 2 ** len(self.channels)


class ConvTower(PreTrainedModel):
    """A stack of strided convolutions: where data are few, their locality is worth more than attention.

    Source: Xiao et al. 2021 (arXiv 2106.14881) on convolutional stems; here the stem is all there is.
    """

    config: ConvTowerConfig
    config_class = ConvTowerConfig
    main_input_name = "pixel_values"
    base_model_prefix = "tower"

    def __init__(self, config: ConvTowerConfig) -> None:
        super().__init__(config)
        inputs = (3, *config.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)
            for before, after in zip(inputs, config.channels, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(NORM_GROUPS, width) for width in config.channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start convolutions so that their outputs keep the size of their inputs."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Return features (N, tokens, hidden_size) of images (N, 3, image_size, image_size), row by row."""
        states = pixel_values.to(self.norms[0].weight.dtype)  # pyright: ignore
        for stage, norm in zip(self.stages, self.norms, strict=True):
            states = nn.functional.gelu(norm(stage(states)))
        features = states.flatten(2).transpose(1, 2)  # (N, tokens, hidden_size)
        return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=(features,))


AutoConfig.register(ConvTowerConfig.model_type, ConvTowerConfig, exist_ok=True)
AutoModel.register(ConvTowerConfig, ConvTower, exist_ok=True)


class ShuffledTowerConfig(PreTrainedConfig):
    """A tower and how its features become fewer tokens.

    Arguments:
        tower: the configuration of the tower inside.
        shuffle: side of the square of features that becomes one.
        feature_layer: which of the inner tower's hidden states are the features.
        drop_first: whether the first of them is no part of the image (CLIP's class token).
    """

    model_type = "mobillama_shuffled_tower"
    sub_configs: ClassVar[dict[str, Any]] = {"tower": AutoConfig}

    tower: Any = None
    shuffle: int = 2
    feature_layer: int = -2
    drop_first: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.tower, dict):
            self.tower = AutoConfig.for_model(**self.tower)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self.tower.hidden_size * self.shuffle**2 if self.tower is not None else 0

    @property
    def image_size(self) -> int:
        """Side of the square image, in pixels."""
        return self.tower.image_size

    @property
    def patch_size(self) -> int:
        """Side, in pixels, of what one feature stands for."""
        return self.tower.patch_size * self.shuffle


class ShuffledTower(PreTrainedModel):
    """Any tower, with each square of its features laid side by side as one wide feature.

    Source: pixel shuffle as in Chen et al. 2024 (InternVL 1.5, arXiv 2404.16821), section 3.2.
    """

    config: ShuffledTowerConfig
    config_class = ShuffledTowerConfig
    main_input_name = "pixel_values"
    base_model_prefix = "shuffled"
    _supports_sdpa = True

    def __init__(self, config: ShuffledTowerConfig) -> None:
        super().__init__(config)
        self.tower = AutoModel.from_config(config.tower)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Return features (N, tokens / shuffle^2, hidden_size) of images (N, 3, image_size, image_size)."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        features = shuffled(
            states[self.config.feature_layer][:, self.config.drop_first :], self.config.shuffle
        )
        return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=(features,))


def shuffled(features: Tensor, side: int) -> Tensor:
    """Return (N, T, W) features, T of them a square, as (N, T / side^2, W * side^2)."""
    across = round(features.shape[1] ** 0.5)
    grid = features.unflatten(1, (across // side, side, across // side, side))  # (N, Y, side, X, side, W)
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)


AutoConfig.register(ShuffledTowerConfig.model_type, ShuffledTowerConfig, exist_ok=True)
AutoModel.register(ShuffledTowerConfig, ShuffledTower, exist_ok=True)
