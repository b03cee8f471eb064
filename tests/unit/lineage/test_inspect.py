"""Inspect tells what an artifact is and walks back to the documents, ours and foreign, without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from fixture_run import make_corpus, make_run, write_safetensors

from mobillama.core.errors import UserError
from mobillama.core.making import write_made_manifest
from mobillama.core.records import check_files, manifest_hash, write_manifest
from mobillama.lineage.gguf_header import read_gguf_header
from mobillama.lineage.inspect import as_json, as_text, describe
from mobillama.lineage.verify import verify


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    make_run(folder / "run", make_corpus(folder / "corpus"))
    return folder


def test_a_run_says_what_made_it_and_how_to_make_it_again(place):
    found = describe(place / "run")
    assert found.kind == "run" and found.intact is True
    assert "8,208 stored parameters, 4 layers with 1 FFN; 400 steps" in found.summary
    assert found.configuration["optimizer.learning_rate"] == 4e-3
    assert found.origins["optimizer.learning_rate"] == "quickstart.toml:15"
    assert manifest_hash(place / "corpus")[:12] in found.parents[0]
    assert found.parents[1].startswith("documents library")
    assert found.make_again == f"mobillama train {place / 'run' / 'run.toml'} --set run_dir=NEW"


def test_a_checkpoint_is_followed_to_a_fresh_model_and_the_documents(place):
    found = describe(place / "run" / "checkpoints" / "step-00000200")
    parent = manifest_hash(place / "run" / "checkpoints" / "step-00000150")
    assert found.facts["manifest"] == manifest_hash(place / "run" / "checkpoints" / "step-00000200")
    assert found.parents[0] == f"checkpoint step-00000150 ({parent[:12]}); 3 back to a fresh model"
    assert found.parents[1].startswith("corpus ") and found.parents[2].startswith("documents library")
    assert found.configuration["ffn_of_layer"] == [0, 0, 0, 0]
    assert found.made_by["source"].startswith("commit c0ffee")


def test_a_tuned_run_is_followed_through_the_run_it_started_from_to_the_documents_of_both(place, tmp_path):
    start, tuned = (
        place / "run" / "checkpoints" / "step-00000400",
        make_run(tmp_path / "runs" / "tuned", place / "corpus"),
    )
    plan = {"corpus": "c" * 64, "started_from": manifest_hash(start), "teacher": "d" * 64}
    (tuned / "plan.json").write_text(json.dumps(plan))
    assert describe(tuned, hashes=False).parents[-2:] == [
        f"started from {manifest_hash(start)[:12]}, not found near it",
        "teacher dddddddddddd, not found near it",
    ]
    shutil.copytree(place / "run", tmp_path / "runs" / "base")
    shutil.copytree(place / "corpus", tmp_path / "runs" / "corpus")
    for found in (describe(tuned, hashes=False), describe(tuned / "checkpoints" / "step-00000400")):
        at = next(number for number, line in enumerate(found.parents) if line.startswith("started from"))
        assert "runs/base/checkpoints/step-00000400" in found.parents[at]
        assert "7 back to a fresh model" in found.parents[at + 1]
        assert found.parents[at + 2].startswith("corpus ") and found.parents[at + 3].startswith(
            "documents library"
        )


def test_a_corpus_shows_its_counts(place):
    found = describe(place / "corpus")
    assert found.summary.startswith("80 documents and 8,727 tokens")
    assert found.facts["docs"].endswith("dropped 5, quarantined 0")


def test_damage_shows_and_json_says_the_same_as_text(place, tmp_path):
    copy = shutil.copytree(place / "run" / "checkpoints" / "step-00000100", tmp_path / "step-00000100")
    (copy / "model.safetensors").write_bytes(b"short")
    found = describe(copy)
    assert found.intact is False
    assert any("model.safetensors: 5 bytes" in problem for problem in found.problems)
    assert "intact        NO" in as_text(found)
    assert json.loads(as_json(found))["problems"] == found.problems
    assert describe(place / "corpus", hashes=False).intact is None


def test_a_device_file_is_followed_to_its_checkpoint(place, tmp_path):
    gguf = pytest.importorskip("gguf")
    path = place / "model.gguf"
    writer = gguf.GGUFWriter(path, "mobillama")
    writer.add_uint32("mobillama.block_count", 4)
    writer.add_array("mobillama.ffn_of_layer", [0, 0, 0, 0])
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(100)])
    writer.add_string("tokenizer.huggingface.json", "{" + " " * 1000 + "}")
    writer.add_tensor("token_embd.weight", np.ones((64, 16), np.float32))
    quantised = np.zeros((16, 18), np.uint8)
    writer.add_tensor("ffn.0.gate.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_manifest(path, "device file", checkpoint=manifest_hash(place / "run/checkpoints/step-00000400"))
    found = describe(path)
    assert found.kind == "device file" and found.intact is True
    assert found.summary == "mobillama, 1,536 values in 2 tensors, 4 layers with 1 FFN."
    assert found.parents[0].startswith(f"checkpoint {place / 'run' / 'checkpoints' / 'step-00000400'}")
    assert found.configuration["tokenizer.ggml.tokens"] == "100 strings"
    assert found.configuration["tokenizer.huggingface.json"].endswith("(1 kB)")


def test_gguf_headers_read_as_the_gguf_package_reads_them(place):
    gguf = pytest.importorskip("gguf")
    path = place / "other.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_array("a.list", ["x", "y"])
    writer.add_tensor("t", np.ones((3, 5), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    assert set(ours.metadata) == {key for key in theirs.fields if not key.startswith("GGUF.")}
    assert ours.metadata["a.float"] == 0.5 and ours.metadata["a.bool"] is True
    assert ours.metadata["a.list"] == ["x", "y"]
    (tensor,) = theirs.tensors
    assert ours.tensors["t"].shape == tuple(int(extent) for extent in tensor.shape)
    assert ours.tensors["t"].size_bytes == tensor.n_bytes


def test_a_foreign_folder_whose_configuration_lies_about_its_heads_is_told(tmp_path):
    """As the published MobiLlama configurations do."""
    config = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {"model.layers.0.self_attn.k_proj.weight": ("F32", np.ones((16, 16), np.float32))}
    write_safetensors(tmp_path / "model.safetensors", weights)
    found = describe(tmp_path)
    assert found.kind == "Hugging Face model folder" and found.intact is None
    assert found.facts["KV heads"].startswith("4 by the shape") and "says 2" in found.facts["KV heads"]


def test_a_later_kind_of_artifact_is_described_by_its_facts(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    write_manifest(tmp_path, "evaluation", tasks=["piqa"], source={"commit": "abc", "dirty": True})
    found = describe(tmp_path)
    assert found.kind == "evaluation" and found.facts["tasks"] == "['piqa']" and found.intact is True
    assert found.made_by["source"] == "commit abc, with uncommitted changes"


def test_the_unknown_is_said_to_be_unknown(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    for path in (tmp_path / "file.txt", tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"nothing is known|not found"):
            describe(path)


def test_inspect_and_verify_need_neither_torch_nor_pyarrow(place):
    code = (
        "import sys, pathlib; from mobillama.lineage.inspect import describe;"
        f"describe(pathlib.Path({str(place / 'run')!r}));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_converted_model_and_a_publication_are_described_by_the_model_in_them(place, tmp_path):
    checkpoint = place / "run" / "checkpoints" / "step-00000400"
    for kind, parent in (("model", "parent"), ("publication", "checkpoint")):
        folder = shutil.copytree(checkpoint, tmp_path / kind)
        (folder / "manifest.json").unlink()
        write_manifest(folder, kind, **{parent: "a" * 64})
        found = describe(folder)
        assert found.kind == kind and found.intact and found.configuration["num_hidden_layers"] == 4
        assert found.parents == ["checkpoint aaaaaaaaaaaa"]
        assert "BF16" in found.facts["types"]


def test_what_made_an_artifact_is_told_and_a_change_of_it_is_found(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    identity = write_manifest(tmp_path, "corpus", seed=1)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mobillama", "prepare", "small.toml"])
    assert write_made_manifest(tmp_path, "corpus", seed=1) == identity and check_files(tmp_path) == []
    found = describe(tmp_path)
    assert found.made_by["command"] == found.make_again == "mobillama prepare small.toml"
    assert "numpy" in found.made_by["versions"] and found.intact
    path = tmp_path / ".made-by.json"
    path.write_text(path.read_text().replace("small.toml", "large.toml"))
    found = describe(tmp_path)
    assert found.made_by == {} and not found.intact
    assert [problem.path for problem in verify(tmp_path)] == [path]
