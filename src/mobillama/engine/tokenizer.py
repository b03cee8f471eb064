"""The tokenizer of a device file or checkpoint: a `tokenizers` tokenizer whose tokens are known as bytes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from mobillama.core.errors import UserError

METASPACE = "▁"


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Source: GPT-2's byte-level BPE: printable Latin-1 stands for itself, the other 68 bytes for
    U+0100 onward.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


@dataclass(frozen=True)
class Tokenizer:
    """Text to tokens and tokens to bytes.

    Attributes:
        definition: the text of a ``tokenizer.json``.
        end_tokens: the ids that end an answer.
        begin_token: the id a text begins with where the model was trained so, else None.
    """

    definition: str
    end_tokens: frozenset[int]
    begin_token: int | None = None
    _cache: dict[int, bytes] = field(default_factory=dict[int, bytes], repr=False, compare=False)

    @cached_property
    def backend(self) -> Backend:
        """The `tokenizers` object.

        Raises:
            UserError: the definition cannot be read.
        """
        try:
            return Backend.from_str(self.definition)
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"tokenizer.json: {error}; take the model from its source again") from None

    @cached_property
    def _byte_level(self) -> dict[str, int] | None:
        decoder: Any = json.loads(self.definition).get("decoder") or {}
        members = [decoder, *decoder.get("decoders", [])]
        return byte_alphabet() if any(member.get("type") == "ByteLevel" for member in members) else None

    @cached_property
    def _added(self) -> dict[int, Any]:
        return dict(self.backend.get_added_tokens_decoder())

    @property
    def vocab_size(self) -> int:
        """The number of tokens the tokenizer knows."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of ``text``; with ``special`` the tokens that a text begins with come first."""
        ids = list(self.backend.encode(text, add_special_tokens=special).ids)
        if special and self.begin_token is not None and ids[:1] != [self.begin_token]:
            ids.insert(0, self.begin_token)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens``; bytes that make no character give U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token adds to the text; none for control tokens and unknown ids."""
        found = self._cache.get(token)
        if found is None:
            found = self._cache[token] = self._spell(token)
        return found

    def _spell(self, token: int) -> bytes:
        piece = self.backend.id_to_token(token)
        if piece is None:
            return b""
        if added := self._added.get(token):
            return b"" if added.special else piece.encode()
        if self._byte_level is not None:
            return bytes(self._byte_level[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(METASPACE, " ").encode()


def read_tokenizer(directory: Path) -> Tokenizer:
    """Return the tokenizer of a Hugging Face model folder.

    Raises:
        UserError: there is no ``tokenizer.json``.
    """
    try:
        definition = (directory / "tokenizer.json").read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"{directory}: no tokenizer.json here; copy it beside the weights") from None
    backend = Backend.from_str(definition)
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        ends |= _ids(_read_json(directory / name).get("eos_token_id"))
    settings = _read_json(directory / "tokenizer_config.json")
    if (end := backend.token_to_id(_content(settings.get("eos_token")))) is not None:
        ends.add(end)
    begin = (
        backend.token_to_id(_content(settings.get("bos_token"))) if settings.get("add_bos_token") else None
    )
    return Tokenizer(definition, frozenset(ends), begin)


def read_chat_template(directory: Path) -> str | None:
    """Return the chat template in a model folder, as a file of its own or in the tokenizer's settings."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = _read_json(directory / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None


def _ids(listed: int | list[int] | None) -> set[int]:
    if listed is None:
        return set()
    return {listed} if isinstance(listed, int) else set(listed)


def _content(token: str | dict[str, Any] | None) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
