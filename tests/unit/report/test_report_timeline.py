"""Norms and changes agree with torch on the same files, and are measured once."""

import numpy as np
import pytest
from fixture_run import bf16, make_corpus, make_run, write_safetensors

from mobillama.core.errors import UserError
from mobillama.core.tensors import TensorFile, model_tensors
from mobillama.report import timeline as module
from mobillama.report.run import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timeline")
    return read_run(make_run(folder / "run", make_corpus(folder / "corpus")))


def test_norms_and_changes_agree_with_torch(run):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    result = module.timeline(run)
    old, new = (load_file(run.checkpoints[index].path / "model.safetensors") for index in (2, 3))
    expected = {
        "FFN 0": [name for name in new if ".ffns.0." in name],
        "layer 2": [name for name in new if ".layers.2." in name],
        "final norm": ["model.norm.weight"],
    }
    for part, names in expected.items():
        row = result.parts.index(part)
        now = torch.cat([new[name].double().flatten() for name in names])
        before = torch.cat([old[name].double().flatten() for name in names])
        assert result.norms[row][3] == pytest.approx(now.norm().item(), rel=1e-6)
        assert result.changes[row][3] == pytest.approx(((now - before).norm() / now.norm()).item(), rel=1e-6)


def test_parts_follow_the_flow_of_data_and_the_first_has_no_change(run):
    result = module.timeline(run)
    assert result.parts == [
        "embeddings", "layer 0", "layer 1", "layer 2", "layer 3", "FFN 0", "final norm", "output head",
    ]  # fmt: skip
    assert all(row[0] is None and None not in row[1:] for row in result.changes)


def test_what_was_measured_once_is_not_measured_again(run, monkeypatch):
    first = module.timeline(run)
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured again"))
    assert module.timeline(run) == first


def test_bfloat16_is_read_exactly(tmp_path):
    values = np.array([1.0, -2.5, 3.0e38, 1e-40, 0.1], np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"x": ("BF16", bf16(values))})
    (read,) = TensorFile(tmp_path / "a.safetensors").chunks("x")
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    assert np.array_equal(read, load_file(tmp_path / "a.safetensors")["x"].to(torch.float32).numpy())


def test_sharded_weights_are_found_and_an_index_cannot_lead_out(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"x": ("F32", np.ones(3, np.float32))})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "a.safetensors"}}')
    assert model_tensors(tmp_path)["x"].tensors["x"].shape == (3,)
    index.write_text('{"weight_map": {"x": "../a.safetensors"}}')
    with pytest.raises(UserError, match="outside its own folder"):
        model_tensors(tmp_path)
