import subprocess
import sys

import pytest

from mobillama.core.config import Section, load
from mobillama.core.errors import UserError
from mobillama.model.presets import PRESETS
from mobillama.model.recipe import ModelSection


class Recipe(Section):
    model: ModelSection


def load_text(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return load(path, Recipe).recipe.model


def test_sizes_come_from_the_preset_and_overrides_win(tmp_path):
    section = load_text(
        tmp_path, '[model]\npreset = "mobillama-0.5b"\nnum_hidden_layers = 8\nrope_theta = 5e5\n'
    )
    config = section.config(300, eos_token_id=7)
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (2048, 5632, 32)
    assert (config.num_hidden_layers, config.ffn_of_layer) == (8, [0] * 8)
    assert (config.vocab_size, config.eos_token_id, config.bos_token_id) == (300, 7, None)
    assert config.rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_configuration(preset):
    config = ModelSection(preset=preset).config(32000)
    assert config.hidden_size == PRESETS[preset].hidden_size
    assert config.max_position_embeddings == PRESETS[preset].max_position_embeddings


def test_dump_names_every_value_and_reads_back_as_itself():
    section = ModelSection(preset="small", ffn_sharing="sandwich", ffn_delta_rank=4)
    dumped = section.model_dump(mode="json", exclude={"start_from"})
    assert None not in dumped.values()
    assert dumped["hidden_size"] == PRESETS["small"].hidden_size
    assert ModelSection(**dumped) == section


def test_ffn_sharing_takes_a_list_as_well(tmp_path):
    section = load_text(
        tmp_path, '[model]\npreset = "tiny"\nnum_hidden_layers = 4\nffn_sharing = [0, 1, 1, 0]\n'
    )
    assert section.config(100).ffn_of_layer == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('preset = "tinny"', "run.toml:2: model.preset: no such preset; did you mean tiny?"),
        ("hidden_size = 100", "run.toml:3: model.hidden_size: must be a multiple of 12"),
        ("num_key_value_heads = 4", "run.toml:3: model.num_key_value_heads: must divide"),
        (
            'ffn_sharing = "groups:9"',
            "run.toml:3: model.ffn_sharing: ffn_sharing = 'groups:9': 6 layers can have",
        ),
        ("ffn_sharing = [0, 1]", "run.toml:3: model.ffn_sharing: ffn_of_layer has 2 entries for 6 layers"),
        ("ffn_delta_rnk = 2", "run.toml:3: model.ffn_delta_rnk is unknown; did you mean ffn_delta_rank?"),
        ("num_hidden_layers = 0", "run.toml:3: model.num_hidden_layers:"),
    ],
)
def test_mistake_is_reported_once_with_file_line_and_remedy(tmp_path, line, says):
    text = f"[model]\n{line}\n" if "preset" in line else f'[model]\npreset = "tiny"\n{line}\n'
    with pytest.raises(UserError) as caught:
        load_text(tmp_path, text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipe_accounting_and_checkpoint_search_import_no_torch():
    script = (
        "import sys, mobillama.model, mobillama.model.recipe, mobillama.model.accounting\n"
        "import mobillama.model.checkpoint\n"
        "mobillama.model.recipe.ModelSection(preset='tiny')\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
