"""Writing the vision half of a device file: tower and projector as one ONNX graph, in int8 if wanted."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobillama.core.atomic import atomic_file
from mobillama.core.errors import UserError
from mobillama.core.making import write_made_manifest
from mobillama.core.quiet import quiet
from mobillama.core.records import MANIFEST, manifest_hash

from .images import ImageRules
from .loading import load_vision_model
from .onnx_eye import CHECKPOINT_KEY, PIXELS, ROWS, RULES_KEY

KIND = "vision half"
# Dynamic int8 pays where weights are multiplied; convolutions have few, and lose speed by it.
INT8_OPERATIONS = ("MatMul", "Gemm")


class Eye(nn.Module):
    """A model's tower and projector as one function of one square."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Return rows (tokens, hidden_size) of a square (1, 3, S, S)."""
        return self.model.get_image_features(pixels, return_dict=True).pooler_output[0]


def write_vision_half(directory: Path, out: Path, *, int8: bool) -> str:
    """Write the vision half of a model folder as ONNX, and return what was written in words.

    Raises:
        UserError: the folder holds no model that sees.
    """
    rules = ImageRules.read(directory)
    model = load_vision_model(directory, device="cpu", dtype=torch.float32)
    facts = {"checkpoint": manifest_hash(directory)} if (directory / MANIFEST).is_file() else {}
    with tempfile.TemporaryDirectory() as scratch, atomic_file(out) as partial:
        plain = Path(scratch) / "plain.onnx"
        export(Eye(model.eval()), rules, plain)
        if int8:
            to_int8(plain, plain)
        annotate(plain, partial, rules, facts)
    write_made_manifest(out, KIND, type="int8" if int8 else "f32", **facts)
    kind = "int8" if int8 else "float32"
    return f"{out}: {out.stat().st_size / 1e6:.1f} MB ({kind}): {rules.tokens} tokens a square of pixels"


def export(eye: Eye, rules: ImageRules, path: Path) -> None:
    """Write the graph in float32."""
    square = torch.zeros(1, 3, rules.image_size, rules.image_size)
    try:
        with quiet("torch.onnx"):
            torch.onnx.export(
                eye, (square,), str(path), input_names=[PIXELS], output_names=[ROWS],
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"this vision tower cannot be written as ONNX: {reason}") from error


def to_int8(source: Path, out: Path) -> None:
    """Round the weights of matrix products to int8, a scale a column; activations are rounded on the way."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It recommends, on the root logger, a preparation that changes nothing here.
    with quiet(""):
        quantize_dynamic(
            source, out, op_types_to_quantize=list(INT8_OPERATIONS), per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip


def annotate(source: Path, out: Path, rules: ImageRules, facts: dict[str, str]) -> None:
    """Write a graph again with what its reader must know: how images become pixels, and where it is from."""
    import onnx

    graph = onnx.load(source)
    keys = {RULES_KEY: json.dumps(asdict(rules))}
    if "checkpoint" in facts:
        keys[CHECKPOINT_KEY] = facts["checkpoint"]
    for key, value in keys.items():
        graph.metadata_props.add(key=key, value=value)
    onnx.save(graph, out)
