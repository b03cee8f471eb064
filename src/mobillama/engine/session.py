"""What the engine asks of a model: a session that takes tokens and gives vocabulary scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]
Embeddings = NDArray[np.float32]


class Session(Protocol):
    """One text in a model: its key-value cache and its position.

    The native engine and the torch model both give such sessions, so everything above them
    (sampling, speculation, constraints, chat, bench) is written once.
    """

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        ...

    @property
    def context_length(self) -> int:
        """How many tokens the cache can hold."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of logits a token gets."""
        ...

    def forward(self, tokens: Tokens, all_logits: bool = False) -> Logits:
        """Append ``tokens`` (T,) to the cache and return logits.

        Returns the last token's logits, shape (vocab_size,), or with ``all_logits`` every
        token's, shape (T, vocab_size). The array belongs to the caller.
        """
        ...

    def truncate(self, position: int) -> None:
        """Forget every token from ``position`` on."""
        ...

    def reset(self) -> None:
        """Forget all tokens."""
        ...


@runtime_checkable
class SavableSession(Session, Protocol):
    """A session whose cache can be written to a file and read back into the same model."""

    def save(self, path: Path) -> None:
        """Write the cache to ``path``."""
        ...

    def load(self, path: Path) -> None:
        """Replace the cache by what ``save`` wrote."""
        ...


@runtime_checkable
class EmbeddingSession(Session, Protocol):
    """A session that also takes input embeddings in place of tokens: an image's, for instance."""

    def forward_embeddings(self, embeddings: Embeddings, all_logits: bool = False) -> Logits:
        """As `forward`, from embeddings (T, hidden_size)."""
        ...


# Float32 sums in another order differ by about 1e-5 of the largest logit; this leaves room.
FLOAT32_SPLIT_TOLERANCE = 1e-2


def split_tolerance(session: Session) -> float:
    """Return by how much a logit may differ when the same tokens arrive in other batches.

    A session that computes every token alike, whatever comes with it, says 0 by an attribute
    ``split_tolerance``; one of coarser arithmetic says more.
    """
    return float(getattr(session, "split_tolerance", FLOAT32_SPLIT_TOLERANCE))


def as_tokens(tokens: Sequence[int]) -> Tokens:
    """Return token ids as the int32 array a session takes."""
    return np.asarray(tokens, dtype=np.int32)
