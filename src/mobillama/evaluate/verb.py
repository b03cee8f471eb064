"""What ``mobillama evaluate`` does, from the names a person gives to results on disk."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama.core.checked import require_checked
from mobillama.core.errors import UserError
from mobillama.data import Corpus
from mobillama.report.run import data_of

from . import vision_evaluation
from .evaluation import evaluate
from .heldout import HELDOUT, evaluate_heldout
from .subjects import checkpoints_of, open_subject
from .tasks import load
from .vision_evaluation import SIGHTS, Sight
from .vision_tasks import is_vision_task


@dataclass(frozen=True)
class Request:
    """One call of the verb.

    Attributes:
        model: a checkpoint, a run, a model folder, a `.gguf` or a Hub name.
        tasks: names of tasks; `paper` for its nine, `heldout` for held-out text, or answers about images.
        data_dir: the paper's benchmarks as files.
        corpus: whose held-out text; a run's own if not given.
        out: where results go; `evaluations` in the run, or here, if not given.
        limit: questions of each task, or documents of each subset.
        sights: how benchmarks about images are shown them: right, shuffled, none.
        gallery: how many answers about images a page shows.
    """

    model: str
    tasks: Sequence[str]
    data_dir: Path | None = None
    corpus: Path | None = None
    out: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    all_checkpoints: bool = False
    device: str | None = None
    dtype: str = "auto"
    sights: Sequence[Sight] = ("right",)
    gallery: int = 0


def run(request: Request) -> Iterator[dict[str, Any]]:
    """Yield the result of every model and kind of task asked for; tasks are built once for all of them."""
    if request.limit is not None and request.limit < 1:
        raise UserError(f"--limit {request.limit}: give 1 or more questions, or leave it out for all")
    if request.num_fewshot is not None and request.num_fewshot < 0:
        raise UserError(f"--num-fewshot {request.num_fewshot}: give 0 or more")
    models = (
        [str(path) for path in checkpoints_of(request.model)] if request.all_checkpoints else [request.model]
    )
    corpus, images = None, None
    if HELDOUT in request.tasks:
        images = None if request.corpus else images_of(run_of(request.model))
    if HELDOUT in request.tasks and images is None:
        corpus = Corpus(request.corpus or corpus_of(request.model))
        require_checked(corpus.directory, "corpus")
    seeing = [name for name in request.tasks if is_vision_task(name)]
    names = [name for name in request.tasks if name != HELDOUT and name not in seeing]
    chosen = load(names, data_dir=request.data_dir, num_fewshot=request.num_fewshot) if names else None
    out = request.out or default_out(request.model)
    for model in models:
        if seeing:
            yield run_vision(model, seeing, request, out)
        if images is not None:
            from .sight import evaluate_sight

            yield evaluate_sight(model, images, out, device=request.device, dtype=request.dtype)
        if corpus is None and chosen is None:
            continue
        subject = open_subject(model, device=request.device, dtype=request.dtype)
        if corpus is not None:
            yield evaluate_heldout(subject, corpus, out, limit=request.limit)
        if chosen is not None:
            yield evaluate(subject, chosen, out, limit=request.limit)


def sights(names: Sequence[str]) -> list[Sight]:
    """Return the ways to show images by their names.

    Raises:
        UserError: there is no such way.
    """
    for name in names:
        if name not in SIGHTS:
            raise UserError(f"--images {name}: choose among {', '.join(SIGHTS)}")
    return [sight for sight in SIGHTS if sight in names]


def run_vision(model: str, names: Sequence[str], request: Request, out: Path) -> dict[str, Any]:
    """Return the result of a model on benchmarks about images."""
    identity, opened = vision_evaluation.open_subject(model, device=request.device, dtype=request.dtype)
    wanted = vision_evaluation.VisionRequest(
        names, request.data_dir, request.sights, request.limit, request.gallery
    )
    return vision_evaluation.evaluate_vision(identity, opened, wanted, out)


def run_of(model: str) -> Path | None:
    """Return the run that a model is, or is a checkpoint of."""
    path = Path(model).resolve()
    return next((place for place in (path, path.parent.parent) if (place / "run.toml").is_file()), None)


def default_out(model: str) -> Path:
    """Return where results go: into the run they belong to, else here."""
    run_directory = run_of(model)
    return (run_directory or Path()) / "evaluations"


def images_of(run: Path | None) -> Path | None:
    """Return the image set that a run learnt from; None for a run on text, or none."""
    if run is None:
        return None
    recipe = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
    return data_of(run) if "images" in recipe else None


def corpus_of(model: str) -> Path:
    """Return the corpus a run was trained on.

    Raises:
        UserError: the model is of no run, or its corpus is not here.
    """
    run_directory = run_of(model)
    if run_directory is None:
        raise UserError(f"{model}: of no run that names its corpus; give --corpus")
    return data_of(run_directory)
