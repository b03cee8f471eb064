from pathlib import Path

import pytest

from mobillama.core import config
from mobillama.core.errors import UserError
from mobillama.train.recipe import Recipe

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
    if "[images]" not in path.read_text(encoding="utf-8")  # tests/unit/vision loads those
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    recipe = config.load(path, Recipe).recipe
    assert recipe.name == path.stem


def test_the_papers_recipe_has_the_papers_settings():
    recipe = config.load(next(path for path in RECIPES if path.stem == "mobillama-0.5b"), Recipe).recipe
    assert recipe.train.batch_tokens == 800 * 2048
    assert recipe.train.optimizer.lr * recipe.train.schedule.final_factor == pytest.approx(3e-5)
    assert recipe.model.ffn_of_layer == [0] * 22
    assert sum(recipe.data.weights.values()) == pytest.approx(1259.11)  # billions of tokens


def test_a_batch_that_is_no_whole_number_of_samples_is_refused():
    with pytest.raises(UserError, match=r"batch_tokens = 1000 is no multiple of data\.sequence_length = 256"):
        config.load(
            next(path for path in RECIPES if path.stem == "quickstart"), Recipe, ["train.batch_tokens=1000"]
        )
