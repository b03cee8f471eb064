"""Measure a model on tasks: question by question, written down as it goes, taken up where it stopped."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.api.task import ConfigurableTask

from mobillama.core import atomic, records
from mobillama.core.environment import environment, installed_version
from mobillama.core.progress import progress

from . import paper, requests, statistics
from .requests import Item
from .subjects import Identity, Subject
from .tasks import TaskSet, leaves

PROMPTS = "prompts"
FORMAT = 1
CHUNK_QUESTIONS = 128
# What a task is reported by, where the paper does not say.
PREFERRED_METRICS = ("acc_norm", "acc", "exact_match", "bits_per_byte")
RESAMPLES_OTHER_METRICS = 1000


@dataclass
class Judged:
    """A task's questions with the model's answers: what each scored, by metric, in document order."""

    task: ConfigurableTask
    log: str
    scores: dict[str, list[Any]]
    questions: int
    cut_questions: int


def directory_of(out: Path, subject: Identity) -> Path:
    """Return where a model's results go: one place for these weights, in this arithmetic."""
    words = re.sub(r"[^\w.-]+", "-", subject.name).strip("-")
    return out / f"{words}-{subject.identity[:8]}-{subject.facts.get('dtype', subject.facts['backend'])}"


def evaluate(subject: Subject, chosen: TaskSet, out: Path, *, limit: int | None = None) -> dict[str, Any]:
    """Measure a model on tasks and return the result, as written to a JSON file in `out`.

    Every answer is appended to a log in a folder beside it; a later call with the same model, task and
    data reads those it finds and asks only the rest, also where `limit` has changed.
    """
    started_at, directory = time.monotonic(), directory_of(out, subject)
    with atomic.exclusive(directory):
        prepared = {}
        for name, task in chosen.tasks.items():
            setting = requests.setting_of(task, chosen.data_identity[name])
            path = out / PROMPTS / f"{setting}.jsonl.gz"
            prepared[name] = (task, setting, requests.items(task, path, limit=limit))
        total = sum(len(items) for _, _, items in prepared.values())
        judged, done = {}, 0
        with progress(f"evaluate {subject.name}", total, "questions") as advance:
            for name, (task, setting, items) in prepared.items():

                def show(count: int, before: int = done, task_name: str = name) -> None:
                    advance(before + count, task_name)

                judged[name] = ask(subject, task, items, directory / f"{setting}.jsonl", show)
                done += len(items)
        result = describe(subject, chosen, judged, limit)
        result["elapsed_s"] = round(time.monotonic() - started_at, 1)
        write_result(out, directory.name, result)
    return result


