import numpy as np
import pytest

from mobillama.core.errors import UserError
from mobillama.engine.sampling import (
    GREEDY,
    NUCLEUS_CANDIDATES,
    Sampler,
    Sampling,
    distribution,
    log_softmax,
    nucleus,
)  # fmt: skip

# Probabilities 1/2, 1/4, 1/8, 1/16, 1/16 at temperature 1.
LOGITS = np.log(np.array([1 / 8, 1 / 2, 1 / 16, 1 / 4, 1 / 16], dtype=np.float32))


def as_dict(sampling: Sampling, logits: np.ndarray = LOGITS) -> dict[int, float]:
    tokens, probabilities = distribution(logits, sampling)
    return {int(token): round(float(p), 6) for token, p in zip(tokens, probabilities, strict=True)}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0, top_p=1.0), {0: 0.125, 1: 0.5, 2: 0.0625, 3: 0.25, 4: 0.0625}),
        (Sampling(0.5, top_p=1.0, top_k=2), {1: 0.8, 3: 0.2}),
        (Sampling(1.0, top_p=1.0, top_k=3), {1: 4 / 7, 3: 2 / 7, 0: 1 / 7}),
        (Sampling(1.0, top_p=0.7), {1: 2 / 3, 3: 1 / 3}),
        (Sampling(1.0, top_p=0.5), {1: 1.0}),
        (Sampling(1.0, top_p=0.51), {1: 2 / 3, 3: 1 / 3}),
        (Sampling(1.0, top_p=1.0, min_p=0.2), {1: 4 / 7, 3: 2 / 7, 0: 1 / 7}),
        # top-k leaves 1/2 and 1/4, renormalised 2/3 and 1/3; the nucleus of 0.6 is then the first alone.
        (Sampling(1.0, top_k=2, top_p=0.6), {1: 1.0}),
    ],
)
def test_filters_leave_the_distribution_counted_by_hand(sampling, expected):
    assert as_dict(sampling) == {token: pytest.approx(p, abs=1e-6) for token, p in expected.items()}


def test_nucleus_is_the_same_when_it_exceeds_the_quick_candidates():
    scores = np.random.default_rng(1).standard_normal(4 * NUCLEUS_CANDIDATES) * 0.1
    tokens = np.arange(len(scores))
    probabilities = np.exp(scores) / np.exp(scores).sum()
    order = np.argsort(-probabilities, kind="stable")
    expected = order[: np.searchsorted(np.cumsum(probabilities[order]), 0.8) + 1]
    found = nucleus(scores, tokens, 0.8)
    assert len(found) > NUCLEUS_CANDIDATES
    assert found.tolist() == expected.tolist()


def test_draws_follow_the_distribution():
    sampler = Sampler(Sampling(1.0, top_p=1.0, seed=3), 5)
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(20_000)], minlength=5) / 20_000
    assert counts == pytest.approx(np.exp(LOGITS), abs=0.012)


def test_the_seed_repeats_a_draw():
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(1.0, seed=seed), 5)
        return [sampler.choose(LOGITS) for _ in range(30)]

    assert draw(1) == draw(1) != draw(2)


def test_greedy_takes_the_likeliest_and_the_lowest_id_of_a_tie():
    assert Sampler(GREEDY, 4).choose(np.array([0, 2, 2, 1], dtype=np.float32)) == 1


def test_repetition_penalty_covers_prompt_and_answer_and_presence_only_the_answer():
    sampler = Sampler(Sampling(repetition_penalty=2.0, presence_penalty=0.5), 4, prompt=[0, 1, 1])
    sampler.accept(2)
    penalised = sampler.penalised(np.array([4, -4, 3, 2], dtype=np.float32))
    assert penalised.tolist() == [2.0, -8.0, 1.0, 2.0]


def test_penalties_leave_the_callers_logits_alone():
    logits = LOGITS.copy()
    Sampler(Sampling(repetition_penalty=2.0), 5, prompt=[1]).penalised(logits)
    assert (logits == LOGITS).all()


def test_log_softmax_is_the_models_own_distribution():
    assert np.exp(log_softmax(LOGITS + 100)) == pytest.approx(np.exp(LOGITS), rel=1e-5)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"min_p": 2}, {"top_k": -1}])
def test_values_out_of_bounds_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_an_image_in_the_prompt_penalises_no_word() -> None:
    logits = np.ones(8, dtype=np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0), 8, prompt=[3, -2, -(2**62)])
    assert np.flatnonzero(sampler.penalised(logits) != 1.0).tolist() == [3]
