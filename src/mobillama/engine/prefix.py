"""The prompt-prefix cache: a session together with the tokens it holds.

A prompt that begins like what the session holds is computed only from where it differs.

Ids below 0 stand for embeddings and are hashes of them (`PrefixCache.embed`): a prompt is a list of
ids whatever is in it, and the same image is the same prefix.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mobillama.core.atomic import atomic_directory
from mobillama.core.errors import UserError
from mobillama.core.records import require_intact, write_manifest

from .session import Embeddings, EmbeddingSession, Logits, SavableSession, Session, as_tokens

# A long prompt is computed in pieces, so that an interruption is heard within one of them.
PREFILL_TOKENS = 512

KIND = "prompt cache"
SESSION = "session.kv"

# What a context shift keeps of the beginning, where the instructions are; half of the rest is dropped.
SHIFT_KEEPS = 1 / 8


def never() -> bool:
    """Say that nobody interrupts."""
    return False


class StoppedError(Exception):
    """The user asked to stop while a prompt was being read; the cache holds what was read so far."""


@dataclass
class PrefixCache:
    """A session and the tokens in it, kept in step."""

    session: Session
    tokens: list[int] = field(default_factory=list[int])
    _embeddings: dict[int, Embeddings] = field(default_factory=dict[int, Embeddings], repr=False)

    @property
    def position(self) -> int:
        """How many tokens the session holds."""
        return len(self.tokens)

    @property
    def room(self) -> int:
        """How many more tokens the session can take."""
        return self.session.context_length - len(self.tokens)

    def embed(self, embeddings: Embeddings) -> list[int]:
        """Return the ids, one a row, by which a prompt of this cache names ``embeddings`` (T, hidden_size).

        Equal rows have equal ids. They are forgotten once a prompt without them has been computed.

        Raises:
            UserError: the session takes tokens only.
        """
        if not isinstance(self.session, EmbeddingSession):
            raise UserError("this model takes text only; use one that was trained with images")
        ids: list[int] = []
        for row in np.array(embeddings, dtype=np.float32):
            digest = hashlib.sha256(row.tobytes()).digest()
            ids.append(-1 - int.from_bytes(digest[:8], "little") // 2)
            self._embeddings[ids[-1]] = row
        return ids

    def common_prefix(self, tokens: Sequence[int]) -> int:
        """Return how many tokens at the beginning of ``tokens`` are already computed."""
        length = min(len(tokens), len(self.tokens))
        ours, theirs = (np.asarray(each[:length], dtype=np.int64) for each in (self.tokens, tokens))
        differs = np.flatnonzero(ours != theirs)
        return int(differs[0]) if len(differs) else length

    def prefill(self, tokens: Sequence[int], interrupted: Callable[[], bool] = never) -> Logits:
        """Make the session hold exactly ``tokens`` and return the last one's logits (V,).

        Raises:
            UserError: there are no tokens, an id is unknown to the model, or they exceed the context.
            StoppedError: ``interrupted`` said so between two pieces.
        """
        self._check(tokens)
        # The last token is computed in any case: its logits are wanted.
        start = min(self.common_prefix(tokens), len(tokens) - 1)
        self.truncate(start)
        logits = np.empty(0, dtype=np.float32)
        for begin in range(start, len(tokens), PREFILL_TOKENS):
            if interrupted():
                raise StoppedError
            logits = self.forward(tokens[begin : begin + PREFILL_TOKENS])
        self._embeddings = {id_: self._embeddings[id_] for id_ in tokens if id_ in self._embeddings}
        return logits

    def _check(self, tokens: Sequence[int]) -> None:
        if not len(tokens):
            raise UserError("the prompt is empty; give at least one word")
        if len(tokens) > self.session.context_length:
            raise UserError(
                f"the prompt has {len(tokens)} tokens, the context holds {self.session.context_length}; "
                "shorten it"
            )
        for token in tokens:
            if not (0 <= token < self.session.vocab_size or token in self._embeddings):
                raise UserError(
                    f"the prompt has token {token}, the model knows {self.session.vocab_size}; "
                    "use the tokenizer the model was trained with"
                )

    def forward(self, tokens: Sequence[int], all_logits: bool = False) -> Logits:
        """Append ``tokens`` and return logits: the last token's (V,), or all (T, V)."""
        try:
            logits = self._evaluate(tokens, all_logits)
        except BaseException:  # also Ctrl-C: the session may or may not hold the tokens already
            self.session.truncate(len(self.tokens))
            raise
        self.tokens.extend(tokens)
        return logits

    def _evaluate(self, tokens: Sequence[int], all_logits: bool) -> Logits:
        runs: list[Logits] = []
        for embedded, run in itertools.groupby(tokens, lambda token: token < 0):
            if embedded:
                assert isinstance(self.session, EmbeddingSession)  # embed() made these ids
                rows = np.stack([self._embeddings[token] for token in run])
                runs.append(self.session.forward_embeddings(rows, all_logits))
            else:
                runs.append(self.session.forward(as_tokens(list(run)), all_logits))
        return np.concatenate(runs) if all_logits else runs[-1]

    def truncate(self, position: int) -> None:
        """Forget every token from ``position`` on."""
        self.session.truncate(position)
        del self.tokens[position:]

    def shift(self) -> Logits:
        """Drop the older half of all but the beginning, compute the rest anew, return its last logits.

        Rotary keys carry their positions, so moved tokens are computed again.
        """
        keep = int(len(self.tokens) * SHIFT_KEEPS)
        dropped_to = keep + (len(self.tokens) - keep) // 2
        return self.prefill(self.tokens[:keep] + self.tokens[dropped_to:])

    def save(self, directory: Path, model: str) -> None:
        """Write tokens and session to ``directory``; ``model`` is the identity of the weights.

        Raises:
            UserError: this kind of session cannot be saved.
        """
        if not isinstance(self.session, SavableSession):
            raise UserError("only a .gguf model's prompt cache can be saved; quantize the checkpoint first")
        with atomic_directory(directory) as partial:
            self.session.save(partial / SESSION)
            write_manifest(partial, KIND, model=model, tokens=self.tokens)

    def load(self, directory: Path, model: str) -> None:
        """Read back what ``save`` wrote.

        Raises:
            UserError: it is not there, is damaged, or belongs to other weights.
        """
        record = require_intact(directory, KIND)
        tokens = [int(token) for token in record["tokens"]]
        if record["model"] != model:
            raise UserError(f"{directory}: saved with other weights; save it again with this model")
        if not isinstance(self.session, SavableSession):
            raise UserError("only a .gguf model's prompt cache can be loaded; quantize the checkpoint first")
        self.session.load(directory / SESSION)
        if self.session.position != len(tokens):
            self.session.reset()
            self.tokens = []
            raise UserError(
                f"{directory}: session and tokens do not belong together; save the prompt cache again"
            )
        self.tokens = tokens
