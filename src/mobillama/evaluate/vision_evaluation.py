"""Measure a model on benchmarks about images: real answers, written down as they come, taken up again."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from mobillama import engine
from mobillama.core import atomic, records
from mobillama.core.environment import environment
from mobillama.core.errors import UserError
from mobillama.core.hashing import blake3_file, canonical_json, sha256_text
from mobillama.core.progress import progress
from mobillama.model.checkpoint import locate
from mobillama.vision.onnx_eye import vision_half
from mobillama.vision.opening import open_model

from . import statistics
from .evaluation import FORMAT, directory_of, read_log, write_result
from .subjects import GGUF, Identity, device_file_facts, model_identity, name_of, torch_facts
from .vision_data import VisionItem
from .vision_tasks import Scores, VisionBenchmark, find_benchmarks

Sight = Literal["right", "shuffled", "none"]
SIGHTS: tuple[Sight, ...] = ("right", "shuffled", "none")
SHUFFLE_SEED = 0
LOOKED_AT = 64
Entry = dict[str, Any]
CHUNK_QUESTIONS = 64


@dataclass(frozen=True)
class Asked:
    """A benchmark as it is put to a model: with the right images, with wrong ones, or with none.

    Attributes:
        questions: those that are put; `of` says how many there are, `note` why they are fewer.
        data: SHA-256 of all its questions, images' names and gold answers.
        shown: which image each question is shown with, by its own image's name.
    """

    benchmark: VisionBenchmark
    sight: Sight
    questions: Sequence[VisionItem]
    of: int
    data: str
    shown: dict[str, VisionItem]
    note: str | None = None

    @property
    def name(self) -> str:
        """What it is called in a result."""
        return self.benchmark.name if self.sight == "right" else f"{self.benchmark.name}:{self.sight}"

    @property
    def log(self) -> str:
        """The file of its answers, named by what could change one."""
        setting = [self.data, self.sight, self.benchmark.max_tokens]
        return f"{self.name.replace(':', '-')}-{sha256_text(canonical_json(setting))[:12]}.jsonl"


@dataclass(frozen=True)
class VisionRequest:
    """What to measure, of the verb's own words; `gallery` is how many answers a page shows, 0 for none."""

    tasks: Sequence[str]
    data_dir: Path | None
    sights: Sequence[Sight] = ("right",)
    limit: int | None = None
    gallery: int = 0


def open_subject(model: str, *, device: str | None, dtype: str) -> tuple[Identity, engine.LanguageModel]:
    """Return the model that `model` means, and what the result says of it.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    opened = open_model(model, device=device, dtype=dtype)
    if model.endswith(GGUF):
        path, half = Path(model), vision_half(Path(model))
        identity = sha256_text(opened.identity + (blake3_file(half) if half.is_file() else ""))
        return Identity(
            name=path.stem, identity=identity, facts=device_file_facts(path, opened.metadata)
        ), opened
    source = locate(model)
    session: Any = opened.cache.session
    facts = torch_facts(session.model, source)
    return Identity(name=name_of(model, source), identity=model_identity(source), facts=facts), opened


def evaluate_vision(
    subject: Identity, model: engine.LanguageModel, request: VisionRequest, out: Path
) -> dict[str, Any]:
    """Measure a model on benchmarks about images and return the result, as written to a JSON file in `out`.

    Answers are greedy and generated token by token. Each is appended to a log; a later call reads those it
    finds and asks only the rest.

    Raises:
        UserError: files are missing, or the model sees nothing and the benchmark needs it.
    """
    asked = [
        prepare(benchmark, folder, sight, model, request.limit)
        for benchmark, folder in find_benchmarks(request.tasks, request.data_dir).values()
        for sight in request.sights
    ]
    directory = directory_of(out, subject)
    tasks: dict[str, dict[str, Any]] = {}
    answers: dict[str, dict[int, Entry]] = {}
    with atomic.exclusive(directory):
        total, done = sum(len(each.questions) for each in asked), 0
        with progress(f"evaluate {subject.name}", total, "questions") as advance:
            for each in asked:

                def show(count: int, before: int = done, name: str = each.name) -> None:
                    advance(before + count, name)

                answers[each.name] = answer(model, each, directory / each.log, show)
                tasks[each.name] = describe(each, answers[each.name])
                done += len(each.questions)
        if request.gallery:
            for each in asked:
                if each.sight == "right" and each.shown:
                    page = directory / f"gallery-{each.name}.html"
                    show_answers(
                        model, each, answers[each.name], Page(page, subject.name, tasks, request.gallery)
                    )
                    tasks[each.name]["gallery"] = f"{directory.name}/{page.name}"
        result = {
            "kind": "evaluation",
            "format": FORMAT,
            "model": {"name": subject.name, "identity": subject.identity, **subject.facts},
            "settings": {
                "limit": request.limit,
                "images": list(request.sights),
                "max_length": model.cache.session.context_length,
            },
            "environment": environment(),
            "data": {each.benchmark.name: each.data for each in asked},
            "finished_at": records.now(),
            "tasks": tasks,
        }
        write_result(out, directory.name, result, suffix=".vision")
    return result


def prepare(
    benchmark: VisionBenchmark, folder: Path, sight: Sight, model: engine.LanguageModel, limit: int | None
) -> Asked:
    """Return a benchmark's questions that this model can be asked.

    Raises:
        UserError: there is none, as the model or the files have no images.
    """
    items = benchmark.read(folder)
    data = sha256_text(
        canonical_json([[item.id, item.question, item.image_name, item.gold] for item in items])
    )
    note, kept = None, items
    if model.image_token is None and sight != "none":
        note, kept = "a model of text only", [item for item in items if item.image is None]
    elif not any(readable(item) for item in items if item.image is not None):
        note, kept = "its images are not here", [item for item in items if item.image is None]
    if not kept:
        raise UserError(f"{benchmark.title}: {note}; all its questions need one")
    left_out = len(items) - len(kept)
    note = f"{note}: {left_out:,} questions about images are left out" if left_out else None
    kept = kept[:limit]
    return Asked(benchmark, sight, kept, len(items), data, images_shown(kept, sight), note)


def readable(item: VisionItem) -> bool:
    """Tell whether an item's image is there."""
    return not isinstance(item.image, Path) or item.image.is_file()


