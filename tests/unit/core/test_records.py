import hashlib
import json
import subprocess

import pytest

from mobillama.core import records
from mobillama.core.errors import UserError
from mobillama.core.hashing import canonical_json


@pytest.fixture
def artifact(tmp_path):
    directory = tmp_path / "artifact"
    (directory / "part").mkdir(parents=True)
    (directory / "a.bin").write_bytes(bytes(range(200)))
    (directory / "part" / "b.txt").write_text("text")
    records.write_manifest(directory, "corpus", documents=2)
    return directory


def test_manifest_agrees_with_sha256sum(artifact):
    entries = {entry["path"]: entry for entry in records.read_manifest(artifact, "corpus")["files"]}
    printed = subprocess.run(
        ["sha256sum", artifact / "a.bin"], capture_output=True, text=True, check=True
    ).stdout
    assert entries["a.bin"]["sha256"] == printed.split()[0]
    assert entries["a.bin"]["size_bytes"] == 200
    assert records.check_files(artifact) == []


def test_equal_content_gives_equal_manifests(artifact):
    before = records.manifest_hash(artifact)
    assert records.write_manifest(artifact, "corpus", documents=2) == before
    assert records.write_manifest(artifact, "corpus", documents=3) != before


def test_every_flipped_bit_is_found(artifact):
    data = bytearray((artifact / "a.bin").read_bytes())
    for bit in (0, 777, 1599):
        data[bit // 8] ^= 1 << bit % 8
        (artifact / "a.bin").write_bytes(data)
        assert [problem.path.name for problem in records.check_files(artifact)] == ["a.bin"]
        data[bit // 8] ^= 1 << bit % 8


def test_missing_extra_and_truncated_files_are_named(artifact):
    (artifact / "a.bin").write_bytes(b"short")
    (artifact / "part" / "b.txt").unlink()
    (artifact / "c.txt").write_text("new")
    found = {problem.path.name: problem.what for problem in records.check_files(artifact)}
    assert found == {
        "a.bin": "5 bytes, 200 recorded",
        "b.txt": "missing",
        "c.txt": "not named in the manifest",
    }
    with pytest.raises(UserError, match=r"a\.bin"):
        records.require_intact(artifact, "corpus")


def test_a_link_out_of_the_directory_is_a_problem(artifact, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes((artifact / "a.bin").read_bytes())
    (artifact / "a.bin").unlink()
    (artifact / "a.bin").symlink_to(outside)
    assert "link out" in str(records.check_files(artifact)[0])


def test_what_a_hub_and_its_client_add_is_no_part_of_an_artifact(artifact, tmp_path):
    (artifact / ".gitattributes").write_text("*.safetensors filter=lfs")
    (artifact / ".cache" / "huggingface").mkdir(parents=True)
    (artifact / ".cache" / "huggingface" / "a.metadata").write_text("etag")
    assert records.check_files(artifact) == []
    # The client's cache: content by its hash, and for each revision links to it.
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("a.bin", "part/b.txt", records.MANIFEST):
        (snapshot / name).parent.mkdir(exist_ok=True)
        (artifact / name).rename(blobs / name.replace("/", "-"))
        (snapshot / name).symlink_to(blobs / name.replace("/", "-"))
    assert records.check_files(snapshot) == []
    (blobs / "a.bin").rename(tmp_path / "outside")
    (snapshot / "a.bin").unlink()
    (snapshot / "a.bin").symlink_to(tmp_path / "outside")
    assert "link out" in str(records.check_files(snapshot)[0])


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_names_files_outside_is_refused(artifact, path):
    manifest = artifact / records.MANIFEST
    record = json.loads(manifest.read_text())
    record["files"][0]["path"] = path
    manifest.write_text(json.dumps(record))
    with pytest.raises(UserError, match="outside its own directory"):
        records.read_manifest(artifact)


def test_a_changed_fact_in_a_manifest_is_refused(artifact):
    manifest = artifact / records.MANIFEST
    manifest.write_text(manifest.read_text().replace('"documents": 2', '"documents": 3'))
    with pytest.raises(UserError, match="changed after it was written"):
        records.read_manifest(artifact)


def test_every_flipped_bit_of_a_manifest_is_refused(artifact):
    manifest = artifact / records.MANIFEST
    whole = manifest.read_bytes()
    for bit in range(len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(data)
        with pytest.raises(UserError):
            records.read_manifest(artifact)


def test_a_single_file_is_an_artifact_with_its_manifest_beside_it(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    identity = records.write_manifest(path, "device file", checkpoint="0" * 64)
    assert records.manifest_hash(path) == identity
    assert records.require_intact(path, "device file")["checkpoint"] == "0" * 64
    path.write_bytes(b"GGUG")
    with pytest.raises(UserError, match=r"model\.gguf: content differs"):
        records.require_intact(path, "device file")


def test_a_linked_folder_inside_an_artifact_is_a_problem(artifact, tmp_path):
    (artifact / "part").rename(tmp_path / "elsewhere")
    (artifact / "part").symlink_to(tmp_path / "elsewhere")
    assert "link out" in str(records.check_files(artifact)[0])


def test_the_wrong_kind_and_no_manifest_are_refused(artifact, tmp_path):
    with pytest.raises(UserError, match="this is a corpus, where a checkpoint is needed"):
        records.read_manifest(artifact, "checkpoint")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        records.read_manifest(tmp_path)


def test_the_ledger_chains_and_an_edited_line_is_named(tmp_path):
    ledger = records.Ledger(tmp_path / records.LEDGER)
    for step in range(4):
        ledger.append("checkpoint", step=step)
    assert ledger.check() == []
    lines = ledger.path.read_text().splitlines()
    edited = lines[1].replace('"step":1', '"step":9')
    ledger.path.write_text("\n".join([lines[0], edited, *lines[2:]]) + "\n")
    assert [problem.what for problem in ledger.check()] == ["line 2 was changed after it was written"]
    ledger.path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert [problem.what for problem in ledger.check()] == ["line 2 does not follow line 1"]
    ledger.path.write_text("\n".join([*lines[:3], lines[3].replace('"step":3', '"step":4')]) + "\n")
    assert [problem.what for problem in ledger.check()] == ["line 4 was changed after it was written"]


def test_an_edit_that_renews_the_digest_still_breaks_the_chain(tmp_path):
    ledger = records.Ledger(tmp_path / records.LEDGER)
    ledger.append("start", step=0)
    ledger.append("stop", step=5)
    first, last = ledger.path.read_text().splitlines()
    entry = json.loads(first)
    del entry["digest"]
    entry["step"] = 1
    entry["digest"] = hashlib.sha256(canonical_json(entry).encode()).hexdigest()
    ledger.path.write_text(canonical_json(entry) + "\n" + last + "\n")
    assert [problem.what for problem in ledger.check()] == ["line 2 does not follow line 1"]


def test_a_ledger_line_vouches_for_the_records_beside_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    ledger = records.Ledger(tmp_path / records.LEDGER)
    ledger.append("checkpoint", step=1)
    noted = ledger.entries()[0]["records"]["metrics.jsonl"]
    assert noted == {"size_bytes": 12, "sha256": hashlib.sha256(b'{"step": 1}\n').hexdigest()}


def test_records_hold_any_text_on_one_line(tmp_path):
    path = tmp_path / "samples.jsonl"
    text = "a\u2028b\x85c\x0bd"
    records.append_line(path, json.dumps({"text": text}, ensure_ascii=False))
    records.append_line(path, '{"text": "torn"')
    path.write_bytes(path.read_bytes()[:-1])
    assert records.read_jsonl(path) == [{"text": text}]


def test_a_torn_last_line_is_cut_before_the_next_entry(tmp_path):
    ledger = records.Ledger(tmp_path / records.LEDGER)
    ledger.append("start")
    with ledger.path.open("a") as file:
        file.write('{"event":"check')
    assert [entry["event"] for entry in ledger.entries()] == ["start"]
    ledger.append("resume")
    assert [entry["event"] for entry in ledger.entries()] == ["start", "resume"]
    assert ledger.check() == []
