"""What is shared of a question, and where one that is too long is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillama.evaluate.questions import Continuation, cut_to_fit, first_needed, split

TOKENS = st.integers(0, 3)


@st.composite
def questions(draw):
    context = draw(st.lists(TOKENS, min_size=1, max_size=8))
    targets = draw(st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=5))
    return [Continuation((*context, *target), len(target)) for target in targets]


@given(questions())
def test_stem_and_branches_make_up_every_input_and_share_all_they_can(question):
    plan = split(question)
    for branch, continuation in zip(plan.branches, question, strict=True):
        assert plan.stem + branch == continuation.tokens[:-1]
        assert continuation.tokens[continuation.first_scored + 1 :] == continuation.targets
    assert len(plan.stem) >= 1
    assert () in plan.branches or len({branch[0] for branch in plan.branches}) > 1
    needed = first_needed(plan.stem, question)
    assert all(needed <= continuation.first_scored for continuation in question)
    assert 0 <= needed < len(plan.stem)


@given(questions(), st.integers(6, 12), st.sampled_from(["question", "request"]))
def test_a_cut_question_fits_and_keeps_what_is_scored(question, max_length, cut):
    fitted, excess = cut_to_fit(question, max_length, cut)
    assert excess == max(len(one.tokens) - 1 for one in question) - max_length or excess == 0
    for before, after in zip(question, fitted, strict=True):
        assert len(after.inputs) <= max_length
        assert after.targets == before.targets
        assert before.tokens[len(before.tokens) - len(after.tokens) :] == after.tokens


def test_answers_of_different_length_are_judged_after_the_same_text():
    question = [Continuation(tuple(range(length)), 2 if length == 10 else 6) for length in (10, 14)]
    together, _ = cut_to_fit(question, 8, "question")
    apart, _ = cut_to_fit(question, 8, "request")
    assert {one.tokens[0] for one in together} == {5}
    assert [one.tokens[0] for one in apart] == [1, 5]  # lm-eval's way: each as little as it needs


@pytest.mark.parametrize("cut", ["question", "request"])
def test_what_fits_is_not_touched(cut):
    question = [Continuation((1, 2, 3), 1), Continuation((1, 2, 4, 5), 2)]
    assert cut_to_fit(question, 3, cut) == (question, 0)
