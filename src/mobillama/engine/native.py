"""Run a device file on this machine's processor: the typed face of the compiled core.

model = Model("m.gguf", threads=2)
session = model.session()
logits = session.forward(prompt_ids)          # (vocab_size,) float32, of the last token
"""

from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from mobillama.core.atomic import atomic_file
from mobillama.core.errors import UserError

from . import _native

KvType = Literal["q8_0", "f16"]
TokenIds = NDArray[np.int32]
FloatArray = NDArray[np.float32]


class ModelShape(TypedDict):
    """What a device file says of its model, in transformers' names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    context_length: int
    ffn_delta_rank: int
    ffn_of_layer: list[int]
    rms_norm_eps: float
    rope_theta: float


class MemoryUse(TypedDict):
    """Memory by purpose, in bytes; ``kv_bytes`` is for one session whose context is full."""

    weights_bytes: int
    kv_bytes: int
    scratch_bytes: int


def available_isas() -> list[str]:
    """Return the instruction sets that this processor runs, best first; ``scalar`` is always the last."""
    return _native.available_isas()


class Session:
    """One conversation: a position, and the keys and values of the tokens before it.

    Sessions of one model share its weights; their forward passes take turns.
    """

    # A token's logits are the same to the bit whatever tokens come with it: speculation relies on it.
    split_tolerance = 0.0

    def __init__(self, native: _native.Session) -> None:
        self._native = native

    @property
    def position(self) -> int:
        """How many tokens have been evaluated."""
        return self._native.position

    @property
    def context_length(self) -> int:
        """How many tokens there is room for."""
        return self._native.context_length

    @property
    def vocab_size(self) -> int:
        """Logits per token."""
        return self._native.vocab_size

    @property
    def kv_bytes(self) -> int:
        """Memory that this session's keys and values take now."""
        return self._native.kv_bytes

    def forward(self, tokens: TokenIds, all_logits: bool = False) -> FloatArray:
        """Evaluate ``tokens`` (int32, ``(T,)``) after those before them.

        Returns: float32 logits of the last token, ``(V,)``; of every token, ``(T, V)``, with ``all_logits``.
        Raises: UserError: the context is full, or a token is not in the vocabulary.
        """
        try:
            return self._native.forward(np.ascontiguousarray(tokens, np.int32), all_logits)
        except ValueError as error:
            raise UserError(str(error)) from None

    def forward_embeddings(self, embeddings: FloatArray, all_logits: bool = False) -> FloatArray:
        """As :meth:`forward`, from input embeddings (float32, ``(T, hidden_size)``) in place of tokens."""
        try:
            return self._native.forward_embeddings(np.ascontiguousarray(embeddings, np.float32), all_logits)
        except ValueError as error:
            raise UserError(str(error)) from None

    def truncate(self, position: int) -> None:
        """Forget the tokens from ``position`` on."""
        try:
            self._native.truncate(position)
        except (TypeError, ValueError):
            raise UserError(f"cannot truncate to {position}: the session is at {self.position}") from None

    def reset(self) -> None:
        """Forget everything."""
        self._native.truncate(0)

    def save(self, path: str | Path) -> None:
        """Write the evaluated prefix to ``path``, whole or not at all."""
        with atomic_file(Path(path)) as partial:
            try:
                self._native.save(str(partial))
            except ValueError as error:
                raise UserError(str(error).replace(str(partial), str(path))) from None

    def load(self, path: str | Path) -> None:
        """Take the prefix in ``path`` for this session's own.

        Raises: UserError: the file is damaged, or another model or ``kv_type`` wrote it. The session is then
            empty if it had begun to take the file in, and unchanged otherwise.
        """
        try:
            self._native.load(str(path))
        except ValueError as error:
            raise UserError(str(error)) from None


class Model:
    """A device file, repacked for this processor.

    Args:
        path: a GGUF file of architecture ``mobillama``, as ``mobillama quantize`` writes it.
        threads: how many processors to use; the calling thread is one of them. The same count always gives
            the same logits, another count differs in the last bits.
        kv_type: how sessions keep keys and values.
        context: the most tokens a session may hold; what the file says when None.
        isa: an instruction set out of :func:`available_isas`, or ``auto`` for the best.
        pin: keep each thread on one processor while it works (Linux and Windows).

    Raises: UserError: the file cannot be read, is damaged, or asks for what the engine cannot do.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 2,
        kv_type: KvType = "q8_0",
        context: int | None = None,
        isa: str = "auto",
        pin: bool = False,
    ) -> None:
        if threads < 1:
            raise UserError(f"threads is {threads}; it must be at least 1")
        if context is not None and context < 1:
            raise UserError(f"context is {context}; it must be at least 1")
        try:
            self._native = _native.Model(
                str(path), threads=threads, kv_type=kv_type, context=context, isa=isa, pin=pin
            )
        except ValueError as error:
            raise UserError(str(error)) from None

    @property
    def config(self) -> ModelShape:
        """The model's shape."""
        return cast(ModelShape, self._native.config)

    @property
    def metadata(self) -> dict[str, Any]:
        """Every key and value of the file: strings, numbers, booleans, and lists of them."""
        return self._native.metadata

    @property
    def memory(self) -> MemoryUse:
        """What the model takes, beside its sessions."""
        return cast(MemoryUse, self._native.memory)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._native.isa

    @property
    def threads(self) -> int:
        """The number of threads in use."""
        return self._native.threads

    def session(self) -> Session:
        """Begin an empty session."""
        return Session(self._native.session())
