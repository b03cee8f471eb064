"""The nine benchmarks from files in their own layouts, as rows with the field names the Hub gives them.

Every reader returns the splits of one benchmark: split name to rows, in file order. The rows are
exactly what lm-eval's task definitions expect of the Hub's data sets, so its prompts, targets and
metrics are used as they are.
"""

import csv
import io
import json
import lzma
import re
import tarfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError

Row = dict[str, Any]
Splits = dict[str, list[Row]]
LETTERS = "ABCD"
# HellaSwag's `ctx_b` begins in lower case and does not end its sentence.
BEGUN_SENTENCE = re.compile(r"(.*[.?!,;:\"')]) ([a-z][^.?!]*)", re.DOTALL)


def find(folder: Path, *names: str) -> Path:
    """Return the first of `names` in `folder`, plain or compressed with xz.

    Raises:
        UserError: none is there; the message names what was looked for.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.xz"):
            if path.is_file():
                return path
    raise UserError(f"{folder}: no {' or '.join(names)} here (plain or .xz); put the benchmark's files there")


def read_text(path: Path) -> str:
    """Return the text of a file, plain or compressed with xz."""
    raw = path.read_bytes()
    return (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file.

    Raises:
        UserError: a line is not JSON.
    """
    rows = []
    # Not splitlines: passages hold U+2028 and its like, which do not end a line of JSON.
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n"), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: not JSON ({error}); take the file from its source again"
            ) from None
    return rows


def labelled(rows: list[Row], labels: Path, convert: Callable[[str], Any]) -> list[Row]:
    """Return `rows` with `label` read from a file with one a line.

    Raises:
        UserError: the file has another number of lines than there are rows.
    """
    lines = read_text(labels).split()
    if len(lines) != len(rows):
        raise UserError(
            f"{labels}: {len(lines)} labels for {len(rows)} rows; take both files from one source"
        )
    return [{**row, "label": convert(label)} for row, label in zip(rows, lines, strict=True)]


def hellaswag(folder: Path) -> Splits:
    """HellaSwag; rows that only have the joined `ctx` are parted again."""

    def rows(path: Path) -> list[Row]:
        return [{**part_context(row), "label": str(row["label"])} for row in read_rows(path)]

    train = find(folder, "hellaswag_train.jsonl", "hellaswag_train_fewshot5.jsonl")
    return {"validation": rows(find(folder, "hellaswag_val.jsonl")), "train": rows(train)}


def part_context(row: Row) -> Row:
    """Return a row with `ctx_a` and `ctx_b`, the begun sentence, which the harness capitalises."""
    if "ctx_a" in row:
        return row
    begun = BEGUN_SENTENCE.fullmatch(row["ctx"])
    ctx_a, ctx_b = begun.groups() if begun else (row["ctx"], "")
    return {**row, "ctx_a": ctx_a, "ctx_b": ctx_b}


def truthfulqa(folder: Path) -> Splits:
    """TruthfulQA; version 1, which the paper used, where it is there."""
    path = find(folder, "v1/mc_task.json", "mc_task.json")
    return {"validation": [truthfulqa_row(row) for row in json.loads(read_text(path))]}


def truthfulqa_row(row: Row) -> Row:
    """Return a row with its answers as the Hub lists them."""
    targets = {
        name: {"choices": list(row[name]), "labels": list(row[name].values())}
        for name in ("mc1_targets", "mc2_targets")
    }
    return {"question": row["question"], **targets}


@cache
def mmlu_archive(path: Path) -> dict[str, str]:
    """Return the text of each CSV of an MMLU archive by its name."""
    with tarfile.open(path) as archive:
        return {
            Path(member.name).name: file.read().decode("utf-8")
            for member in archive
            if member.name.endswith(".csv") and (file := archive.extractfile(member)) is not None
        }


def mmlu(folder: Path, subject: str) -> Splits:
    """One subject of MMLU, from its archive or from the unpacked `data` folder."""

    def text(split: str) -> str:
        name = f"{subject}_{split}.csv"
        for path in (folder / "data" / split / name, folder / split / name):
            if path.is_file():
                return read_text(path)
        archive = find(folder, "mmlu_csv.tar", "data.tar")
        try:
            return mmlu_archive(archive)[name]
        except KeyError:
            raise UserError(f"{archive}: no {name} in it; take the archive from its source again") from None

    def rows(split: str) -> list[Row]:
        return [
            {"question": question, "choices": choices, "answer": LETTERS.index(letter)}
            for question, *choices, letter in csv.reader(io.StringIO(text(split)))
        ]

    return {"test": rows("test"), "dev": rows("dev")}


def arc_challenge(folder: Path) -> Splits:
    """ARC-Challenge."""

    def rows(split: str) -> list[Row]:
        return [
            {
                "id": row["id"],
                "question": row["question"]["stem"],
                "choices": {
                    key: [choice[key] for choice in row["question"]["choices"]] for key in ("text", "label")
                },
                "answerKey": row["answerKey"],
            }
            for row in read_rows(find(folder, f"ARC-Challenge-{split}.jsonl"))
        ]

    return {"test": rows("Test"), "train": rows("Train"), "validation": rows("Dev")}


def crows_pairs(folder: Path) -> Splits:
    """CrowS-Pairs, English."""
    text = read_text(find(folder, "crows_pairs_anonymized.csv"))
    columns = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
    return {"test": [{key: row[key] for key in columns} for row in csv.DictReader(io.StringIO(text))]}


def piqa(folder: Path) -> Splits:
    """PIQA; the training file may be cut, as no example of it is shown at zero shots."""

    def rows(*names: str) -> list[Row]:
        path = find(folder, *names)
        labels = find(folder, f"{path.name.removesuffix('.xz').removesuffix('.jsonl')}-labels.lst")
        return labelled(read_rows(path), labels, int)

    return {"validation": rows("valid.jsonl"), "train": rows("train.jsonl", "train_first2000.jsonl")}


def race(folder: Path) -> Splits:
    """RACE, high school: one row an article, its questions as the harness's data set spells them."""
    return {"test": [race_row(row) for row in read_rows(find(folder, "test_high.jsonl"))]}


def race_row(row: Row) -> Row:
    """Return an article with its problems as the text of a Python list, which the harness parses."""
    problems = [
        {"question": question, "answer": answer, "options": options}
        for question, options, answer in zip(row["questions"], row["options"], row["answers"], strict=True)
    ]
    return {"article": row["article"], "problems": repr(problems)}


def social_iqa(folder: Path) -> Splits:
    """Social IQa. There is no training file here; no example of it is shown at zero shots."""
    rows = labelled(read_rows(find(folder, "dev.jsonl")), find(folder, "dev-labels.lst"), str)
    return {"validation": rows, "train": rows}


def winogrande(folder: Path) -> Splits:
    """WinoGrande; examples come from the largest training file that is there."""
    train = find(folder, *(f"train_{size}.jsonl" for size in ("xl", "l", "m", "s", "xs")))
    return {"validation": read_rows(find(folder, "dev.jsonl")), "train": read_rows(train)}


READERS: dict[str, Callable[..., Splits]] = {
    "hellaswag": hellaswag,
    "truthfulqa_mc2": truthfulqa,
    "arc_challenge": arc_challenge,
    "crows_pairs_english": crows_pairs,
    "piqa": piqa,
    "race": race,
    "social_iqa": social_iqa,
    "winogrande": winogrande,
}


def data_files(folder: Path) -> Iterable[Path]:
    """Yield the files below a benchmark's folder, in name order."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
