"""A small corpus of invented words: two subsets, several shards, groups, text of many scripts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobillama.data import Corpus, prepare
from mobillama.data.recipe import CorpusSection

ODD_TEXTS = (
    "Zwölf Boxkämpfer jagen Viktor quer über den Deich. <|endoftext|> is text here, not an end. ",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ うゐのおくやま\u3000\x1f\x85\u2028 けふこえて ",
    "emoji 👩‍👩‍👧‍👦 combining e\u0301 tabs\t\t\tand   spaces \r\n\r\n  'll 's 1234567 ½ ٣ \x00 end\ufeff",
    "new letters \U0001e6c0\U00010940! beside old ones, 're and \ua7ce. Then words that make it long: ",
)


def sentences(generator: np.random.Generator, words: int) -> str:
    """Return invented prose, so that no two documents are alike."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return " ".join("".join(generator.choice(letters, generator.integers(2, 9))) for _ in range(words)) + "."


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``novels.jsonl`` (10 titles of 6 chapters) and ``notes.jsonl`` (40 documents)."""
    root = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    novels = [
        {
            "text": sentences(generator, 150),
            "title": f"novel {title}",
            "source": f"shelf {title}",
            "licence": "CC0",
        }
        for title in range(10)
        for _ in range(6)
    ]
    notes = [{"text": sentences(generator, 80), "key": 1000 + number} for number in range(36)]
    notes += [{"text": text + sentences(generator, 30), "key": 2000 + n} for n, text in enumerate(ODD_TEXTS)]
    write_jsonl(root / "novels.jsonl", novels)
    write_jsonl(root / "notes.jsonl", notes)
    return root


def small_section(root: Path, directory: Path, **changes: Any) -> CorpusSection:
    """Return the recipe of the small corpus."""
    values: dict[str, Any] = {
        "directory": directory,
        "root": root,
        "heldout_bytes": 3000,
        "shard_bytes": 8000,
        "workers": 2,
        "tokenizer": {"vocab_size": 600},
        "subsets": [
            {
                "name": "novels",
                "kind": "jsonl",
                "paths": ["novels.jsonl"],
                "source_field": "source",
                "license_field": "licence",
                "group_by": "title",
            },
            {
                "name": "notes",
                "kind": "jsonl",
                "paths": ["notes.jsonl"],
                "license": "MIT",
                "id_field": "key",
            },
        ],
    }
    return CorpusSection.model_validate(values | changes)


@pytest.fixture(scope="session")
def small_corpus(small_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The small corpus, prepared once."""
    return Corpus(prepare(small_section(small_inputs, tmp_path_factory.mktemp("corpora") / "small")))
