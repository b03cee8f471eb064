"""Sources: the same documents out of every format, and the standard library as text."""

import gzip
import json
import lzma
import platform
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from mobillama.core.errors import UserError
from mobillama.data import stdlib
from mobillama.data.readers import read_unit
from mobillama.data.recipe import CorpusSection
from mobillama.data.sources import Unit, plan_units

ROWS = [
    {"text": "first text", "url": "https://one.example", "terms": "CC0", "n": 7},
    {"text": "zwei, drei \n vier", "url": "https://two.example", "terms": "MIT", "n": 8},
]
RAW = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(root: Path, **subset: object) -> list:
    """Return everything that one subset's units yield."""
    values = {"name": "s", "source_field": "url", "license_field": "terms", "id_field": "n"} | subset
    section = CorpusSection.model_validate({"directory": root / "out", "root": root, "subsets": [values]})
    return [item for unit in plan_units(section) for item in read_unit(section, unit)]


def fields(documents: list) -> list[tuple]:
    """Return what a source must say of each document."""
    return [(d.id, d.metadata["source"], d.metadata["license"], d.text) for d in documents]


EXPECTED = [(str(row["n"]), row["url"], row["terms"], row["text"]) for row in ROWS]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor().compress),
        (
            ".zst",
            lambda raw: b"".join(zstandard.ZstdCompressor().compress(part) for part in (raw[:9], raw[9:])),
        ),
    ],
)
def test_json_lines_read_the_same_through_every_compression(tmp_path: Path, suffix, compress):
    (tmp_path / f"rows.jsonl{suffix}").write_bytes(compress(RAW))
    assert fields(read(tmp_path, kind="jsonl", paths=["rows.jsonl*"])) == EXPECTED


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_reads_the_same(tmp_path: Path, kind):
    table = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]})
    pq.write_table(table.set_column(0, "text", table["text"].cast(kind)), tmp_path / "rows.parquet")
    assert fields(read(tmp_path, kind="parquet", paths=["rows.parquet"])) == EXPECTED


def test_a_data_set_is_streamed(tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(RAW)
    assert fields(read(tmp_path, kind="hub", hub=str(tmp_path / "set"))) == EXPECTED


@pytest.mark.network
def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    documents = read(
        tmp_path, kind="hub", hub="stas/openwebtext-10k", id_field=None, source_field=None,
        license_field=None, license="unknown",
    )  # fmt: skip
    assert len(documents) == 10_000


def test_an_unknown_data_set_is_a_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match="data set no/such-set cannot be opened"):
        read(tmp_path, kind="hub", hub="no/such-set")


def test_text_files_and_folders_are_one_document_a_file(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one.md").write_text("one", encoding="utf-8")
    (tmp_path / "a" / "b" / "two.md.gz").write_bytes(gzip.compress("zwei ä".encode()))
    (tmp_path / "a" / "three.txt").write_text("three", encoding="utf-8")
    plain = {"source_field": None, "license_field": None, "license": "CC0", "id_field": None}
    texts = read(tmp_path, kind="text", paths=["a/three.txt"], **plain)
    assert fields(texts) == [("a/three.txt", "a/three.txt", "CC0", "three")]
    found = read(tmp_path, kind="directory", paths=["a"], pattern="**/*.md*", **plain)
    assert [(d.id, d.text) for d in found] == [("a/b/two.md.gz", "zwei ä"), ("a/one.md", "one")]


def test_a_path_that_names_nothing_is_a_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing\.jsonl: no such file \(subset s\)"):
        read(tmp_path, kind="jsonl", paths=["nothing.jsonl"])


def test_a_subset_without_a_licence_is_refused():
    subset = {"name": "s", "kind": "jsonl", "paths": ["a"]}
    with pytest.raises(ValidationError, match="either license or license_field"):
        CorpusSection.model_validate({"directory": "x", "subsets": [subset]})


def test_the_standard_library_is_two_subsets_of_modules_with_source_and_licence(tmp_path: Path):
    files = stdlib.module_files()
    assert len(files) > 400
    assert not [file for file in files if {"test", "tests", "site-packages"}.intersection(file.split("/"))]
    assert sum((stdlib.folder() / file).stat().st_size for file in files) > 4_000_000
    some = {"json/decoder.py", "asyncio/__init__.py", "this.py", stdlib.TOPICS}
    parts = {}
    for part in ("docs", "code"):
        subset = {"name": "s", "kind": "stdlib", "part": part}
        section = CorpusSection.model_validate({"directory": tmp_path, "subsets": [subset]})
        chosen = tuple(file for unit in plan_units(section) for file in unit.files if file.name in some)
        parts[part] = {item.id: item for item in read_unit(section, Unit(0, chosen))}
    assert set(parts["code"]) == {"json.decoder", "asyncio", "this"}
    code, docs = parts["code"]["json.decoder"], parts["docs"]["json.decoder.__doc__"]
    assert code.text == Path(stdlib.folder() / "json" / "decoder.py").read_text(encoding="utf-8")
    assert "JSONDecoder.decode(self, s, _w=WHITESPACE.match)\n\nReturn the Python representation" in docs.text
    assert code.metadata["group"] == docs.metadata["group"]
    assert code.metadata["license"] == docs.metadata["license"] == "PSF-2.0"
    assert code.metadata["source"] == f"json.decoder, Python {platform.python_version()}"
    assert "truth value" in parts["docs"]["pydoc_data.topics:truth"].text.lower()
    assert "this.__doc__" not in parts["docs"]