def write_result(out: Path, name: str, result: dict[str, Any], *, suffix: str = "") -> None:
    """Write a result as `out/NAME` + `suffix` + `.json`; `folder` says where its logs are."""
    result |= {"folder": name, "file": f"{name}{suffix}.json"}
    result |= records.sealed(result)
    atomic.write_text(out / result["file"], json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def ask(
    subject: Subject, task: ConfigurableTask, items: list[Item], log: Path, show: Callable[[int], None]
) -> Judged:
    """Return a task's questions judged: from the log where they are in it, else asked and appended to it."""
    answered = {entry["id"]: entry for entry in read_log(log)}
    scores: dict[int, dict[str, Any]] = {}
    held = [item for item in items if item.document_id in answered]
    for item in held:
        entry = answered[item.document_id]
        for request, response in zip(item.requests, entry["responses"], strict=True):
            request.resps = [tuple(response) if isinstance(response, list) else response]
    scores |= judge(task, held)
    show(len(held))
    rest = [item for item in items if item.document_id not in answered]
    for chunk in requests.chunks(rest, CHUNK_QUESTIONS):
        cuts = respond(subject, chunk)
        found = judge(task, chunk)
        entries = [
            entry_of(task, item, found[item.document_id], cut) for item, cut in zip(chunk, cuts, strict=True)
        ]
        records.append_sealed(log, entries)
        answered |= {entry["id"]: entry for entry in entries}
        scores |= found
        show(len(scores))
    by_metric: dict[str, list[Any]] = {}
    for item in items:
        for metric, value in scores[item.document_id].items():
            by_metric.setdefault(metric, []).append(value)
    cut_questions = sum(answered[item.document_id]["cut_tokens"] > 0 for item in items)
    return Judged(task, log.name, by_metric, len(items), cut_questions)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, after cutting off a last one that a killed process left torn.

    Raises:
        UserError: a line was changed.
    """
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
    return records.read_sealed(path)


def respond(subject: Subject, chunk: list[Item]) -> list[int]:
    """Ask the model all requests of a chunk, keep its responses in them, and return each question's cut."""
    by_kind: dict[str, list[Any]] = {}
    for item in chunk:
        for request in item.requests:
            by_kind.setdefault(request.request_type, []).append(request)
    for kind, asked in by_kind.items():
        for request, response in zip(asked, getattr(subject.lm, kind)(asked), strict=True):
            request.resps = [response]
    cuts = subject.lm.cut_tokens
    return cuts if by_kind.keys() == {"loglikelihood"} and len(cuts) == len(chunk) else [0] * len(chunk)


def judge(task: ConfigurableTask, items: Iterable[Item]) -> dict[int, dict[str, Any]]:
    """Return by document what its answers score: metric to value, with the filter named unless it is none."""
    judged: dict[int, dict[str, Any]] = {}
    items = list(items)
    if not items:
        return judged
    task._instances = [request for item in items for request in item.requests]
    task.apply_filters()
    for item in items:
        scores = judged.setdefault(item.document_id, {})
        for name in item.requests[0].filtered_resps:
            answers = [request.filtered_resps[name] for request in item.requests]
            for metric, value in task.process_results(item.document, answers).items():
                scores[metric if name == "none" else f"{metric},{name}"] = value
        for request in item.requests:
            request.filtered_resps = {}
    return judged


def entry_of(task: ConfigurableTask, item: Item, scores: dict[str, Any], cut_tokens: int) -> dict[str, Any]:
    """Return one line of the log; the prompts are in the prompts file, under the same id."""
    entry = {
        "id": item.document_id,
        "choices": [request.args[-1] for request in item.requests],
        "target": task.doc_to_text(item.document)
        if task.multiple_input
        else task.doc_to_target(item.document),
        "responses": [request.resps[0] for request in item.requests],
        "scores": scores,
        "cut_tokens": cut_tokens,
    }
    return json.loads(json.dumps(entry, default=float))  # NumPy's numbers as plain ones


def describe(
    subject: Subject, chosen: TaskSet, judged: dict[str, Judged], limit: int | None
) -> dict[str, Any]:
    """Return the whole result."""
    single = {name: describe_task(found) for name, found in judged.items()}
    tasks = {}
    for name in chosen.asked:
        members = [task.task_name for task in leaves(chosen, name)]
        tasks[name] = single[name] if members == [name] else describe_group(chosen, name, judged, single)
        tasks[name]["note"] = chosen.notes.get(name)
    percent = {name: 100 * found["value"] for name, found in tasks.items() if name in paper.BY_TASK}
    return {
        "kind": "evaluation",
        "format": FORMAT,
        "model": {"name": subject.name, "identity": subject.identity, **subject.facts},
        "tokenizer": subject.tokenizer_identity,
        "settings": {"limit": limit, "cut": subject.lm.cut, "max_length": subject.lm.max_length},
        "harness": {"lm_eval": installed_version("lm_eval")},
        "environment": environment(),
        "data": chosen.data,
        "finished_at": records.now(),
        "tasks": tasks,
        "averages": {
            "paper": paper.average(percent, crows_pairs=True),
            "without_crows_pairs": paper.average(percent, crows_pairs=False),
        },
    }


def describe_task(found: Judged) -> dict[str, Any]:
    """Return a task's metrics with their standard errors and intervals."""
    metrics = {}
    for metric, values in found.scores.items():
        aggregate: Any = found.task.aggregation().get(metric.partition(",")[0], mean)
        if aggregate is mean:
            interval = statistics.bootstrap(values)
            metrics[metric] = {
                "value": float(mean(values)),
                "standard_error": statistics.standard_error(values),
                "interval": [interval.low, interval.high],
            }
        else:
            error = stderr_for_metric(aggregate, RESAMPLES_OTHER_METRICS)
            metrics[metric] = {
                "value": float(aggregate(values)),
                "standard_error": float(error(values)) if error and len(values) > 1 else None,
                "interval": None,
            }
    task: Any = found.task
    metric = main_metric(task.task_name, metrics)
    return {
        "metric": metric,
        **metrics[metric],
        "questions": found.questions,
        "of": len(task.eval_docs),
        "cut_questions": found.cut_questions,
        "num_fewshot": task.get_config("num_fewshot") or 0,
        "version": task.VERSION,
        "metrics": metrics,
        "logs": [found.log],
    }


def describe_group(
    chosen: TaskSet, name: str, judged: dict[str, Judged], single: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return a group's score as the harness forms it, with an interval over all its questions."""
    group: Any = chosen.groups[name]
    members = [task.task_name for task in group.get_all_tasks()]
    flat: dict[str, Any] = {
        member: {"name": member, "alias": member, "sample_len": single[member]["questions"]}
        | {f"{metric},none": found["value"] for metric, found in single[member]["metrics"].items()}
        | {
            f"{metric}_stderr,none": found["standard_error"]
            for metric, found in single[member]["metrics"].items()
        }
        for member in members
    }
    whole: Any = group.aggregate(flat)
    values = {key.removesuffix(",none"): value for key, value in whole.items() if key.endswith(",none")}
    metric = main_metric(name, {key: value for key, value in values.items() if not key.endswith("_stderr")})
    pooled = [value for member in members for value in judged[member].scores[metric]]
    interval = statistics.bootstrap(pooled)
    return {
        "metric": metric,
        "value": float(values[metric]),
        "standard_error": values.get(f"{metric}_stderr"),
        "interval": [interval.low, interval.high],
        "questions": len(pooled),
        "of": sum(single[member]["of"] for member in members),
        "cut_questions": sum(single[member]["cut_questions"] for member in members),
        "num_fewshot": single[members[0]]["num_fewshot"],
        "version": group.version,
        "members": {member: single[member]["value"] for member in members},
        "logs": [judged[member].log for member in members],
    }


def main_metric(name: str, metrics: dict[str, Any]) -> str:
    """Return the metric a task is reported by: the paper's, else the most usual one it has."""
    if name in paper.BY_TASK and paper.BY_TASK[name].metric in metrics:
        return paper.BY_TASK[name].metric
    return next((metric for metric in PREFERRED_METRICS if metric in metrics), next(iter(metrics)))
