"""Benchmarks about images from files in their authors' own layouts: questions, images, gold answers.

Below `--data-dir` each benchmark has a folder of its own (`Benchmark.folder` in `vision_tasks`); a
folder's one archive, and the files themselves in the data folder, are found as well.
"""

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.vision.easy_vqa import asked_for

from .local_data import find, read_rows, read_text
from .vision_metrics import LETTERS, MME_COGNITION, MME_PERCEPTION

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class VisionItem:
    """One question of a benchmark.

    Attributes:
        id: its place in the benchmark, for logs and comparison.
        question: what the model is asked, as one turn of the user's, without image markers.
        gold: the right answer, in the benchmark's own form.
        part: which part of the benchmark it counts for, such as a type of question.
        image: where the image is: a file, or a function that reads it out of an archive; None without one.
        image_name: which image it is; questions about one image share it.
        options: how many choices it has; 0 for an open question.
    """

    id: int
    question: str
    gold: Any
    part: str
    image: Path | Callable[[], bytes] | None = None
    image_name: str = ""
    options: int = 0


def gqa(folder: Path) -> list[VisionItem]:
    """GQA's balanced test-dev questions; parts are their structural types."""
    path = find(folder, "testdev_balanced_questions.json", "questions/testdev_balanced_questions.json")
    entries = read_object(path).values()
    return [
        VisionItem(
            id=number,
            question=entry["question"] + SHORT,
            gold=entry["answer"],
            part=entry.get("types", {}).get("structural", "all"),
            image=picture(folder / "images", entry["imageId"]),
            image_name=entry["imageId"],
        )
        for number, entry in enumerate(entries)
    ]


def textvqa(folder: Path) -> list[VisionItem]:
    """TextVQA's validation questions, with the texts its reader saw in the image where those are given."""
    entries = read_object(find(folder, "TextVQA_0.5.1_val.json"))["data"]
    seen: dict[str, list[str]] = {}
    if (readings := folder / "TextVQA_Rosetta_OCR_v0.2_val.json").is_file():
        seen = {entry["image_id"]: entry["ocr_tokens"] for entry in read_object(readings)["data"]}
    items = []
    for number, entry in enumerate(entries):
        name = entry["image_id"]
        hint = f"\nReference OCR token: {', '.join(seen[name])}" if name in seen else ""
        image = picture(folder / "train_images", name)
        question = entry["question"].capitalize() + hint + SHORT
        items.append(VisionItem(number, question, entry["answers"], "all", image, name))
    return items


def mme(folder: Path) -> list[VisionItem]:
    """MME's fourteen categories, two questions an image; parts are the categories."""
    release = folder / "MME_Benchmark_release_version"
    folder = release if release.is_dir() else folder
    items: list[VisionItem] = []
    for category in (*MME_PERCEPTION, *MME_COGNITION):
        place = folder / category
        questions, images = place / "questions_answers_YN", place / "images"
        if not questions.is_dir():
            questions = images = place
        for path in sorted(questions.glob("*.txt")):
            lines = [line for line in read_text(path).splitlines() if line.strip()]
            if len(lines) != 2 or any(line.count("\t") != 1 for line in lines):
                raise UserError(f"{path}: two lines of question, tab, Yes or No are needed here")
            for line in lines:
                question, answer = line.split("\t")
                question = question.replace(" Please answer yes or no.", "").strip()
                name = f"{category}/{path.stem}"
                image = picture(images, path.stem)
                items.append(
                    VisionItem(len(items), question + SHORT, answer.strip().lower(), category, image, name, 2)
                )
        if not any(item.part == category for item in items):
            raise UserError(f"{place}: no questions here; take MME from its source again")
    return items


def pope(folder: Path) -> list[VisionItem]:
    """POPE's questions on COCO images; parts are random, popular and adversarial."""
    items: list[VisionItem] = []
    for part in ("random", "popular", "adversarial"):
        for row in read_rows(find(folder, f"coco_pope_{part}.json", f"coco/coco_pope_{part}.json")):
            image = picture(folder / "val2014", Path(row["image"]).stem)
            question, gold = row["text"] + SHORT, row["label"].strip().lower()
            items.append(VisionItem(len(items), question, gold, part, image, row["image"], 2))
    return items


def scienceqa(folder: Path) -> list[VisionItem]:
    """ScienceQA's test problems; parts are those with an image and those of text alone."""
    problems, splits = find(folder, "problems.json", "scienceqa_problems_prefix.jsonl"), folder
    if ".jsonl" in problems.suffixes:
        by_id = {row["pid"]: row for row in read_rows(problems)}
    else:
        by_id = read_object(problems)
    wanted = read_object(find(splits, "pid_splits.json", "scienceqa_pid_splits.json"))["test"]
    items = []
    for pid in wanted:
        if pid not in by_id:  # a part of the benchmark is there
            continue
        problem = by_id[pid]
        choices = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem["choices"], strict=False)
        )
        context = f"Context: {problem['hint']}\n" if problem["hint"] else ""
        place = folder / "images" / "test" / pid / problem["image"] if problem["image"] else None
        items.append(
            VisionItem(
                id=int(pid),
                question=f"{context}{problem['question']}\n{choices}{LETTER}",
                gold=problem["answer"],
                part="image" if place else "text",
                image=place,
                image_name=pid if place else "",
                options=len(problem["choices"]),
            )
        )
    return items


def easy_vqa(folder: Path) -> list[VisionItem]:
    """easy-VQA's test questions, asked as they are; parts are what is asked: shape, colour, yes or no."""
    unpacked = folder / "test" / "questions.json"
    if unpacked.is_file():
        entries, image = json.loads(read_text(unpacked)), partial(picture, folder / "test" / "images")
    else:
        archive = find(folder, "easy_vqa.tar")
        files = archive_files(archive, "easy_vqa/test/")
        if "questions.json" not in files:
            raise UserError(
                f"{archive}: no easy_vqa/test/questions.json in it; take it from its source again"
            )
        entries, image = json.loads(files["questions.json"]), partial(member, files)
    return [
        VisionItem(number, question, answer, asked_for(question), image(str(name)), str(name))
        for number, (question, answer, name) in enumerate(entries)
    ]


@cache
def archive_files(archive: Path, prefix: str) -> dict[str, bytes]:
    """Return the files of an archive below `prefix`, by the rest of their names."""
    with tarfile.open(archive) as opened:
        return {
            entry.name.removeprefix(prefix): file.read()
            for entry in opened
            if entry.name.startswith(prefix) and (file := opened.extractfile(entry)) is not None
        }


def member(files: dict[str, bytes], name: str) -> Callable[[], bytes]:
    """Return a function that gives the image `name` of an archive's files."""
    return partial(files.__getitem__, f"images/{name}.png")


def picture(folder: Path, stem: str) -> Path:
    """Return the image `stem` in a folder, under whichever ending it has there."""
    return next(
        (path for ending in PICTURES if (path := folder / f"{stem}{ending}").is_file()),
        folder / f"{stem}{PICTURES[0]}",
    )


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file, plain or compressed with xz.

    Raises:
        UserError: it is none.
    """
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); take the file from its source again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object is needed here; take the file from its source again")
    return found
