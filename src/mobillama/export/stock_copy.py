"""A stock-Llama file from a device file, weight for weight the same: what llama.cpp is compared on."""

from pathlib import Path
from typing import Any

import gguf

from mobillama.core.atomic import atomic_file
from mobillama.core.errors import UserError
from mobillama.core.records import manifest_path, require_intact

from .layout import STOCK_ARCHITECTURE, permuted
from .writing import written

ARCHITECTURE = "mobillama"
OWN_KEYS = ("mobillama.ffn_of_layer", "mobillama.ffn_delta_rank", "mobillama.vocab_size")


def stock_copy(device_file: Path, out: Path) -> None:
    """Write ``device_file`` as architecture ``llama``: each layer's FFN written out, q and k permuted.

    Needs no torch; the bytes of every block stay as they are.

    Raises:
        UserError: the file was changed, or its model has deltas or gains, which quantised bytes cannot hold.
    """
    if manifest_path(device_file).is_file():
        require_intact(device_file)
    reader = gguf.GGUFReader(device_file)
    keys: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    if any(".ffn_delta." in tensor.name or "ffn_gain" in tensor.name for tensor in reader.tensors):
        raise UserError(
            f"{device_file}: its layers have deltas or gains; quantize the checkpoint with --stock-llama"
        )
    with atomic_file(out) as partial:
        writer = gguf.GGUFWriter(partial, STOCK_ARCHITECTURE)
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name == "general.architecture" or name in OWN_KEYS:
                continue
            kind, *inner = field.types
            renamed = name.replace(f"{ARCHITECTURE}.", f"{STOCK_ARCHITECTURE}.", 1)
            renamed = name if "provenance" in name else renamed
            writer.add_key_value(renamed, keys[name], kind, inner[-1] if inner else None)
        writer.add_vocab_size(keys["mobillama.vocab_size"])
        _add_tensors(writer, reader, keys)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_tensors(writer: gguf.GGUFWriter, reader: gguf.GGUFReader, keys: dict[str, Any]) -> None:
    heads = {
        "attn_q.weight": keys["mobillama.attention.head_count"],
        "attn_k.weight": keys["mobillama.attention.head_count_kv"],
    }
    layers_of: dict[int, list[int]] = {}
    for layer, ffn in enumerate(keys["mobillama.ffn_of_layer"]):
        layers_of.setdefault(ffn, []).append(layer)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        first, _, rest = tensor.name.partition(".")
        if first == "ffn":
            ffn, part, _ = rest.split(".")
            for layer in layers_of[int(ffn)]:
                writer.add_tensor(f"blk.{layer}.ffn_{part}.weight", written(data), raw_dtype=kind)
            continue
        if (count := heads.get(rest.partition(".")[2])) is not None:
            data = permuted(data, count)
        writer.add_tensor(tensor.name, written(data), raw_dtype=kind)