def images_shown(items: Sequence[VisionItem], sight: Sight) -> dict[str, VisionItem]:
    """Return by image name an item whose image is shown for it: its own, or always another's."""
    own = {item.image_name: item for item in items if item.image is not None}
    if sight == "right":
        return own
    if sight == "none":
        return {}
    names = sorted(own)
    random.Random(SHUFFLE_SEED).shuffle(names)
    return {name: own[other] for name, other in zip(names, [*names[1:], *names[:1]], strict=True)}


def answer(
    model: engine.LanguageModel, asked: Asked, log: Path, show: Callable[[int], None]
) -> dict[int, Entry]:
    """Return a log entry for every question by its id: from the log where it is in it, else asked."""
    entries = {entry["id"]: entry for entry in read_log(log)}
    wanted = [item for item in asked.questions if item.id not in entries]
    # Questions about one image follow each other, so that it is looked at once.
    wanted.sort(key=lambda item: item.image_name)

    @lru_cache(LOOKED_AT)
    def look(name: str) -> list[Any]:
        return [model.look(read_image(asked.shown[name]))] if name in asked.shown else []

    done = len(asked.questions) - len(wanted)
    for start in range(0, len(wanted), CHUNK_QUESTIONS):
        chunk = wanted[start : start + CHUNK_QUESTIONS]
        fresh = [ask(model, asked.benchmark, item, look(item.image_name)) for item in chunk]
        records.append_sealed(log, fresh)
        entries |= {entry["id"]: entry for entry in fresh}
        done += len(chunk)
        show(done)
    return {item.id: entries[item.id] for item in asked.questions}


def read_image(item: VisionItem) -> Path | bytes:
    """Return an item's image as an eye takes it."""
    assert item.image is not None
    return item.image if isinstance(item.image, Path) else item.image()


def ask(
    model: engine.LanguageModel, benchmark: VisionBenchmark, item: VisionItem, images: Sequence[Any]
) -> dict[str, Any]:
    """Return the log entry of one question, put to the model as one turn of the user's.

    One that does not fit into the context has no answer; ``cut_tokens`` says by how much.
    """
    messages = [{"role": "user", "content": item.question, "images": images}]
    options = engine.GenerationOptions(max_tokens=benchmark.max_tokens, sampling=engine.GREEDY)
    prompt_tokens = len(model.chat_prompt(messages)) + sum(len(rows) - 1 for rows in images)
    excess = max(0, prompt_tokens + 1 - model.cache.session.context_length)
    said = "" if excess else "".join(event.text for event in model.chat(messages, options)).strip()
    scores: Scores = benchmark.judge(item, said)
    return {
        "id": item.id,
        "part": item.part,
        "question": item.question,
        "image": item.image_name,
        "target": item.gold,
        "responses": [said],
        "scores": scores,
        "cut_tokens": excess,
    }


@dataclass(frozen=True)
class Page:
    """A gallery to write: where, of which model, beside which scores, with how many answers."""

    path: Path
    model: str
    tasks: dict[str, dict[str, Any]]
    count: int


def show_answers(model: engine.LanguageModel, asked: Asked, entries: dict[int, Entry], page: Page) -> None:
    """Write the gallery of a benchmark, with its scores however its images were shown."""
    from .vision_gallery import chosen, write_gallery

    shown = [(item, entries[item.id]) for item in asked.questions if item.image_name in asked.shown]
    own = {name: found for name, found in page.tasks.items() if name.partition(":")[0] == asked.name}
    titles = (page.model, asked.benchmark.title)
    write_gallery(model, titles, own, chosen(shown, page.count), page.path)


def describe(asked: Asked, entries: dict[int, Entry]) -> dict[str, Any]:
    """Return a benchmark's figures: means over its questions with intervals, by part, and its summary."""
    answered = [(item, entries[item.id]["scores"]) for item in asked.questions]
    names = list(dict.fromkeys(name for _, scores in answered for name in scores))
    metrics = {name: mean([scores[name] for _, scores in answered]) for name in names}
    metrics |= {
        name: {"value": value, "standard_error": None, "interval": None}
        for name, value in asked.benchmark.summary(answered).items()
    }
    parts = {
        part: {"questions": len(scores)} | {name: fmean(each[name] for each in scores) for name in names}
        for part in dict.fromkeys(item.part for item in asked.questions)
        if (scores := [found for item, found in answered if item.part == part])
    }
    notes = [asked.note] if asked.note else []
    if unfit := sum(entries[item.id]["cut_tokens"] > 0 for item in asked.questions):
        notes.append(f"{unfit:,} questions do not fit into the context and count as wrong")
    return {
        "metric": asked.benchmark.metric,
        **metrics[asked.benchmark.metric],
        "questions": len(asked.questions),
        "of": asked.of,
        "cut_questions": 0,
        "num_fewshot": 0,
        "version": 1,
        "metrics": metrics,
        "parts": parts,
        "logs": [asked.log],
        "note": "; ".join(notes) or None,
    }


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Return a mean with its standard error and 95 % interval."""
    interval = statistics.bootstrap(values)
    return {
        "value": fmean(values),
        "standard_error": statistics.standard_error(values),
        "interval": [interval.low, interval.high],
    }
