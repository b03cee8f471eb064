import pytest
import torch
import toy_run

from mobillama.core import config
from mobillama.data import prepare
from mobillama.train.recipe import Recipe


@pytest.fixture(scope="session")
def toy_recipe(tmp_path_factory):
    """A toy recipe whose corpus is prepared; tests give each run a directory of its own."""
    torch.set_num_threads(1)
    path = toy_run.write_toy(tmp_path_factory.mktemp("toy"))
    prepare(config.load(path, Recipe).recipe.corpus)
    return path


@pytest.fixture
def load(toy_recipe, tmp_path):
    """Return the toy recipe with overrides and a run directory of the test's own."""

    def load_with(*overrides):
        return config.load(toy_recipe, Recipe, [f'run_dir="{tmp_path / "run"}"', *overrides])

    return load_with
