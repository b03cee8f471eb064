"""Against SciPy and the closed form."""

import numpy as np
import pytest
from scipy import stats

from mobillama.evaluate.statistics import bootstrap, compare, mcnemar, standard_error


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 9), (40, 22), (500, 560), (7, 7)])
def test_mcnemar_is_the_exact_binomial_test(counts):
    only_a, only_b = counts
    total = only_a + only_b
    expected = stats.binomtest(only_a, total, 0.5).pvalue if total else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_the_bootstrap_interval_is_about_the_normal_one():
    values = np.random.default_rng(1).random(4000) < 0.3
    interval = bootstrap(values.astype(float))
    mean, error = values.mean(), standard_error(values.astype(float))
    assert error == pytest.approx(stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(
        (mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error
    )


def test_the_same_values_give_the_same_interval():
    values = [0.0, 1.0, 1.0, 0.0, 1.0] * 20
    assert bootstrap(values) == bootstrap(values)


def test_pairing_finds_a_small_steady_difference_that_unpaired_intervals_hide():
    random = np.random.default_rng(2)
    easy = random.random(2000)
    a, b = (easy + 0.02 > 0.5).astype(float), (easy > 0.5).astype(float)
    test = compare(a, b)
    assert test.only_b == 0 and test.only_a == int((a - b).sum())
    assert test.p_value < 0.001
    assert bootstrap(a).low < bootstrap(b).high  # unpaired, they overlap


def test_scores_between_right_and_wrong_are_compared_by_the_bootstrap():
    random = np.random.default_rng(3)
    a = random.random(500)
    same = compare(a, a + random.normal(0, 1e-3, 500))
    better = compare(a + 0.05 + random.normal(0, 0.1, 500), a)
    assert same.only_a is None and better.p_value < 0.001 and better.interval.low > 0
