"""Bad input: named with file and line, and either a stop or a line in quarantine; never silence."""

import base64
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mobillama.core.errors import UserError
from mobillama.data import prepare
from mobillama.data.readers import BadInput, read_unit
from mobillama.data.recipe import CorpusSection
from mobillama.data.sources import plan_units

MIB = 1 << 20
GOOD = b'{"text": "a good line, long enough to keep"}\n'
MANY = b"".join(b'{"text": "line %d of a file that is cut"}\n' % n for n in range(50_000))


def section(root: Path, name: str, kind: str = "jsonl", **changes: Any) -> CorpusSection:
    """Return a recipe that reads one file."""
    subset = {"name": "s", "kind": kind, "paths": [name], "license": "CC0"}
    values = {"directory": root / "corpus", "root": root, "subsets": [subset], "workers": 1}
    return CorpusSection.model_validate(values | changes)


def read(root: Path, name: str, kind: str = "jsonl") -> tuple[int, list[BadInput]]:
    """Return how many documents a file gives, and its bad input."""
    recipe = section(root, name, kind)
    items = [item for unit in plan_units(recipe) for item in read_unit(recipe, unit)]
    bad = [item for item in items if isinstance(item, BadInput)]
    return len(items) - len(bad), bad


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"text": "no end\n', "not JSON: Unterminated string"),
        (b"\n{oops}\n"[1:], "not JSON: Expecting property name"),
        (b'["a", "list"]\n', "not a JSON object but list"),
        (b'{"txt": "x"}\n', "field 'text' is missing"),
        (b'{"text": null}\n', "field 'text' is missing"),
        (b'{"text": ["x"]}\n', "field 'text' is list, not text"),
        (b'{"text": "caf\xe9"}\n', "not UTF-8: byte 13 is 0xe9"),
        (b'{"text": "half \\ud83d pair"}\n', "half a surrogate pair at character 5"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (b'{"text": "' + b"x" * (50 * MIB) + b'"}\n', "a document of 52,428,800 bytes"),
    ],
    ids=["cut", "syntax", "list", "missing", "null", "kind", "utf8", "surrogate", "nested", "50MB"],
)
def test_a_bad_line_is_named_and_the_lines_around_it_are_read(tmp_path: Path, line: bytes, error: str):
    (tmp_path / "data.jsonl").write_bytes(GOOD + line + b"\n" + GOOD)
    good, bad = read(tmp_path, "data.jsonl")
    assert good == 2
    assert [(item.file, item.line) for item in bad] == [("data.jsonl", 2)]
    assert error in bad[0].error
    assert bad[0].raw == line


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_truncated_compression_is_reported_after_the_lines_before_it(tmp_path: Path, suffix: str, compress):
    whole = compress(MANY)
    (tmp_path / f"data.jsonl{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
    good, bad = read(tmp_path, f"data.jsonl{suffix}")
    assert 0 <= good < 50_000
    assert len(bad) == 1
    assert "cut off" in bad[0].error
    assert bad[0].line == good + 1


@pytest.mark.parametrize(("kind", "name"), [("jsonl", "e.jsonl"), ("text", "e.txt"), ("jsonl", "e.jsonl.xz")])
def test_an_empty_file_is_reported(tmp_path: Path, kind: str, name: str):
    (tmp_path / name).write_bytes(lzma.compress(b"") if name.endswith(".xz") else b"")
    assert read(tmp_path, name, kind) == (0, [BadInput(name, 1, "the file is empty", b"")])


def test_bad_text_files_are_reported(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "long.txt").write_bytes(b"x" * (21 * MIB))
    assert read(tmp_path, "latin.txt", "text")[1][0].error == "not UTF-8: byte 3 is 0xe9"
    assert "a document of 22,020,096 bytes" in read(tmp_path, "long.txt", "text")[1][0].error


def test_bad_parquet_is_reported_with_its_row(tmp_path: Path):
    column = pa.array([b"good", b"caf\xe9", b"good", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "rows.parquet")
    good, bad = read(tmp_path, "rows.parquet", "parquet")
    assert good == 2
    assert [(item.line, item.error) for item in bad] == [
        (2, "not UTF-8: byte 3 is 0xe9"),
        (4, "field 'text' is missing"),
    ]
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    assert "Parquet data is damaged" in read(tmp_path, "cut.parquet", "parquet")[1][0].error


def test_stop_names_file_line_and_remedy_and_leaves_no_corpus(tmp_path: Path):
    (tmp_path / "data.jsonl").write_bytes(GOOD * 3 + b"{oops}\n" + GOOD)
    with pytest.raises(
        UserError, match=r"^data\.jsonl:4: not JSON: .*; mend the file, or set corpus\.on_bad"
    ):
        prepare(section(tmp_path, "data.jsonl"))
    assert not (tmp_path / "corpus").exists()


def test_quarantine_keeps_every_bad_line_and_goes_on(tmp_path: Path):
    texts = [b'{"text": "%s"}\n' % (b"document number %d " % n * 9) for n in range(30)]
    (tmp_path / "data.jsonl").write_bytes(
        b"".join(texts[:10]) + b"{oops}\n" + b"caf\xe9\n" + b"".join(texts[10:])
    )
    directory = prepare(section(tmp_path, "data.jsonl", on_bad="quarantine", tokenizer={"vocab_size": 300}))
    kept = [json.loads(line) for line in (directory / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"]) for line in kept] == [("data.jsonl", 11), ("data.jsonl", 12)]
    assert [base64.b64decode(line["raw"]) for line in kept] == [b"{oops}\n", b"caf\xe9\n"]
    counts = json.loads((directory / "manifest.json").read_text())["subsets"]["s"]
    assert counts["quarantined"] == 2
    documents = (
        counts["train"]["documents"] + counts["heldout"]["documents"] + sum(counts["dropped"].values())
    )
    assert documents == 30
