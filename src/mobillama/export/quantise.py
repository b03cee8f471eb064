"""``mobillama quantize``: a checkpoint becomes one device file, each shared FFN stored once."""

from dataclasses import dataclass
from pathlib import Path

import gguf
from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from mobillama.core.atomic import atomic_file
from mobillama.core.errors import UserError
from mobillama.core.hashing import hash_file
from mobillama.core.making import write_made_manifest
from mobillama.core.progress import progress
from mobillama.model.checkpoint import locate
from mobillama.model.loading import load_language_model

from . import metadata, plan
from .calibration import calibrate as calibrate_model
from .layout import STOCK_ARCHITECTURE
from .rounding import Rounding, StoredTensor
from .writing import written

KIND = "device file"
DEFAULT_TYPE = "mixed"
ARCHITECTURE = "mobillama"


@dataclass(frozen=True)
class Report:
    """What was written; as text, what to tell the user.

    Attributes:
        notes: where a tensor was stored otherwise than asked.
        repeated_bytes: what the stock layout costs: bytes that repeat other bytes of the file.
    """

    path: Path
    type: str
    calibrated: bool
    tensors: tuple[StoredTensor, ...]
    notes: tuple[str, ...]
    repeated_bytes: int

    def __str__(self) -> str:
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.part] = sizes.get(tensor.part, 0) + tensor.size_bytes
        parts = ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in sizes.items())
        how = f"{self.type}, calibrated" if self.calibrated else self.type
        lines = [f"{self.path}: {self.path.stat().st_size / 1e6:.1f} MB ({how}): {parts}", *self.notes]
        if self.repeated_bytes:
            lines.append(
                f"stock layout: {self.repeated_bytes / 1e6:.1f} MB of this is the shared FFN, written again "
                "for each further layer; without --stock-llama it is stored once"
            )
        return "\n".join(lines)


def quantize(
    model: str | Path,
    out: Path,
    *,
    type: str = DEFAULT_TYPE,
    calibrate: Path | None = None,
    stock_llama: bool = False,
) -> Report:
    """Write the device file of a checkpoint, of a run's last checkpoint, or of a model folder.

    Arguments:
        type: ``q4_0``, ``q8_0``, ``f16`` or ``mixed`` (see `plan.TYPES`).
        calibrate: a text; rounding then minimises the error of the matrices' outputs on it (GPTQ).
        stock_llama: write architecture ``llama`` with the FFN repeated for every layer.

    Raises:
        UserError: there is no such model, it is of another architecture, or the text is unusable.
    """
    types = plan.type_plan(type)
    directory = locate(model)
    source = load_language_model(directory, device="cpu")
    config = source.config
    if config.model_type != "mobillama":
        raise UserError(f"{directory}: architecture {config.model_type}; run mobillama convert on it first")
    facts = metadata.provenance(directory)
    calibration = None
    if calibrate is not None:
        tokenizer = Tokenizer.from_file(str(metadata.tokenizer_path(directory)))
        calibration = calibrate_model(source, tokenizer, calibrate)
        facts["calibration"] = hash_file(calibrate).sha256

    weights = source.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    rounding = Rounding(types, calibration)
    stream = rounding.stock(weights, config) if stock_llama else rounding.shared(weights)
    tensors: list[StoredTensor] = []
    # The stock layout has more tensors, but only the first of each repeated one takes time.
    with progress("quantising", len(weights), "tensors") as advance:
        for tensor in stream:
            tensors.append(tensor)
            if len(tensors) < len(weights):
                advance(len(tensors), tensor.name)
        advance(len(weights))

    with atomic_file(Path(out)) as partial:
        write(partial, tensors, directory, config, facts, stock_llama=stock_llama)
    write_made_manifest(Path(out), KIND, type=type, **facts)
    once = {id(tensor.data): tensor.size_bytes for tensor in tensors}
    repeated_bytes = sum(tensor.size_bytes for tensor in tensors) - sum(once.values())
    return Report(
        Path(out), type, calibration is not None, tuple(tensors), tuple(rounding.notes), repeated_bytes
    )


def write(
    path: Path,
    tensors: list[StoredTensor],
    directory: Path,
    config: PreTrainedConfig,
    facts: dict[str, str | int],
    *,
    stock_llama: bool,
) -> None:
    """Write tensors and keys as GGUF."""
    writer = gguf.GGUFWriter(path, STOCK_ARCHITECTURE if stock_llama else ARCHITECTURE)
    writer.add_name(str(facts.get("run") or directory.name))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    metadata.write_shape(writer, config)
    if not stock_llama:
        writer.add_key_value(
            "mobillama.ffn_of_layer",
            list(config.ffn_of_layer),
            gguf.GGUFValueType.ARRAY,
            gguf.GGUFValueType.UINT32,
        )
        writer.add_uint32("mobillama.ffn_delta_rank", config.ffn_delta_rank)
        metadata.write_vision(writer, directory)
    metadata.write_tokenizer(writer, directory, config)
    metadata.write_provenance(writer, facts)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type.upper()]
        writer.add_tensor(tensor.name, written(tensor.data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
