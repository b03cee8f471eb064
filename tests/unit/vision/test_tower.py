"""Towers of our own, inside transformers' LLaVA: shapes, squares of features, saving and loading."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, LlavaForConditionalGeneration

from mobillama.core.errors import UserError
from mobillama.model import MobiLlamaConfig, MobiLlamaForCausalLM
from mobillama.vision.building import composed, freeze, image_rules, open_tower, tower_config
from mobillama.vision.recipe import LearnSection, TowerSection, VisionSection
from mobillama.vision.tower import ConvTowerConfig, ShuffledTowerConfig, shuffled

IMAGE_ID = 20
LANGUAGE = {
    "vocab_size": 21, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
SMALL = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 16,
}


def built(section):
    torch.manual_seed(0)
    return composed(
        section, open_tower(section.tower), MobiLlamaForCausalLM(MobiLlamaConfig(**LANGUAGE)), IMAGE_ID
    )


def test_shuffled_features_are_squares_side_by_side():
    features = torch.arange(16.0).reshape(1, 16, 1)  # 4 x 4, numbered row by row
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert shuffled(features, 2)[0].tolist() == expected


@pytest.mark.parametrize("kind", ["conv", "clip", "siglip"])
@pytest.mark.parametrize("shuffle", [1, 2])
def test_a_llava_with_each_tower_answers_as_many_tokens_saves_and_loads(kind, shuffle, tmp_path):
    layer = -1 if kind == "conv" else -2
    tower = TowerSection(kind=kind, channels=(8, 16), **SMALL)
    model = built(VisionSection(tower=tower, shuffle=shuffle, feature_layer=layer)).eval()
    tokens = model.config.image_seq_length
    assert tokens == (4 // shuffle) ** 2
    ids = torch.tensor([[1, *[IMAGE_ID] * tokens, 2, 3]])
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
        blank = model(input_ids=ids, pixel_values=pixels * 0).logits
    assert not torch.allclose(logits[0, -1], blank[0, -1])  # it looks
    model.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids, pixel_values=pixels).logits, logits)


def test_class_token_and_layer_are_taken_as_llava_does():
    plain = built(VisionSection(tower=TowerSection(kind="clip", **SMALL)))
    wrapped = built(VisionSection(tower=TowerSection(kind="clip", **SMALL), shuffle=2))
    wrapped.model.vision_tower.tower.load_state_dict(plain.model.vision_tower.state_dict())
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        states = plain.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        features = wrapped.model.vision_tower(pixels).last_hidden_state
    assert torch.equal(features, shuffled(states[:, 1:], 2))


def test_towers_are_known_to_transformers():
    for config in (
        ConvTowerConfig(channels=[8, 16]),
        ShuffledTowerConfig(tower=tower_config(TowerSection(kind="clip", **SMALL))),
    ):
        again = type(config).from_dict(config.to_dict())
        assert again.hidden_size == config.hidden_size and type(AutoModel.from_config(again)).config_class


def test_only_the_named_parts_learn():
    model = built(VisionSection(tower=TowerSection(channels=(8, 16), **SMALL), feature_layer=-1))
    freeze(model, LearnSection(projector=True, language=False, tower=False))
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning and all(".multi_modal_projector." in name for name in learning)
    freeze(model, LearnSection())
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "lm_head.weight" in learning and not any(".vision_tower." in name for name in learning)


def test_a_shuffle_that_does_not_divide_the_features_is_refused():
    class Recipe:
        vision = VisionSection(tower=TowerSection(channels=(8, 16), **SMALL), shuffle=3)

        class model:  # noqa: N801
            start_from = None

    with pytest.raises(UserError, match=r"vision\.shuffle = 3 does not divide the 4 features"):
        image_rules(Recipe)


def test_a_tower_that_is_not_here_is_told(tmp_path):
    with pytest.raises(UserError, match="download it, or give its folder"):
        tower_config(TowerSection(path=str(tmp_path)))


def test_the_conv_tower_sees_where_things_are():
    tower = open_tower(TowerSection(channels=(8, 16), **SMALL)).eval()
    image = np.zeros((1, 3, 16, 16), dtype=np.float32)
    image[0, :, :4, 12:] = 1
    with torch.no_grad():
        seen, blank = (tower(torch.from_numpy(x)).last_hidden_state for x in (image, image * 0))
    moved = (seen - blank).abs().sum(-1).reshape(4, 4)
    assert moved.argmax() == 3 and moved[3, 0] < moved[0, 3] / 4  # the upper right corner, first row's last
