"""How long it takes to index a corpus, to trace an answer of 1,000 tokens, and to find a passage.

    python benchmarks/trace.py CORPUS [--answers 5]

Three kinds of answers: words drawn from held-out text (as a model's own answer would be), the training
text itself (one match of 1,000 tokens), and pieces of training text of 20 tokens, put together. Times
are medians; "cold" drops the index and the shards from the page cache before the query.
"""

import argparse
import os
import random
import statistics
import time
from pathlib import Path

from mobillama.data import Corpus
from mobillama.lineage.index import Index, build, index_directory
from mobillama.lineage.trace import trace

ANSWER_TOKENS = 1000


def answers(corpus: Corpus, kind: str, count: int) -> list[str]:
    """Return texts of about ``ANSWER_TOKENS`` tokens."""
    source = random.Random(kind)
    split = "heldout" if kind == "held-out text" else "train"
    piece = 20 if kind == "pieces of 20 tokens" else ANSWER_TOKENS
    streams = [stream for name in corpus.subsets if len(stream := corpus.tokens(name, split)) > piece]
    weights = [len(stream) for stream in streams]

    def cut() -> str:
        stream = source.choices(streams, weights)[0]
        start = source.randrange(len(stream) - piece)
        return corpus.tokenizer.decode(stream.read(start, start + piece).tolist())

    return ["".join(cut() for _ in range(ANSWER_TOKENS // piece)) for _ in range(count)]


def forget(index: Index) -> None:
    """Drop the files of an index and its corpus from the page cache."""
    for folder in (index.directory, index.corpus.directory):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(action) -> float:
    """Return how many seconds ``action`` takes."""
    started_at = time.perf_counter()
    action()
    return time.perf_counter() - started_at


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--answers", type=int, default=5)
    given = parser.parse_args()
    corpus = Corpus(given.corpus)
    tokens = sum(len(corpus.tokens(name)) for name in corpus.subsets)
    if not (index_directory(given.corpus) / "manifest.json").is_file():
        print(f"build: {timed(lambda: build(corpus)):.1f} s for {tokens:,} tokens")
    open_ms = timed(lambda: Index(corpus)) * 1000
    index = Index(corpus)
    print(f"open: {open_ms:.0f} ms, {tokens:,} tokens, {len(index.places)} parts")
    print(f"spelling table: {timed(lambda: index.spelling.beginnings(b'x')) * 1000:.0f} ms, once a command")
    for kind in ("held-out text", "training text", "pieces of 20 tokens"):
        texts = answers(corpus, kind, given.answers)
        warm = [timed(lambda text=text: trace(index, text)) for text in texts for _ in range(2)][1::2]
        forget(index)
        cold = timed(lambda text=texts[0]: trace(index, text))
        passages = [text[100:180].encode() for text in texts]
        find = [timed(lambda text=text: index.occurrences(text, 100)) for text in passages]
        found = trace(index, texts[0])
        print(
            f"{kind}: trace {statistics.median(warm) * 1000:.0f} ms (cold {cold * 1000:.0f} ms), "
            f"{found.found} spans, {found.covered / len(texts[0]):.0%} covered; "
            f"find a passage of 80 characters {statistics.median(find) * 1000:.0f} ms"
        )


if __name__ == "__main__":
    main()
