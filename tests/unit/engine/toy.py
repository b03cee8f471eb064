"""A tiny exact language model in NumPy, and a byte-level tokenizer, to test what is above a session."""

import json
from pathlib import Path

import numpy as np

from mobillama.engine.tokenizer import Tokenizer, byte_alphabet


class ToySession:
    """Logits depend on the last two tokens; each token is computed alone, so exactly alike."""

    split_tolerance = 0.0

    def __init__(self, vocab_size: int = 260, context_length: int = 64, *, seed: int = 0, noise: float = 0.0):
        self.vocab_size, self.context_length = vocab_size, context_length
        self.tokens: list[int] = []
        self.passes: list[int] = []
        random = np.random.default_rng(seed)
        self.table = random.standard_normal((31, vocab_size)).astype(np.float32)
        # With noise, a token that arrives in company gets slightly other logits, as in a real engine.
        self.noise = noise
        self.history_noise: list[float] = []
        if noise:
            self.split_tolerance = 3 * noise

    @property
    def position(self) -> int:
        return len(self.tokens)

    def logits_at(self, end: int) -> np.ndarray:
        before = self.tokens[max(0, end - 2) : end]
        row = self.table[(7 * before[-1] + 3 * before[0]) % len(self.table)].copy()
        # What earlier batches left in the cache shifts later logits too.
        return row + np.float32(sum(self.history_noise[:end])) * self.table[end % len(self.table)]

    def forward(self, tokens: np.ndarray, all_logits: bool = False) -> np.ndarray:
        assert tokens.dtype == np.int32 and len(tokens)
        assert self.position + len(tokens) <= self.context_length
        self.passes.append(len(tokens))
        start = self.position
        self.tokens += tokens.tolist()
        # The same batch at the same place is always off by the same amount, as in a real engine.
        size = self.noise / self.context_length if len(tokens) > 1 else 0.0
        random = np.random.default_rng([start, len(tokens)])
        self.history_noise += random.uniform(-size, size, len(tokens)).tolist()
        rows = np.stack([self.logits_at(end) for end in range(start + 1, self.position + 1)])
        return rows if all_logits else rows[-1]

    def truncate(self, position: int) -> None:
        assert 0 <= position <= self.position
        del self.tokens[position:]
        del self.history_noise[position:]

    def reset(self) -> None:
        self.truncate(0)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([self.tokens, self.history_noise]))

    def load(self, path: Path) -> None:
        self.tokens, self.history_noise = json.loads(path.read_text())


END = 256


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of the 256 bytes, an end token (256) and three merged words."""
    vocabulary = dict(byte_alphabet().items())
    added = [{"id": END, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}]  # fmt: skip
    vocabulary |= {"<|end|>": END, "he": 257, "ll": 258, "Ġw": 259}
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False,
                  "vocab": vocabulary, "merges": [["h", "e"], ["l", "l"], ["Ġ", "w"]]},
    }  # fmt: skip
    return Tokenizer(json.dumps(definition), frozenset({END}))
