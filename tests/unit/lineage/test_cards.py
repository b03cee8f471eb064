"""Cards say what the records say, and call nothing disclosed that no record holds."""

import json
import re
import shutil
from pathlib import Path

import pytest
from fixture_run import make_corpus, make_run

from mobillama.core.errors import UserError
from mobillama.core.records import Ledger, manifest_hash
from mobillama.lineage import cards
from mobillama.lineage.transparency import indicators
from mobillama.report.run import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    return make_run(folder / "run", make_corpus(folder / "corpus"))


@pytest.fixture(scope="module")
def texts(run):
    return {path.name: path.read_text() for path in cards.write(run, license="apache-2.0")}


def test_the_model_card_holds_the_numbers_of_the_records(run, texts):
    card = texts["README.md"]
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["subsets"]
    for name, result in last.items():
        assert f"| {name} | " in card and f"| {result['bits_per_byte']:.3f} | 2.5" in card
    assert "8,208 stored parameters: 4 layers with 1 FFN" in card
    assert "| `optimizer.learning_rate` | 0.004 |" in card
    assert card.startswith("---\nlibrary_name: transformers") and "license: apache-2.0" in card


def test_the_data_card_counts_documents_licences_and_drops(run, texts):
    card = texts["DATA_CARD.md"]
    assert manifest_hash(run.parent / "corpus") in card
    assert "| code | CC0-1.0 | 40 |" in card
    assert "| docs | too short | 5 |" in card


def test_the_templates_hold_no_number_of_any_run(texts):
    """A number in a card that is in no record would be one typed by hand."""
    for template in (Path(cards.__file__).parent / "templates").glob("*.md.j2"):
        prose = re.sub(
            r"\{[{%].*?[%}]\}|`[^`]*`|xz -9|zstd -19|SHA-256", "", template.read_text(), flags=re.DOTALL
        )
        assert not re.search(r"(?<![A-Z])\d+\.?\d*", prose), template.name


def test_what_no_record_holds_is_not_called_disclosed(run, texts):
    by_name = {line.indicator: line.disclosed for line in indicators(read_run(run))}
    assert by_name["energy and emissions"] == "no"
    assert by_name["benchmarks"] == "no"
    assert by_name["repeatability, bit for bit"] == "no"
    assert by_name["tamper-evident history"] == "yes"
    assert "| compute | energy and emissions | no | – |" in texts["TRANSPARENCY.md"]


def test_a_replay_changes_the_table_and_a_broken_ledger_ends_it(tmp_path):
    run = make_run(tmp_path / "run", make_corpus(tmp_path / "corpus"))
    Ledger(run / "ledger.jsonl").append("replay", equal=True, first=50, last=100)
    lines = {line.indicator: line for line in indicators(read_run(run))}
    assert lines["repeatability, bit for bit"].evidence == "1 replays in the ledger ended equal"
    text = (run / "ledger.jsonl").read_text()
    (run / "ledger.jsonl").write_text(text.replace('"step":100', '"step":101'))
    with pytest.raises(UserError, match="was changed"):
        cards.write(run)


def test_a_card_of_a_run_whose_corpus_is_elsewhere_names_it_by_hash(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    run, identity = make_run(tmp_path / "run", corpus), manifest_hash(corpus)
    shutil.rmtree(corpus)
    assert identity in cards.render(read_run(run))["DATA_CARD.md"]
