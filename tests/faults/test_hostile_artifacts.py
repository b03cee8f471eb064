"""Artifacts that mean harm: refused, nothing executed, nothing written outside."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
from fixture_run import make_corpus, make_run, write_safetensors

from mobillama import report
from mobillama.core import records
from mobillama.core.errors import UserError
from mobillama.core.records import write_manifest
from mobillama.core.tensors import TensorFile
from mobillama.lineage.gguf_header import read_gguf_header
from mobillama.lineage.inspect import describe
from mobillama.lineage.verify import verify


class Bomb:
    """Unpickling this leaves a file behind."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "model.safetensors"])
def test_a_pickle_with_code_in_it_is_named_and_never_run(tmp_path, name):
    folder, target = tmp_path / "model", tmp_path / "exploded"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / name).write_bytes(pickle.dumps(Bomb(target)))
    if name.endswith(".safetensors"):
        with pytest.raises(UserError, match="do not use it"):
            describe(folder)
    else:
        assert "may be a pickle" in describe(folder).notes[0]
        assert describe(folder / name).kind == "pickle"
    write_manifest(folder, "checkpoint", step=1)
    (problem,) = verify(folder)
    assert problem.path == folder / name
    assert "pickle" in problem.what or "do not use it" in problem.what
    assert describe(folder).intact is False
    assert not target.exists()


def test_a_safetensors_header_of_10_gb_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 10_000_000_000) + b"{")
        file.truncate(10_000_000_100)  # A sparse file: it takes no room and would take all memory if read.
    with pytest.raises(UserError, match="claims a header of 10,000,000,000 bytes"):
        describe(path)


def safetensors_with(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"short"),
        ({"x": {"dtype": "F32", "shape": [1 << 40, 1 << 24], "data_offsets": [0, 0]}}, b""),
        ({"x": {"dtype": "U8", "shape": [-4], "data_offsets": [0, -4]}}, b""),
        ({"x": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]}}, b"abcd"),
        ({"x": {"dtype": "EVIL", "shape": [4], "data_offsets": [0, 4]}}, b"abcd"),
        ({"x": {"shape": [4]}}, b"abcd"),
        ({"x": 3}, b""),
        (
            {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in ("x", "y")},
            b"abcdefgh",
        ),
        ({"x": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, b"abcdefgh"),
        ({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"abcdefgh"),
        ([1], b""),
    ],
    ids=[
        "short",
        "overflow",
        "negative-shape",
        "before-data",
        "dtype",
        "no-offsets",
        "no-entry",
        "overlap",
        "hole",
        "trailing",
        "list",
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header, data):
    with pytest.raises(UserError, match="do not use it"):
        TensorFile(safetensors_with(tmp_path / "a.safetensors", header, data))


def test_deeply_nested_json_is_refused(tmp_path):
    text = b"[" * 200_000
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UserError):
        TensorFile(path)
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(UserError):
        records.read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "a\x00b"])
def test_a_manifest_that_leads_out_is_refused(tmp_path, name):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "a").write_text("a")
    (tmp_path / "outside").write_text("secret")
    write_manifest(folder, "corpus")
    record = json.loads((folder / "manifest.json").read_text())
    record["files"][0]["path"] = name
    record["digest"] = records.digest(record)
    (folder / "manifest.json").write_text(json.dumps(record))
    (problem,) = verify(folder)
    assert "outside its own directory" in problem.what
    with pytest.raises(UserError, match="outside its own directory"):
        describe(folder)


def test_links_out_of_the_folder_are_refused(tmp_path):
    folder, outside = tmp_path / "artifact", tmp_path / "outside"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "a").write_text("a")
    write_manifest(folder, "corpus")
    (folder / "part").rename(outside)
    (folder / "part").symlink_to(outside)
    assert "link out of its directory" in verify(folder)[0].what
    with pytest.raises(UserError, match="link out"):
        records.require_intact(folder, "corpus")


def test_a_weight_index_that_leads_out_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(tmp_path / "outside.safetensors", {"x": ("F32", np.ones(2, np.float32))})
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../outside.safetensors"}}')
    with pytest.raises(UserError, match="outside its own folder"):
        describe(folder)


GGUF_START = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    "rest",
    [
        struct.pack("<QQ", 1 << 60, 0),
        struct.pack("<QQ", 0, 1 << 60),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 62) + bytes(40),
        struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 5, 1 << 61),
        struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<I", 77) + bytes(40),
        struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<I", 1 << 31) + bytes(40),
        struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0),
        b"",
    ],
    ids=["tensors", "values", "string", "array", "type", "dimensions", "outside", "cut"],
)
def test_a_gguf_header_that_lies_is_refused(tmp_path, rest):
    path = tmp_path / "a.gguf"
    path.write_bytes(GGUF_START + rest)
    with pytest.raises(UserError, match="do not use it"):
        read_gguf_header(path)


def test_a_hostile_run_writes_nothing_but_its_own_page(tmp_path):
    make_run(tmp_path / "run", make_corpus(tmp_path / "corpus"))
    recipe = tmp_path / "run" / "run.toml"
    recipe.write_text(recipe.read_text().replace('run_dir = "', 'run_dir = "../../../etc'))
    records.Ledger(tmp_path / "run" / records.LEDGER).append("warning", reason="a hostile author vouches")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    report.write(tmp_path / "run")
    after = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert after - {path.relative_to(tmp_path).as_posix() for path in before} == {
        "run/report.html",
        "run/.timeline.json",
    }
