"""Bits per byte of a corpus's held-out text, by subset, for any model: bytes do not depend on a tokenizer."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from mobillama.core import atomic, records
from mobillama.core.environment import environment
from mobillama.core.progress import progress
from mobillama.data import Corpus

from .evaluation import FORMAT, directory_of, read_log, write_result
from .harness_model import SharedPrefixLM
from .questions import Continuation
from .subjects import Subject

HELDOUT = "heldout"


def evaluate_heldout(
    subject: Subject, corpus: Corpus, out: Path, *, limit: int | None = None
) -> dict[str, Any]:
    """Measure a model on held-out documents and return the result, as written to a JSON file in `out`.

    Each document is a text of its own, in windows of the model's context without overlap.

    Arguments:
        limit: documents of each subset; all if not given.
    """
    started_at, directory = time.monotonic(), directory_of(out, subject)
    chosen = {subset: [held.document for held in corpus.heldout(subset)][:limit] for subset in corpus.subsets}
    with atomic.exclusive(directory):
        log = directory / f"{HELDOUT}-{corpus.identity[:12]}.jsonl"
        nats = {(entry["subset"], entry["start"]): entry["nats"] for entry in read_log(log)}
        total, done = sum(document.size_bytes for group in chosen.values() for document in group), 0
        with progress(f"held-out text {subject.name}", total, "bytes") as advance:
            for subset, documents in chosen.items():
                for document in documents:
                    key = (subset, document.start)
                    if key not in nats:
                        nats[key] = nats_of(subject.lm, corpus.text(document))
                        entry = {
                            "subset": subset,
                            "start": document.start,
                            "id": document.id,
                            "nats": nats[key],
                        }
                        records.append_sealed(log, [entry])
                    done += document.size_bytes
                    advance(done, subset)
        subsets = {
            subset: {
                "bits_per_byte": sum(nats[subset, document.start] for document in documents)
                / math.log(2)
                / sum(document.size_bytes for document in documents),
                "documents": len(documents),
                "bytes": sum(document.size_bytes for document in documents),
            }
            for subset, documents in chosen.items()
            if documents
        }
        result = {
            "kind": HELDOUT,
            "format": FORMAT,
            "model": {"name": subject.name, "identity": subject.identity, **subject.facts},
            "corpus": corpus.identity,
            "settings": {"limit": limit, "max_length": subject.lm.max_length},
            "environment": environment(),
            "finished_at": records.now(),
            "subsets": subsets,
            "elapsed_s": round(time.monotonic() - started_at, 1),
        }
        write_result(out, directory.name, result, suffix=f".{HELDOUT}")
    return result


def nats_of(lm: SharedPrefixLM, text: str) -> float:
    """Return the negative log-likelihood of a text after the token that begins one.

    Its windows follow each other without overlap, as training measures its own held-out text.
    """
    tokens = (lm.prefix_token_id, *lm.encode([text], special=False)[0])
    windows = [
        tokens[start : start + lm.max_length + 1] for start in range(0, len(tokens) - 1, lm.max_length)
    ]
    scores = lm.scorer.score([[Continuation(window, len(window) - 1)] for window in windows])
    return -sum(score.loglikelihood for (score,) in scores)
