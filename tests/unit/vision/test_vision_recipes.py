"""The recipes for models that see load, with LLaVA-1.5's settings where they claim them."""

import json
from pathlib import Path

import pytest

from mobillama.core.errors import UserError
from mobillama.lineage import kinds
from mobillama.vision.image_set import ImageSet

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture
def language(tmp_path):
    """A folder that says what a released MobiLlama 0.5B's configuration says."""
    from mobillama.model import MobiLlamaConfig

    (tmp_path / "config.json").write_text(json.dumps(MobiLlamaConfig().to_dict()), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "batch", "lr", "language_learns"),
    [("vision-stage1", 256, 1e-3, False), ("vision-stage2", 128, 2e-5, True)],
)
def test_llava_recipes_have_llavas_settings(name, batch, lr, language_learns, language):
    # Source: Liu et al. 2023 (arXiv 2310.03744), table 9.
    recipe = kinds.load(RECIPES / f"{name}.toml", [f'model.start_from="{language}"']).recipe
    assert recipe.name == name and recipe.samples_per_step == batch
    assert recipe.train.optimizer.lr == lr and recipe.train.optimizer.weight_decay == 0
    assert (recipe.learn.projector, recipe.learn.language, recipe.learn.tower) == (
        True,
        language_learns,
        False,
    )
    assert recipe.train.max_epochs == 1 and recipe.data.sequence_length == 2048
    assert recipe.vision.feature_layer == -2 and recipe.data.fit == "pad"
    samples = {256: 558_128, 128: 665_298}[batch]
    steps = -(-samples // batch)
    assert recipe.train.schedule.warmup_steps == pytest.approx(0.03 * steps, abs=1)


def test_the_easy_vqa_recipe_loads_and_names_what_is_wrong():
    recipe = kinds.load(RECIPES / "easy-vqa.toml").recipe
    assert recipe.vision.tower.is_new and recipe.learn.tower
    with pytest.raises(UserError, match=r"learn\.towr is unknown; did you mean tower"):
        kinds.load(RECIPES / "easy-vqa.toml", ["learn.towr=true"])
    with pytest.raises(UserError, match=r"vision\.tower is new"):
        kinds.load(RECIPES / "easy-vqa.toml", ["learn.tower=false"])
    with pytest.raises(UserError, match="needs a frozen tower"):
        kinds.load(RECIPES / "easy-vqa.toml", ["data.cache_features=true"])


def test_the_figures_recipe_holds_out_the_published_split_and_nothing_of_it_is_learnt(shared_data, tmp_path):
    places = [f'images.root="{shared_data / "multimodal"}"', f'images.directory="{tmp_path / "figures"}"']
    recipe = kinds.load(RECIPES / "openstax-figures.toml", places).recipe
    images = ImageSet(kinds.prepare(recipe))
    held, learnt = (
        {one.images[0].sha256 for one in images.examples(split)} for split in ("heldout", "train")
    )
    # One photograph stands in both published splits, 983 and 147 figures.
    assert (len(images.train), len(images.heldout)) == (982, 148) and not held & learnt
