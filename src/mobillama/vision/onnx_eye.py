"""The vision half of a device file: tower and projector as ONNX, run by onnxruntime. No torch."""

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mobillama import engine
from mobillama.core.errors import UserError, require_extra
from mobillama.core.records import manifest_path, require_intact
from mobillama.engine import LanguageModel

if TYPE_CHECKING:
    from .images import ImageRules

SUFFIX = ".vision.onnx"
PIXELS, ROWS = "pixels", "rows"
"""The graph's input, one normalised square (1, 3, S, S), and its output (tokens, hidden_size)."""
RULES_KEY, CHECKPOINT_KEY = "mobillama.rules", "mobillama.provenance.checkpoint"


def vision_half(device_file: Path) -> Path:
    """Return where the vision half of a device file lies: beside it, under its name."""
    return device_file.with_suffix(SUFFIX)


def open_device_file(
    path: Path, *, threads: int | None = None, kv_type: str = "q8_0", context: int | None = None
) -> LanguageModel:
    """Return the language model of a ``.gguf`` file, with its eye where the vision half lies beside it.

    Raises:
        UserError: see `engine.load`; the vision half is only opened for the first image.
    """
    model = engine.load(path, threads=threads, kv_type=kv_type, context=context)
    half = vision_half(path)
    if model.image_token is None or not half.is_file():
        return model
    return replace(model, eye=OnnxEye(half, model.metadata, threads=threads))


class OnnxEye:
    """Shows images to a device file's language model.

    Arguments:
        language: the keys of the language half, which must be of the same checkpoint.
        threads: how many compute; the machine's cores if not given.
    """

    def __init__(self, path: Path, language: dict[str, Any], *, threads: int | None = None) -> None:
        self.path = path
        self.language = language
        self.threads = threads

    @cached_property
    def session(self) -> Any:
        """The onnxruntime session.

        Raises:
            UserError: the file is damaged or was changed.
        """
        if manifest_path(self.path).is_file():
            require_intact(self.path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        # Threads that spin while they wait collapse where the machine is shared.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # its own error texts; ours says what to do
        try:
            session = onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base but this
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{self.path}: not a usable vision half ({reason}); quantize the model again"
            ) from None
        self._require_pair(session)
        return session

    def _require_pair(self, session: Any) -> None:
        ours = session.get_modelmeta().custom_metadata_map.get(CHECKPOINT_KEY)
        if ours != self.language.get(CHECKPOINT_KEY):
            raise UserError(
                f"{self.path}: of another checkpoint than the language half beside it; quantize again"
            )
        shape = session.get_outputs()[0].shape
        if shape[-1:] != [self.language.get("mobillama.embedding_length")]:
            raise UserError(f"{self.path}: gives rows {shape}, which the language half beside it cannot take")

    @cached_property
    def rules(self) -> "ImageRules":
        """How images become squares of pixels."""
        from .images import ImageRules

        values = self.session.get_modelmeta().custom_metadata_map.get(RULES_KEY)
        if values is None:
            raise UserError(f"{self.path}: {RULES_KEY} is missing; quantize the model again")
        return ImageRules.from_values(json.loads(values))

    def __call__(self, image: Any, /) -> NDArray[np.float32]:
        """Return an image - a path, its bytes, or a PIL image - as rows (tokens, hidden_size).

        Raises:
            UserError: the image or the vision half cannot be read.
        """
        require_extra("vision", "onnxruntime", "PIL")
        from .images import opened

        picture = opened(image)  # first, so that a bad image costs no start of the graph
        squares = self.rules.pixels(picture)
        # One square a run: memory stays that of one, and the graph needs no free axis.
        rows = [self.session.run([ROWS], {PIXELS: square[None]})[0] for square in squares]
        return np.concatenate(rows)
