import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from fixture_checkpoint import TEXT, write_checkpoint
from tokenizers import Tokenizer

from mobillama.core.errors import UserError
from mobillama.core.records import manifest_hash, read_manifest, write_manifest
from mobillama.export import quantize
from mobillama.export.plan import TYPES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000007"
    write_checkpoint(directory)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    write_manifest(directory, "checkpoint", step=7, run="tiny", corpus="c" * 64, parent=None)
    (directory.parent.parent / "run.toml").write_text('name = "tiny"\n')
    return directory


def values_of(path: Path) -> dict[str, np.ndarray]:
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in tensors}


def read(path: Path, key: str):
    return gguf.GGUFReader(path).fields[key].contents()


def test_each_ffn_is_in_the_file_once(checkpoint, tmp_path):
    quantize(checkpoint, tmp_path / "m.gguf", type="q4_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    ffn = [tensor for tensor in reader.tensors if "ffn" in tensor.name and "norm" not in tensor.name]
    assert sorted(tensor.name for tensor in ffn) == [
        "ffn.0.down.weight",
        "ffn.0.gate.weight",
        "ffn.0.up.weight",
    ]
    # Three matrices of 64 x 96 at 18 bytes for 32 values, whatever the number of layers.
    assert sum(int(tensor.n_bytes) for tensor in ffn) == 3 * 64 * 96 * 18 // 32
    assert read(tmp_path / "m.gguf", "mobillama.ffn_of_layer") == [0, 0, 0, 0]


def test_every_weight_can_be_read_back(checkpoint, tmp_path):
    from safetensors.torch import load_file

    quantize(checkpoint, tmp_path / "m.gguf", type="f16")
    weights, values = load_file(checkpoint / "model.safetensors"), values_of(tmp_path / "m.gguf")
    assert len(values) == len(weights)
    pairs = {
        "model.layers.2.self_attn.q_proj.weight": "blk.2.attn_q.weight",
        "model.layers.3.self_attn.o_proj.weight": "blk.3.attn_output.weight",
        "model.ffns.0.down_proj.weight": "ffn.0.down.weight",
        "model.layers.1.post_attention_layernorm.weight": "blk.1.ffn_norm.weight",
        "lm_head.weight": "output.weight",
        "model.embed_tokens.weight": "token_embd.weight",
    }
    for weight, name in pairs.items():
        assert np.allclose(values[name], weights[weight].numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("type", TYPES)
def test_every_matrix_has_the_type_its_plan_says(checkpoint, tmp_path, type):
    report = quantize(checkpoint, tmp_path / "m.gguf", type=type)
    types = {
        tensor.name: tensor.tensor_type.name.lower()
        for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    }
    plan = TYPES[type]
    assert types["ffn.0.up.weight"] == plan.ffn
    assert types["blk.0.attn_v.weight"] == plan.attention
    assert types["token_embd.weight"] == types["output.weight"] == plan.embeddings
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "f32"
    assert f"({type})" in str(report)


def test_the_file_carries_tokenizer_template_and_provenance(checkpoint, tmp_path):
    quantize(checkpoint, tmp_path / "m.gguf")
    path = tmp_path / "m.gguf"
    definition = json.loads((checkpoint / "tokenizer.json").read_text())
    assert json.loads(read(path, "tokenizer.huggingface.json")) == definition
    tokens = read(path, "tokenizer.ggml.tokens")
    assert {spelling: number for number, spelling in enumerate(tokens)} == definition["model"]["vocab"]
    assert read(path, "tokenizer.chat_template") == "{{ messages[0].content }}"
    assert read(path, "mobillama.provenance.checkpoint") == manifest_hash(checkpoint)
    assert read(path, "mobillama.provenance.step") == 7
    assert read(path, "mobillama.provenance.recipe") == 'name = "tiny"\n'
    assert read_manifest(path, "device file")["checkpoint"] == manifest_hash(checkpoint)


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        quantize(checkpoint, tmp_path / name, type="mixed")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_calibration_lowers_the_output_error_and_is_recorded(checkpoint, tmp_path):
    from mobillama.model.loading import load_language_model

    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    model = load_language_model(checkpoint, device="cpu")
    seen: list[torch.Tensor] = []
    handle = model.model.ffns[0].down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tokens = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(TEXT).ids
        model(input_ids=torch.tensor([tokens[100:340]]))
    handle.remove()
    assert len(seen) == 4  # the shared FFN meets the input of every layer
    inputs = torch.cat([states.flatten(0, 1) for states in seen])
    exact = inputs @ model.model.ffns[0].down_proj.weight.T
    error = []
    for calibrate in (None, text):
        quantize(checkpoint, tmp_path / "m.gguf", type="q4_0", calibrate=calibrate)
        down = torch.from_numpy(values_of(tmp_path / "m.gguf")["ffn.0.down.weight"])
        error.append(torch.square(exact - inputs @ down.T).mean().item())
    assert error[1] < 0.95 * error[0]
    assert len(read(tmp_path / "m.gguf", "mobillama.provenance.calibration")) == 64


def test_rows_that_fill_no_blocks_stay_in_f16_with_a_note(tmp_path):
    write_checkpoint(tmp_path / "c", intermediate_size=80)
    report = quantize(tmp_path / "c", tmp_path / "m.gguf", type="q4_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert (types["ffn.0.down.weight"], types["ffn.0.up.weight"]) == ("F16", "Q4_0")
    assert "ffn.0.down.weight: rows of 80" in str(report)


def test_the_stock_file_repeats_the_ffn_and_says_what_that_costs(checkpoint, tmp_path):
    report = quantize(checkpoint, tmp_path / "s.gguf", type="q4_0", stock_llama=True)
    quantize(checkpoint, tmp_path / "m.gguf", type="q4_0")
    stock, ours = gguf.GGUFReader(tmp_path / "s.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    bytes_of = [{t.name: t.data.tobytes() for t in reader.tensors} for reader in (stock, ours)]
    assert all(
        bytes_of[0][f"blk.{layer}.ffn_up.weight"] == bytes_of[1]["ffn.0.up.weight"] for layer in range(4)
    )
    assert report.repeated_bytes == 3 * 3 * 64 * 96 * 18 // 32
    assert "written again" in str(report)


def test_a_failed_export_leaves_the_old_file(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize(checkpoint, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("options", "says"), [({"type": "q4"}, "q4_0"), ({"calibrate": "absent.txt"}, "absent")]
)
def test_what_cannot_be_done_is_explained(checkpoint, tmp_path, options, says):
    if "calibrate" in options:
        options["calibrate"] = tmp_path / options["calibrate"]
    with pytest.raises(UserError, match=says):
        quantize(checkpoint, tmp_path / "m.gguf", **options)
