"""Output that must match a JSON schema or a regular expression, by llguidance's token masks."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobillama.core.errors import UserError

from .session import Logits
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Where white space may stand at will, a small model writes it for ever. "x-guidance" in a schema overrides.
PLAIN_JSON: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


@dataclass(frozen=True)
class Constraint:
    """A grammar that an answer must match as a whole, in llguidance's own spelling."""

    grammar: str


def json_schema(schema: str) -> Constraint:
    """Return the constraint of a JSON schema, given as its text or as the path of a file.

    Raises:
        UserError: it is neither a readable file nor a JSON object.
    """
    from llguidance import LLMatcher

    text = schema
    if not schema.lstrip().startswith(("{", "true")):
        try:
            text = Path(schema).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--json-schema {schema}: {error}; give a file or the schema itself") from None
    try:
        return Constraint(LLMatcher.grammar_from_json_schema(text, defaults=PLAIN_JSON))
    except ValueError as error:
        raise UserError(f"the JSON schema cannot be read: {error}; check its JSON") from None


def regex(pattern: str) -> Constraint:
    """Return the constraint of a regular expression in Rust's syntax (no look-around)."""
    from llguidance import LLMatcher

    return Constraint(LLMatcher.grammar_from_regex(pattern))


class Matcher:
    """Follows one answer through its grammar."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, vocab_size: int):
        """Compile ``constraint`` for a model of ``vocab_size`` logits.

        Raises:
            UserError: the grammar is not valid or not supported, or the model has no end token.
        """
        from llguidance import LLMatcher, LLTokenizer

        if not tokenizer.end_tokens:
            raise UserError("constrained output needs an end-of-text token; this model's tokenizer has none")
        vocabulary = LLTokenizer(
            tokenizer.definition, n_vocab=vocab_size, eos_token=sorted(tokenizer.end_tokens)
        )
        self._matcher: LLMatcher = LLMatcher(vocabulary, constraint.grammar, log_level=0)
        self._bits = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise UserError(f"the constraint cannot be used: {reason}; simplify the schema or expression")

    def mask(self, logits: Logits) -> Logits:
        """Return ``logits`` (V,) with minus infinity for every token the grammar forbids next."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return np.where(self._allowed(len(logits)), logits, np.float32(-np.inf))

    def _allowed(self, count: int) -> NDArray[np.bool_]:
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[:count].astype(np.bool_)

    def accept(self, token: int) -> None:
        """Move on by ``token``, which the mask allowed."""
        self._matcher.consume_token(token)
        self._check()
