"""A task's questions, built once and written down: for every checkpoint, and for the reader of a log."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from mobillama.core import atomic
from mobillama.core.hashing import canonical_json, sha256_text

from .tasks import definition_of

# lm-eval's own seed for drawing worked examples, so that they are the same ones.
FEWSHOT_SEED = 1234


@dataclass(frozen=True)
class Item:
    """One question of a task: its document, and what the model is asked about it."""

    document_id: int
    document: dict[str, Any]
    requests: tuple[Instance, ...]


def setting_of(task: ConfigurableTask, data: str) -> str:
    """Return a name for a task as it is asked: its own, and a hash of its definition and of its data."""
    return f"{task.task_name}-{sha256_text(canonical_json([definition_of(task), data]))[:12]}"


def items(task: ConfigurableTask, path: Path, *, limit: int | None) -> list[Item]:
    """Return the first `limit` questions of a task, or all; from `path` where they are written."""
    documents = dict(task.doc_iterator(limit=limit))
    if path.is_file() and (found := read(path, documents)) is not None:
        return found
    task.set_fewshot_seed(FEWSHOT_SEED)
    task.build_all_requests(limit=limit)
    instances: Any = task.instances
    grouped = groupby(instances, key=lambda instance: instance.doc_id)
    built = [Item(document_id, documents[document_id], tuple(group)) for document_id, group in grouped]
    write(path, built)
    return built


def read(path: Path, documents: dict[int, dict[str, Any]]) -> list[Item] | None:
    """Return cached questions, or None where the cache holds fewer of them."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        cached = {document_id: entries for document_id, *entries in map(json.loads, file)}
    if not documents.keys() <= cached.keys():
        return None
    found = []
    for document_id, document in documents.items():
        task, contexts, requests = cached[document_id]
        instances = [
            Instance(
                request_type=kind,
                doc=document,
                arguments=(contexts[context], *rest),
                idx=index,
                metadata=(task, document_id, 1),
            )
            for index, (kind, context, *rest) in enumerate(requests)
        ]
        found.append(Item(document_id, document, tuple(instances)))
    return found


def write(path: Path, built: list[Item]) -> None:
    """Write questions; a context that several requests share is written once."""
    with (
        atomic.atomic_file(path) as partial,
        gzip.open(partial, "wt", encoding="utf-8", compresslevel=1) as file,
    ):
        for item in built:
            contexts = list(dict.fromkeys(request.args[0] for request in item.requests))
            requests = [
                [request.request_type, contexts.index(request.args[0]), *request.args[1:]]
                for request in item.requests
            ]
            line = [item.document_id, item.requests[0].task_name, contexts, requests]
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def chunks(questions: list[Item], size: int) -> Iterator[list[Item]]:
    """Yield up to `size` questions at a time."""
    for start in range(0, len(questions), size):
        yield questions[start : start + size]
