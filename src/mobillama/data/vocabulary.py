"""The tokenizer of a corpus: a byte-level BPE learnt from training text alone, or one that exists."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mobillama.core.errors import UserError

from .recipe import TokenizerSection
from .workplace import Step

SMALL_VOCABULARY = 1 << 16


class MakeTokenizer(Step):
    """The one task that writes ``tokenizer/``."""

    name = "vocabulary"

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the stage has one task: the machine is its own
        section = self.section.tokenizer
        if section.path is not None:
            tokenizer = open_tokenizer(section.path, section.end_of_text)
        else:
            tokenizer = train_tokenizer((d.text for d in self.work.documents("tokenizer")), section)
        write_tokenizer(tokenizer, section.end_of_text, self.work.folder("tokenizer"))
        yield from ()


def train_tokenizer(texts: Iterator[str], section: TokenizerSection) -> Tokenizer:
    """Return a byte-level BPE whose end-of-text token has id 0; any text comes back from it as it was.

    Pieces are split as GPT-2 does, which every runtime knows by name.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size,
        special_tokens=[section.end_of_text],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def open_tokenizer(path: Path, end_of_text: str) -> Tokenizer:
    """Open a ``tokenizer.json`` and check that it can end a document.

    Raises:
        UserError: it cannot be read or lacks the end-of-text token.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for any reason
        raise UserError(
            f"{path}: not a tokenizer.json ({error}); give corpus.tokenizer.path another"
        ) from None
    if tokenizer.token_to_id(end_of_text) is None:
        raise UserError(f"{path}: has no token {end_of_text!r}; set corpus.tokenizer.end_of_text to its own")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, end_of_text: str, folder: Path) -> None:
    """Write the two files that transformers' ``AutoTokenizer`` reads."""
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "pad_token": end_of_text,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(configuration, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def token_dtype(vocab_size: int) -> "np.dtype[np.uint16] | np.dtype[np.uint32]":
    """Return how tokens are stored: little-endian, two bytes while they suffice."""
    return np.dtype("<u2") if vocab_size <= SMALL_VOCABULARY else np.dtype("<u4")
