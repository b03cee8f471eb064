"""Packed checkpoints come back bit for bit, share what is equal, and damage in the store is named."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from fixture_run import make_corpus, make_run, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama.core.errors import UserError
from mobillama.core.records import digest, manifest_hash, write_manifest
from mobillama.lineage.encoding import decode, encode, read_header
from mobillama.lineage.store import Store, pack
from mobillama.lineage.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    make_run(folder / "run", make_corpus(folder / "corpus"))
    pack(folder / "run")
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy") / "run"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 300), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_bits_come_back_with_or_without_a_base(itemsize, count, near, seed):
    random = np.random.default_rng(seed)
    kind = np.dtype(f"<u{itemsize}")
    base = np.frombuffer(random.bytes(count * itemsize), kind)
    other = np.frombuffer(random.bytes(count * itemsize), kind)
    values = base + kind.type(3) if near else other
    for against in (None, base):
        assert np.array_equal(decode(encode(values, against, "0" * 64), against), values)


def test_every_checkpoint_is_exported_bit_for_bit(run, tmp_path):
    store = Store(run / "packed")
    assert len(store.names()) == 8
    for name in store.names():
        store.export(name, tmp_path / "out" / name)
    done = subprocess.run(
        ["diff", "-r", run / "checkpoints", tmp_path / "out"], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stdout


def test_an_exported_checkpoint_opens_with_safetensors_as_before(run, tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    Store(run / "packed").export("step-00000100", tmp_path / "out")
    before = load_file(run / "checkpoints" / "step-00000100" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)


def test_equal_files_and_tensors_are_stored_once(run):
    store = Store(run / "packed")
    configs = {store.record(name)["files"]["config.json"][0]["object"] for name in store.names()}
    assert len(configs) == 1


def test_neighbours_that_hardly_differ_cost_little(tmp_path):
    run = make_run(tmp_path / "run", make_corpus(tmp_path / "corpus"), peak=1e-7)
    packed = pack(run)
    alone = run / "packed" / "alone"
    first_bytes = Store(alone).add(run / "checkpoints" / "step-00000050", None)
    assert packed.stored_bytes < 8 * first_bytes / 2


def test_packing_again_adds_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in (run / "packed").rglob("*") if path.is_file()}
    assert pack(run).steps == []
    assert before == {path: path.stat().st_mtime_ns for path in (run / "packed").rglob("*") if path.is_file()}


def test_removed_folders_are_still_verified_by_ledger_and_parents_and_come_back(run, tmp_path):
    identity = manifest_hash(run / "checkpoints" / "step-00000150")
    pack(run, remove=True)
    # The last, and those with a state to resume from.
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000350", "step-00000400"]
    assert verify(run) == []
    Store(run / "packed").export("step-00000150", tmp_path / "step-00000150")
    assert manifest_hash(tmp_path / "step-00000150") == identity
    assert verify(tmp_path / "step-00000150") == []


def test_one_flipped_bit_in_an_object_or_record_is_named(run, tmp_path):
    objects = sorted(path for path in (run / "packed" / "objects").rglob("*") if path.is_file())
    records = sorted((run / "packed").glob("step-*.json"))
    for path in (*objects[:: len(objects) // 12], *records[:2]):
        data = path.read_bytes()
        for bit in (7, len(data) * 4, len(data) * 8 - 3):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert path in {problem.path for problem in Store(run / "packed").check()}, (path, bit)
        path.write_bytes(data)
    assert Store(run / "packed").check() == []


def test_an_object_whose_name_of_its_base_was_changed_is_named(run):
    store = Store(run / "packed")
    for path in (path for path in (run / "packed" / "objects").rglob("*") if path.is_file()):
        data = path.read_bytes()
        if base := read_header(data)[0].base:
            break
    assert store.object_path(base).is_file()
    path.write_bytes(data.replace(base.encode(), b"0" * 64))
    assert path.read_bytes() != data
    assert path in {problem.path for problem in store.check()}
    with pytest.raises(UserError, match=f"{path}.*missing"):
        store.get(path.name)


def test_nothing_is_exported_from_a_damaged_store(run, tmp_path):
    store = Store(run / "packed")
    part = store.record("step-00000200")["files"]["model.safetensors"][3]["object"]
    store.object_path(part).unlink()
    with pytest.raises(UserError, match="missing"):
        store.export("step-00000200", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert any("missing" in problem.what for problem in verify(run))


def test_a_record_that_leads_out_is_refused(run, tmp_path):
    path = run / "packed" / "step-00000100.json"
    record = json.loads(path.read_text())
    record["files"]["config.json"][0]["object"] = "../../../outside"
    record["digest"] = digest(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="do not use it"):
        Store(run / "packed").export("step-00000100", tmp_path / "out")


def test_objects_that_rest_on_each_other_in_a_circle_are_refused(run):
    store = Store(run / "packed")
    ours = np.random.default_rng(0).integers(0, 1 << 32, 4000, np.uint32)
    names = ["a" * 64, "b" * 64]
    for name, base in zip(names, reversed(names), strict=True):
        store.object_path(name).parent.mkdir(exist_ok=True)
        store.object_path(name).write_bytes(encode(ours, ours + np.uint32(1), base))
    assert all(read_header(store.object_path(name).read_bytes())[0].base for name in names)
    with pytest.raises(UserError, match="against itself"):
        store.get(names[0])


def test_a_broken_checkpoint_is_not_packed(tmp_path):
    run = make_run(tmp_path / "run", make_corpus(tmp_path / "corpus"))
    (run / "checkpoints" / "step-00000100" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json"):
        pack(run)
    assert Store(run / "packed").names() == ["step-00000050"]


def test_a_checkpoint_with_other_shapes_is_packed_by_itself(tmp_path):
    run = make_run(tmp_path / "run", make_corpus(tmp_path / "corpus"))
    folder = run / "checkpoints" / "step-00000100"
    write_safetensors(folder / "model.safetensors", {"model.norm.weight": ("F32", np.ones(7, np.float32))})
    write_manifest(folder, "checkpoint", step=100)
    pack(run)
    Store(run / "packed").export("step-00000100", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
