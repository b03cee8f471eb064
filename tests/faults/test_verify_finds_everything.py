"""Real damage, one kind after another, on a whole run and its corpus: verify names exactly what is off."""

import json
import random
import shutil

import pytest
from fixture_run import EVERY, make_corpus, make_run

from mobillama.core import records
from mobillama.core.errors import UserError
from mobillama.core.records import Ledger, canonical_json, manifest_hash, write_manifest
from mobillama.lineage.verify import check, verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make_run(folder / "run", make_corpus(folder / "corpus"))
    return folder


@pytest.fixture
def place(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "copy")


def named(folder):
    """Return what verify says, by path below ``folder``."""
    return {problem.path.relative_to(folder).as_posix(): problem.what for problem in verify(folder)}


def step(place, number):
    return place / "run" / "checkpoints" / f"step-{number:08d}"


def test_the_undamaged_run_and_corpus_are_intact(place):
    result = check(place)
    assert result.problems == [] and result.notes == []
    assert len(result.artifacts) == 11
    assert result.size_bytes == sum(
        path.stat().st_size
        for folder in (place / "corpus", place / "run" / "checkpoints", place / "run" / "states")
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    )


def every_kind_of_file(folder):
    """Return one file of each kind that a run and a corpus hold."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            shard = path.suffix in (".tokens", ".documents")
            found.setdefault(("shard", path.suffix) if shard else (path.parent.name[:4], path.name), path)
    return list(found.values())


def test_one_flipped_bit_in_each_kind_of_file_is_found_and_named(place):
    files = every_kind_of_file(place)
    assert len(files) >= 16
    chance = random.Random(4)
    for path in files:
        data = path.read_bytes()
        for _ in range(3):
            bit = chance.randrange(len(data) * 8)
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            problems = verify(place)
            assert path in {problem.path for problem in problems}, (path, bit, problems)
        path.write_bytes(data)
    assert verify(place) == []


def test_a_missing_file_of_each_kind_is_named(place):
    for path in every_kind_of_file(place):
        if path.name == "run.toml":
            continue  # Without it the folder is no run any more; the next test has it.
        path.rename(path.with_name(".away"))
        assert any(str(path) in str(problem) for problem in verify(place)), path
        path.with_name(".away").rename(path)


def test_a_run_without_its_recipe_is_named(place):
    (place / "run" / "run.toml").unlink()
    assert named(place) == {"run/run.toml": "missing"}


def test_two_swapped_checkpoints_are_named_by_the_steps_they_hold(place):
    step(place, 100).rename(place / "held")
    step(place, 200).rename(step(place, 100))
    (place / "held").rename(step(place, 200))
    assert named(place) == {
        "run/checkpoints/step-00000100": "holds step 200 by its manifest: swapped or renamed",
        "run/checkpoints/step-00000200": "holds step 100 by its manifest: swapped or renamed",
    }


def test_swapped_weights_are_named_with_the_checkpoint_they_belong_to(place):
    first, second = (step(place, number) / "model.safetensors" for number in (100, 200))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    said = named(place)
    assert said["run/checkpoints/step-00000100/model.safetensors"].endswith(f"it is that of {second}")
    assert said["run/checkpoints/step-00000200/model.safetensors"].endswith(f"it is that of {first}")


def test_reordered_shards_are_named(place):
    folder = place / "corpus" / "train" / "docs"
    data = (folder / "00000.tokens").read_bytes()
    half = len(data) // 4 * 2
    (folder / "00000.tokens").write_bytes(data[:half])
    (folder / "00001.tokens").write_bytes(data[half : 2 * half])
    write_manifest(place / "corpus", "corpus", inputs=[])
    assert verify(place / "corpus") == []
    (folder / "00000.tokens").rename(folder / "aside")
    (folder / "00001.tokens").rename(folder / "00000.tokens")
    (folder / "aside").rename(folder / "00001.tokens")
    said = named(place / "corpus")
    assert said["train/docs/00000.tokens"].endswith("it is that of " + str(folder / "00001.tokens"))
    assert said["train/docs/00001.tokens"].endswith("it is that of " + str(folder / "00000.tokens"))


def test_one_checkpoint_under_two_names_is_named_exactly(place):
    """The fault that published checkpoints had for years: one step's weights served as another's."""
    record = records.read_manifest(step(place, 200))
    shutil.copy(step(place, 150) / "model.safetensors", step(place, 200) / "model.safetensors")
    facts = {key: record[key] for key in record if key not in ("kind", "format", "files", "digest")}
    write_manifest(step(place, 200), "checkpoint", **facts)
    said = named(place)
    assert said["run/checkpoints/step-00000200"] == (
        f"holds exactly the weights of {step(place, 150)}, under another name"
    )
    assert "the ledger says" in said["run/checkpoints/step-00000200/manifest.json"]


def test_a_checkpoint_that_vanished_is_missed_by_the_ledger(place):
    shutil.rmtree(step(place, 400))
    assert named(place) == {"run/checkpoints/step-00000400": "missing; the ledger tells of it"}


def test_a_checkpoint_of_another_run_put_in_is_named(place, tmp_path):
    stranger = make_run(tmp_path / "stranger", place / "corpus", seed=7)
    shutil.rmtree(step(place, 250))
    shutil.copytree(stranger / "checkpoints" / "step-00000250", step(place, 250))
    said = named(place)
    assert "the ledger says" in said["run/checkpoints/step-00000250/manifest.json"]
    assert "which nothing here knows" in said["run/checkpoints/step-00000250"]


def test_edited_deleted_and_reordered_ledger_lines_are_named(place):
    ledger = place / "run" / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    for damaged, number in (
        ([lines[0], lines[1].replace(f'"step":{EVERY}', '"step":51'), *lines[2:]], 2),
        ([*lines[:4], *lines[5:]], 5),
        ([*lines[:3], lines[4], lines[3], *lines[5:]], 4),
    ):
        ledger.write_text("\n".join(damaged) + "\n")
        problems = [problem for problem in verify(place) if problem.path == ledger]
        assert problems and problems[0].what.startswith(f"line {number} ")


def test_a_ledger_rewritten_from_the_start_does_not_fit_the_manifests(place):
    path = place / "run" / "ledger.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    forged = Ledger(path)
    for entry in entries:
        if entry["event"] == "checkpoint" and entry["step"] == 150:
            entry["checkpoint"] = "0" * 64
        forged.append(
            **{key: entry[key] for key in entry if key in ("event", "step", "checkpoint", "reason")}
        )
    assert forged.check() == []
    assert "the ledger says 000000000000" in named(place)["run/checkpoints/step-00000150/manifest.json"]


def test_metrics_edited_after_the_fact_are_named(place):
    path = place / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    better = {**json.loads(lines[-1]), "loss": 0.1}
    path.write_text("\n".join([*lines[:-1], json.dumps(better)]) + "\n")
    assert list(named(place)) == ["run/metrics.jsonl"]


def test_a_corpus_made_anew_is_not_the_one_that_was_trained_on(whole, tmp_path):
    make_run(tmp_path / "run", make_corpus(tmp_path / "corpus", seed=3))
    shutil.rmtree(tmp_path / "corpus")
    make_corpus(tmp_path / "corpus", seed=4)
    assert "is not the corpus" in named(tmp_path)["corpus/manifest.json"]


def test_a_corpus_elsewhere_is_noted_and_not_called_broken(tmp_path):
    make_run(tmp_path / "run", make_corpus(tmp_path / "corpus"))
    identity = manifest_hash(tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus")
    result = check(tmp_path / "run")
    assert result.problems == []
    assert result.notes == [f"{tmp_path / 'run'}: the corpus {identity[:12]} is not here"]


def test_a_half_written_checkpoint_of_a_killed_process_is_no_artifact(place):
    shutil.copytree(step(place, 400), place / "run" / "checkpoints" / ".step-00000450.partial")
    (place / "run" / "checkpoints" / ".step-00000450.partial" / "config.json").unlink()
    assert verify(place) == []


def test_a_file_that_came_later_is_named(place):
    (step(place, 100) / "notes.txt").write_text("mine")
    assert named(place) == {"run/checkpoints/step-00000100/notes.txt": "not named in the manifest"}


def test_a_device_file_is_verified_by_the_manifest_beside_it(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    write_manifest(path, "device file")
    assert verify(path) == verify(tmp_path) == []
    data = bytearray(path.read_bytes())
    data[500] ^= 8
    path.write_bytes(data)
    assert [str(problem) for problem in verify(path)] == [f"{path}: content differs from the manifest"]


def test_nothing_to_verify_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="nothing to verify"):
            verify(path)


def test_the_ledger_digest_is_over_canonical_json(place):
    """Written down here independently, so that anyone can check a ledger with a few lines."""
    import hashlib

    previous = "0" * 64
    for line in (place / "run" / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        stated = entry.pop("digest")
        assert stated == hashlib.sha256(canonical_json(entry).encode()).hexdigest()
        assert entry["previous"] == previous
        previous = hashlib.sha256(line.encode()).hexdigest()
