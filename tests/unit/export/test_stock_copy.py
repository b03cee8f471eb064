import gguf
import pytest
from fixture_checkpoint import write_checkpoint

from mobillama.core.errors import UserError
from mobillama.export import quantize
from mobillama.export.stock_copy import stock_copy


def test_a_copy_of_the_device_file_holds_what_the_stock_export_holds(tmp_path):
    write_checkpoint(tmp_path / "c", ffn_of_layer=[0, 0, 1, 1])
    quantize(tmp_path / "c", tmp_path / "m.gguf", type="q4_0")
    quantize(tmp_path / "c", tmp_path / "exported.gguf", type="q4_0", stock_llama=True)
    stock_copy(tmp_path / "m.gguf", tmp_path / "copied.gguf")
    tensors, keys = [], []
    for name in ("exported.gguf", "copied.gguf"):
        reader = gguf.GGUFReader(tmp_path / name)
        tensors.append({t.name: (t.tensor_type, t.data.tobytes()) for t in reader.tensors})
        keys.append({name: field.contents() for name, field in reader.fields.items()})
    assert tensors[0] == tensors[1]
    assert keys[0] == keys[1]


def test_deltas_cannot_be_copied_into_quantised_bytes(tmp_path):
    write_checkpoint(tmp_path / "c", ffn_gains=True)
    quantize(tmp_path / "c", tmp_path / "m.gguf", type="q4_0")
    with pytest.raises(UserError, match="--stock-llama"):
        stock_copy(tmp_path / "m.gguf", tmp_path / "copied.gguf")
