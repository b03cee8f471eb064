"""What the paper measured: its nine benchmarks, their settings, and its published figures."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One column of the paper's table, in lm-evaluation-harness terms.

    Attributes:
        task: the harness's name.
        metric: what is reported, of the metrics the task has.
        num_fewshot: worked examples before the question.
        chance: what guessing scores (%), where one number tells it.
        folder: where `--data-dir` keeps its files.
    """

    title: str
    task: str
    metric: str
    num_fewshot: int
    chance: float | None
    folder: str


# Source: arXiv 2402.16840, table 4 and section 4.1.
BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark("HellaSwag", "hellaswag", "acc_norm", 10, 25.0, "hellaswag"),
    Benchmark("TruthfulQA", "truthfulqa_mc2", "acc", 0, None, "truthfulqa"),
    Benchmark("MMLU", "mmlu", "acc", 5, 25.0, "mmlu"),
    Benchmark("ARC-C", "arc_challenge", "acc_norm", 25, 25.0, "arc_challenge"),
    Benchmark("CrowS-Pairs", "crows_pairs_english", "pct_stereotype", 0, 50.0, "crows_pairs"),
    Benchmark("PIQA", "piqa", "acc_norm", 0, 50.0, "piqa"),
    Benchmark("RACE", "race", "acc", 0, 25.0, "race"),
    Benchmark("SIQA", "social_iqa", "acc", 0, 100 / 3, "social_iqa"),
    Benchmark("WinoGrande", "winogrande", "acc", 5, 50.0, "winogrande"),
)
BY_TASK = {benchmark.task: benchmark for benchmark in BENCHMARKS}
PUBLISHED: dict[str, tuple[float, ...]] = {
    "MobiLlama 0.5B": (52.52, 38.05, 26.45, 29.52, 64.03, 72.03, 33.68, 40.22, 57.53),
    "MobiLlama 0.8B": (54.09, 38.48, 26.92, 30.20, 64.82, 73.17, 33.37, 41.60, 57.45),
    "large-base 1.2B": (62.99, 35.90, 24.79, 34.55, 68.49, 75.57, 35.31, 41.96, 62.03),
    "TinyLlama 1.1B": (60.22, 37.59, 26.11, 33.61, 70.60, 73.28, 36.45, 41.65, 59.18),
    "pythia-410m": (40.85, 41.22, 27.25, 26.19, 64.20, 67.19, 30.71, 41.40, 53.12),
    "opt-350m": (36.73, 40.83, 26.02, 23.55, 64.12, 64.74, 29.85, 41.55, 52.64),
}
WITHOUT_CROWS = (
    "The average of nine is the paper's. CrowS-Pairs measures how often a model prefers the stereotyping "
    "sentence: 50 is unbiased and a higher value is no better, yet it enters the paper's average as if it "
    "were, and its published values do not reproduce. The average of eight leaves it out."
)


def average(scores: Mapping[str, float], *, crows_pairs: bool) -> float | None:
    """Return the mean of a model's scores by task (%), or None where one is missing.

    Arguments:
        crows_pairs: the paper's mean of nine with it, or the mean of the eight others.
    """
    tasks = [task for task in BY_TASK if crows_pairs or task != "crows_pairs_english"]
    if any(task not in scores for task in tasks):
        return None
    return sum(scores[task] for task in tasks) / len(tasks)


def published_rows() -> dict[str, dict[str, float]]:
    """Return the paper's table: model to task to score (%)."""
    return {
        model: {benchmark.task: score for benchmark, score in zip(BENCHMARKS, scores, strict=True)}
        for model, scores in PUBLISHED.items()
    }
