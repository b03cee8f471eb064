"""An exported graph in onnxruntime against the model in torch."""

from collections import Counter

import numpy as np
import pytest
import torch
from fixture_checkpoint import TEXT, write_checkpoint
from tokenizers import Tokenizer

from mobillama.core.errors import UserError
from mobillama.core.records import manifest_hash, require_intact

onnx = pytest.importorskip("onnx", reason="needs mobillama[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs mobillama[onnx]")
pytest.importorskip("onnxscript", reason="needs mobillama[onnx]")

from mobillama.export.onnx import export_onnx  # noqa: E402

KV_HEADS, HEAD_DIM, LAYERS = 2, 16, 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model whose four layers use two FFNs, each with deltas of its own, and its export."""
    folder = tmp_path_factory.mktemp("onnx")
    model = write_checkpoint(folder / "checkpoint", ffn_of_layer=[0, 1, 1, 0], ffn_delta_rank=3)
    return model, export_onnx(folder / "checkpoint", folder / "onnx")


def session_of(folder, optimized=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(folder / "model.onnx", options)


def step(session, tokens, past):
    """Return the logits (B, T, V) of tokens (B, T) after a past, and the present."""
    positions = past["past_key_values.0.key"].shape[2] + tokens.shape[1]
    mask = np.ones((len(tokens), positions), np.int64)
    logits, *present = session.run(None, {"input_ids": tokens, "attention_mask": mask, **past})
    return logits, dict(zip(past, present, strict=True))


def nothing(batch):
    """Return a past of no positions."""
    empty = np.zeros((batch, KV_HEADS, 0, HEAD_DIM), np.float32)
    return {f"past_key_values.{layer}.{part}": empty for layer in range(LAYERS) for part in ("key", "value")}


def test_greedy_text_is_that_of_torch(exported):
    model, folder = exported
    session, tokenizer = session_of(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for start in range(0, 600, 60):
        prompt = tokenizer.encode(TEXT[start : start + 60]).ids
        tokens, past = np.array([prompt]), nothing(1)
        written = []
        for _ in range(32):
            logits, past = step(session, tokens, past)
            tokens = logits[:, -1:].argmax(-1)
            written.append(int(tokens[0, 0]))
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=32, min_new_tokens=32, do_sample=False, eos_token_id=None
        )
        assert tokenizer.decode(written) == tokenizer.decode(expected[0, len(prompt) :].tolist())
        assert written == expected[0, len(prompt) :].tolist()


def test_logits_of_padded_batches_and_of_a_cache_are_those_of_torch(exported):
    model, folder = exported
    session, tokens = session_of(folder), np.random.default_rng(0).integers(1, 320, (3, 12))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    _, past = step(session, tokens[:, :7], nothing(3))
    logits, _ = step(session, tokens[:, 7:], past)
    np.testing.assert_allclose(logits, expected[:, 7:], rtol=1e-4, atol=1e-4)

    padded = np.concatenate([np.zeros((3, 4), np.int64), tokens], axis=1)
    mask = np.concatenate([np.zeros((3, 4), np.int64), np.ones((3, 12), np.int64)], axis=1)
    logits = session.run(["logits"], {"input_ids": padded, "attention_mask": mask, **nothing(3)})[0]
    np.testing.assert_allclose(logits[:, 4:], expected, rtol=1e-4, atol=1e-4)


def test_every_shared_ffn_is_stored_once_also_after_the_runtimes_own_optimisation(exported, tmp_path):
    _, folder = exported
    session_of(folder, tmp_path / "optimized.onnx")
    for path in (folder / "model.onnx", tmp_path / "optimized.onnx"):
        graph = onnx.load(path).graph
        shapes = Counter(tuple(weight.dims) for weight in graph.initializer)
        assert shapes[64, 96] == 2 * 2  # gate and up of two FFNs
        assert shapes[96, 64] == 2


def test_the_folder_tells_where_it_came_from(exported):
    _, folder = exported
    record = require_intact(folder, "onnx model")
    assert record["parent"] == manifest_hash(folder.parent / "checkpoint")
    told = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert told["mobillama.provenance.checkpoint"] == record["parent"]
    assert told["mobillama.ffn_of_layer"] == "[0, 1, 1, 0]"
    # The exporter notes where in which file each node comes from: no business of a model's users.
    assert b"modeling.py" not in (folder / "model.onnx").read_bytes()


def test_large_weights_lie_beside_the_graph(exported, tmp_path, monkeypatch):
    model, _ = exported
    monkeypatch.setattr("mobillama.export.onnx.MOST_BYTES_INSIDE", 1000)
    checkpoint = tmp_path / "checkpoint"
    write_checkpoint(checkpoint, ffn_of_layer=[0, 1, 1, 0], ffn_delta_rank=3)
    folder = export_onnx(checkpoint, tmp_path / "onnx")
    assert (folder / "model.onnx.data").stat().st_size > 4 * 320 * 64
    assert (folder / "model.onnx").stat().st_size < (exported[1] / "model.onnx").stat().st_size / 2
    tokens = np.arange(1, 9)[None]
    logits, _ = step(session_of(folder), tokens, nothing(1))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_failed_export_leaves_nothing(exported, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("no")

    monkeypatch.setattr("mobillama.export.onnx.write_graph", fail)
    with pytest.raises(UserError):
        export_onnx(exported[1].parent / "checkpoint", tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []
