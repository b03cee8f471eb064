"""A language model with an eye whose answers a test writes down, to test what asks it and judges it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from mobillama.engine import LanguageModel, Tokenizer
from mobillama.engine.tokenizer import byte_alphabet

TURN = "Assistant:"
END, IMAGE = 256, 257
Reply = Callable[[str, list[str]], str]


class AnsweringSession:
    """Gives the logits of a reply to the text and the images in it; an image is its file's text, as a row."""

    context_length = 4096
    vocab_size = 258

    def __init__(self, reply: Reply, tokenizer: Tokenizer):
        self.reply, self.tokenizer = reply, tokenizer
        self.held: list[int | str] = []

    @property
    def position(self) -> int:
        return len(self.held)

    def forward(self, tokens: np.ndarray, all_logits: bool = False) -> np.ndarray:
        assert not all_logits
        self.held += tokens.tolist()
        return self.logits()

    def forward_embeddings(self, rows: np.ndarray, all_logits: bool = False) -> np.ndarray:
        self.held += ["".join(chr(int(code)) for code in row if code) for row in rows]
        return self.logits()

    def logits(self) -> np.ndarray:
        text = self.tokenizer.decode([held for held in self.held if isinstance(held, int)])
        asked, turn, said = text.rpartition(TURN)
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        if turn:
            answer = self.reply(asked, [held for held in self.held if isinstance(held, str)])
            assert answer.startswith(said)
            rest = self.tokenizer.encode(answer[len(said) :], special=False)
            logits[rest[0] if rest else min(self.tokenizer.end_tokens)] = 1
        return logits

    def truncate(self, position: int) -> None:
        del self.held[position:]

    def reset(self) -> None:
        self.truncate(0)


def row_of(image: Path | bytes) -> np.ndarray:
    """Show an image file that holds a short text: one row of its characters."""
    text = (image.read_bytes() if isinstance(image, Path) else image).decode()
    row = np.zeros((1, 64), dtype=np.float32)
    row[0, : len(text)] = [ord(character) for character in text]
    return row


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of the 256 bytes, an end token and ``<image>``."""
    backend = Backend(models.BPE(vocab=byte_alphabet(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<image>"])
    return Tokenizer(backend.to_str(), frozenset({END}))


def answering_model(reply: Reply, *, sees: bool = True) -> LanguageModel:
    """Return a model that answers by ``reply(text so far, texts of the images in it)``."""
    tokenizer = byte_tokenizer()
    return LanguageModel(
        name="double",
        tokenizer=tokenizer,
        open_session=lambda: AnsweringSession(reply, tokenizer),
        image_token=IMAGE if sees else None,
        eye=row_of if sees else None,
    )
