"""Corpora of a few documents, made with the real preparation, for the tests of lineage."""

import json
from pathlib import Path

from mobillama.data import Corpus, prepare
from mobillama.data.recipe import CorpusSection

TEXT = "the cat sat on a mat and then, naïvely, ran 12 times round café tables — 猫 isn't satin\n"
WORDS = TEXT.split(" ")


def make_corpus(folder: Path, subsets: dict[str, list[str]], *, vocab_size: int = 300) -> Corpus:
    """Prepare a corpus whose documents are exactly ``subsets``, in order, without dropping any."""
    sections = []
    for name, texts in subsets.items():
        lines = [
            json.dumps({"id": f"{name}-{number}", "source": f"https://{name}.org/{number}", "text": text})
            for number, text in enumerate(texts)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sections.append(
            {
                "name": name,
                "kind": "jsonl",
                "paths": [f"{name}.jsonl"],
                "id_field": "id",
                "source_field": "source",
                "license": "CC0-1.0",
            }
        )
    section = CorpusSection.model_validate(
        {
            "directory": folder / "corpus",
            "root": folder,
            "subsets": sections,
            "tokenizer": {"vocab_size": vocab_size},
            "filters": {"min_bytes": 1, "max_duplicate_lines": 1, "max_duplicate_ngrams": 1},
            "deduplication": {"exact": False, "near": False},
            "heldout_bytes": 0,
            "workers": 1,
        }
    )
    return Corpus(prepare(section))


def sentences(random, count: int) -> list[str]:
    """Return ``count`` documents of random words from a small vocabulary, so that passages repeat."""
    return [" ".join(random.choices(WORDS, k=random.randint(3, 60))) for _ in range(count)]


def all_texts(corpus: Corpus) -> list[str]:
    """Return the text of every training document, read the slow way."""
    return [
        corpus.text(document) for subset in corpus.subsets for document in corpus.tokens(subset).documents()
    ]


def occurrences_in(texts: list[str], passage: str) -> int:
    """Count the places, overlapping ones too, where ``passage`` stands in any of ``texts``."""
    found = 0
    for text in texts:
        at = text.find(passage)
        while at >= 0:
            found, at = found + 1, text.find(passage, at + 1)
    return found
