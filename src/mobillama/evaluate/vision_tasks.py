"""The benchmarks about images: where their files are, how an answer is judged, what is reported."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from mobillama.core.errors import UserError

from . import vision_data, vision_metrics
from .vision_data import VisionItem

VISION = "vision"
"""Stands for all benchmarks whose files are in the data folder."""
Scores = dict[str, float]
Answered = Sequence[tuple[VisionItem, Scores]]


@dataclass(frozen=True)
class VisionBenchmark:
    """One benchmark about images.

    Attributes:
        metric: what is reported; of the question scores, or of the summary.
        folder: where `--data-dir` keeps its files.
        read: its questions, from that folder.
        judge: what one answer scores.
        summary: further figures from all questions, for metrics that are no mean over them.
    """

    name: str
    title: str
    metric: str
    folder: str
    read: Callable[[Path], list[VisionItem]]
    judge: Callable[[VisionItem, str], Scores]
    summary: Callable[[Answered], Scores] = lambda _: {}
    max_tokens: int = 16


def judge_words(item: VisionItem, answer: str) -> Scores:
    """GQA and easy-VQA: the answer is the gold one."""
    return {"accuracy": float(vision_metrics.same_words(answer, item.gold))}


def judge_vqa(item: VisionItem, answer: str) -> Scores:
    """TextVQA: agreement with ten people."""
    return {"vqa_accuracy": vision_metrics.vqa_accuracy(answer, item.gold)}


def judge_option(item: VisionItem, answer: str) -> Scores:
    """ScienceQA: the letter that the answer names."""
    return {"accuracy": float(vision_metrics.option_letter(answer, item.options) == item.gold)}


def judge_mme(item: VisionItem, answer: str) -> Scores:
    """MME: how the answer begins."""
    return {"accuracy": float(vision_metrics.mme_says(answer) == item.gold)}


def judge_pope(item: VisionItem, answer: str) -> Scores:
    """POPE: whether the answer affirms."""
    said_yes = vision_metrics.pope_says_yes(answer)
    return {"accuracy": float(said_yes == (item.gold == "yes")), "yes_ratio": float(said_yes)}


def mme_summary(answered: Answered) -> Scores:
    """MME's two sums, and accuracy and accuracy+ of each category."""
    images: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item, scores in answered:
        images[item.part][item.image_name].append(scores["accuracy"] == 1)
    found = {part: vision_metrics.mme_score(by_image.values()) for part, by_image in images.items()}
    sums = {
        name: sum(found[part].score for part in parts if part in found)
        for name, parts in (
            ("perception", vision_metrics.MME_PERCEPTION),
            ("cognition", vision_metrics.MME_COGNITION),
        )
    }
    details = {f"{part} accuracy": score.accuracy for part, score in found.items()}
    return sums | details | {f"{part} accuracy+": score.accuracy_plus for part, score in found.items()}


def pope_summary(answered: Answered) -> Scores:
    """POPE's ratios in each of its parts, and the mean of their F1."""
    pairs: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for item, scores in answered:
        pairs[item.part].append((scores["yes_ratio"] == 1, item.gold == "yes"))
    found = {part: vision_metrics.yes_no_scores(answers) for part, answers in pairs.items()}
    details = {
        f"{part} {name}": value for part, scores in found.items() for name, value in asdict(scores).items()
    }
    return {"f1": fmean(scores.f1 for scores in found.values())} | details


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        VisionBenchmark("gqa", "GQA", "accuracy", "gqa", vision_data.gqa, judge_words),
        VisionBenchmark(
            "scienceqa", "ScienceQA", "accuracy", "scienceqa", vision_data.scienceqa, judge_option
        ),
        VisionBenchmark("textvqa", "TextVQA", "vqa_accuracy", "textvqa", vision_data.textvqa, judge_vqa),
        VisionBenchmark("mme", "MME", "perception", "MME", vision_data.mme, judge_mme, mme_summary),
        VisionBenchmark("pope", "POPE", "accuracy", "pope", vision_data.pope, judge_pope, pope_summary),
        VisionBenchmark("easy_vqa", "easy-VQA", "accuracy", "easy_vqa", vision_data.easy_vqa, judge_words),
    )
}
# Source: arXiv 2402.16840, the table of multimodal models; and the best known at this size.
PUBLISHED: dict[str, dict[str, float]] = {
    "MobiLlama-V 0.8B (paper)": {"gqa": 58.5, "scienceqa": 53.1, "textvqa": 41.4, "mme": 1191.9},
    "SigLIP + Qwen2.5-0.5B (best known)": {"gqa": 59.5, "scienceqa": 60.3, "textvqa": 48.3, "mme": 1253.0},
}


def is_vision_task(name: str) -> bool:
    """Tell whether a name means a benchmark about images."""
    return name == VISION or name in BENCHMARKS


def find_benchmarks(names: Sequence[str], data_dir: Path | None) -> dict[str, tuple[VisionBenchmark, Path]]:
    """Return the benchmarks asked for, each with the folder its files are in.

    Raises:
        UserError: there is no data folder, or it holds none of them, or not one that was named.
    """
    if data_dir is None:
        raise UserError(f"--tasks {','.join(names)}: give --data-dir with the benchmarks' files")
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such directory; --data-dir holds the benchmarks' files")
    found: dict[str, tuple[VisionBenchmark, Path]] = {}
    for name in names:
        if name == VISION:
            found |= present(data_dir)
        else:
            found[name] = (BENCHMARKS[name], folder_of(BENCHMARKS[name], data_dir))
    if not found:
        folders = ", ".join(benchmark.folder for benchmark in BENCHMARKS.values())
        raise UserError(f"{data_dir}: none of the benchmarks about images is here; they are {folders}")
    return found


def present(data_dir: Path) -> Mapping[str, tuple[VisionBenchmark, Path]]:
    """Return the benchmarks whose files are below a data folder."""
    found = {}
    for name, benchmark in BENCHMARKS.items():
        folder = folder_of(benchmark, data_dir)
        if folder != data_dir:
            found[name] = (benchmark, folder)
            continue
        try:
            benchmark.read(folder)
        except UserError:
            continue
        found[name] = (benchmark, folder)
    return found


def folder_of(benchmark: VisionBenchmark, data_dir: Path) -> Path:
    """Return a benchmark's own folder, or the data folder where it has none."""
    folder = data_dir / benchmark.folder
    return folder if folder.is_dir() else data_dir
