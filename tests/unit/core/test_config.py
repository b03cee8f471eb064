import pytest

from mobillama.core import config
from mobillama.core.errors import UserError


class Train(config.Section):
    lr: float = 1e-3
    steps: int


class Recipe(config.Section):
    name: str
    train: Train


GOOD = 'name = "a"\n\n[train]\nlr = 0.5\nsteps = 3\n'


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write


def test_every_value_knows_where_it_came_from(recipe_file):
    loaded = config.load(recipe_file('name = "a"\n[train]\nsteps = 3\n'), Recipe, ["train.steps=7"])
    assert loaded.recipe.train.steps == 7
    assert loaded.origins == {
        "name": "run.toml:1",
        "train.steps": "--set train.steps=7",
        "train.lr": "default",
    }


def test_unknown_key_is_answered_with_file_line_path_and_nearest_name(recipe_file):
    with pytest.raises(UserError, match=r"run\.toml:4: train\.lrr is unknown; did you mean lr\?"):
        config.load(recipe_file('name = "a"\n\n[train]\nlrr = 0.5\nsteps = 3\n'), Recipe)


def test_all_problems_are_reported_at_once(recipe_file):
    with pytest.raises(UserError) as caught:
        config.load(recipe_file('[train]\nlr = "fast"\nsteps = 1.5\n'), Recipe)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith("run.toml:2: train.lr:") and "fast" in line for line in lines)
    assert any("name: Field required" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "a.b=value"),
        ("train.step=2", "train.step is unknown; did you mean steps"),
        ("name.x=1", "table"),
    ],
)
def test_bad_override_is_one_clear_line(recipe_file, override, message):
    with pytest.raises(UserError, match=message):
        config.load(recipe_file(GOOD), Recipe, [override])


def test_override_values_are_toml_and_bare_words_are_strings():
    assert config.parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert config.parse_override("a=true") == ("a", True)
    assert config.parse_override("a=tiny") == ("a", "tiny")


@pytest.mark.parametrize("text", ["name = ", "\xff"])
def test_what_is_not_toml_names_the_file(recipe_file, text):
    path = recipe_file("")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"run\.toml: not TOML"):
        config.load(path, Recipe)


def test_a_missing_recipe_names_the_path(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        config.load(tmp_path / "none.toml", Recipe)
