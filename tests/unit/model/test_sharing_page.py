"""docs/sharing.md says what the code does."""

import re
from pathlib import Path

import pytest

from mobillama.model import ModelSection
from mobillama.model.accounting import BITS_PER_WEIGHT, parameters, weight_bytes
from mobillama.model.sharing import COUNTED_SCHEMES, SCHEMES, ffn_of_layer

PAGE = (Path(__file__).parents[3] / "docs" / "sharing.md").read_text(encoding="utf-8")


def rows(columns):
    """Return the cells of each table row of that many columns whose first cell names schemes."""
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line] for line in lines if len(line) == columns]
    return [(scheme, *row[1:]) for row in cells for scheme in re.findall(r"`([^`]+)`", row[0])]


@pytest.mark.parametrize(("scheme", "table", "_"), rows(3))
def test_each_scheme_gives_the_table_of_the_page(scheme, table, _):
    assert ffn_of_layer(scheme, 8) == [int(ffn) for ffn in table.split()]


def test_every_scheme_is_on_the_page():
    assert {row[0].partition(":")[0] for row in rows(3)} == {*SCHEMES, *COUNTED_SCHEMES}


@pytest.mark.parametrize(("scheme", "ffns", "stored_m", "file_mb"), rows(4))
def test_costs_on_the_page_are_the_formulas(scheme, ffns, stored_m, file_mb):
    config = ModelSection(preset="mobillama-0.5b", ffn_sharing=scheme).config(32000)
    assert config.num_ffns == int(ffns)
    assert f"{parameters(config).stored / 1e6:.1f}" == stored_m
    assert f"{weight_bytes(config, BITS_PER_WEIGHT['q4_0']) / 1e6:.0f}" == file_mb
    assert f"{parameters(config).active / 1e6:,.0f} M parameters" in PAGE
