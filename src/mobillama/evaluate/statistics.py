"""How sure a score is, and whether two models differ: bootstrap and McNemar's test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 0
CHUNK_VALUES = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def bootstrap(values: Sequence[float]) -> Interval:
    """Return the percentile interval of the mean, resampling the questions."""
    means = resampled_means(np.asarray(values, dtype=np.float64))
    return Interval(*(float(bound) for bound in np.percentile(means, (2.5, 97.5))))


def resampled_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of `RESAMPLES` samples with replacement; the same for the same values."""
    random, size = np.random.default_rng(SEED), len(values)
    rows = max(1, CHUNK_VALUES // size)
    pieces = [
        values[random.integers(size, size=(min(rows, RESAMPLES - start), size))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(pieces)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same questions, A minus B.

    Attributes:
        difference: of their mean scores; `interval` is its bootstrap interval over the questions.
        only_a, only_b: questions that only one of them got right; None where scores are not right or wrong.
        p_value: of no difference, two-sided: McNemar's exact test of those, else by the bootstrap.
    """

    questions: int
    difference: float
    interval: Interval
    only_a: int | None
    only_b: int | None
    p_value: float


def compare(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Return the paired test of two models' scores on the same questions.

    Source: McNemar 1947, in its exact binomial form.
    """
    assert len(a) == len(b) and len(a) > 0
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    differences = first - second
    means = resampled_means(differences)
    interval = Interval(*(float(bound) for bound in np.percentile(means, (2.5, 97.5))))
    if not set(np.unique(np.concatenate([first, second])).tolist()) <= {0.0, 1.0}:
        below = (np.count_nonzero(means <= 0) + 1) / (RESAMPLES + 1)
        above = (np.count_nonzero(means >= 0) + 1) / (RESAMPLES + 1)
        p_value = min(1.0, 2 * min(below, above))
        return PairedTest(len(a), float(differences.mean()), interval, None, None, p_value)
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    return PairedTest(len(a), float(differences.mean()), interval, only_a, only_b, mcnemar(only_a, only_b))


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the chance, were neither model better, that so many questions at least part as unequally."""
    total, fewer = only_a + only_b, min(only_a, only_b)
    if total == 0:
        return 1.0
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(fewer + 1)
    ]
    highest = max(logs)
    return min(1.0, 2 * math.exp(highest) * sum(math.exp(value - highest) for value in logs))
