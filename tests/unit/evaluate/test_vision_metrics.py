"""Each benchmark's rule for answers, on answers written by hand with scores computed by hand."""

import pytest

from mobillama.evaluate import vision_metrics as metrics


@pytest.mark.parametrize(
    ("people", "score"),
    [
        (["red"] * 4 + ["blue"] * 6, 1.0),
        # Three of ten: the three each leave two others who agree (2/3), the seven leave three (1).
        (["red"] * 3 + ["blue"] * 7, (3 * 2 / 3 + 7) / 10),
        (["red"] * 2 + ["blue"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        (["red"] + ["blue"] * 9, 0.3),
        (["blue"] * 10, 0.0),
    ],
)
def test_vqa_accuracy_counts_how_many_others_agree(people, score):
    assert metrics.vqa_accuracy("Red.", people) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Red Bull.", "red bull"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("dont stop", "don't stop"),
        ("don't", "don't"),
        ("couldn'tve", "couldn't've"),
        ("its well", "its well"),
        ("coca-cola", "coca cola"),
        ("yes - no", "yes no"),
        ("joe's diner", "joe 's diner"),
        ("a\tcat\nand an apple", "cat and apple"),
        ("what?", "what"),
    ],
)
def test_vqa_answers_are_compared_in_their_normal_form(answer, normal):
    assert metrics.vqa_normalised(answer) == normal


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Yes", True), ("yes.", True), (" yes ", True), ("yes it is", False), ("no", False), ("", False)],
)
def test_gqa_wants_the_very_answer(answer, right):
    assert metrics.same_words(answer, "yes") is right


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("B", 1),
        (" B\n", 1),
        ("B.", 1),
        ("B. apostrophe", 1),
        ("B\napostrophe", 1),
        ("The answer is C.", 2),
        ("I think so. The answer is A", 0),
        ("D", None),  # there are three options
        ("b", None),
        ("Banana", None),
        ("apostrophe", None),
        ("", None),
    ],
)
def test_scienceqa_reads_the_letter_as_llava_does(answer, option):
    assert metrics.option_letter(answer, 3) == option


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes, there is a dog.", True),
        ("No", False),
        ("No, there is none.", False),
        ("There is not a dog.", False),
        ("Yes. But no cat.", True),  # only the first sentence counts
        ("A dog", True),
        ("Nothing", True),
    ],
)
def test_pope_takes_every_answer_without_a_no_for_a_yes(answer, yes):
    assert metrics.pope_says_yes(answer) is yes


def test_yes_no_scores_by_hand():
    # 3 hits, 1 false alarm, 2 misses, 4 right rejections.
    pairs = [(True, True)] * 3 + [(True, False)] + [(False, True)] * 2 + [(False, False)] * 4
    scores = metrics.yes_no_scores(pairs)
    assert scores.accuracy == pytest.approx(0.7)
    assert scores.precision == pytest.approx(3 / 4)
    assert scores.recall == pytest.approx(3 / 5)
    assert scores.f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert scores.yes_ratio == pytest.approx(0.4)


def test_yes_no_scores_of_a_model_that_never_says_yes():
    scores = metrics.yes_no_scores([(False, True), (False, False)])
    assert (scores.accuracy, scores.precision, scores.recall, scores.f1) == (0.5, 0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, it is", "yes"),
        ("Not sure", "no"),  # the rule reads four characters
        ("I think yes", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_the_first_four_characters(answer, said):
    assert metrics.mme_says(answer) == said


def test_mme_score_by_hand():
    # Of three images one is wholly right, one half, one not at all: 3 of 6 questions, 1 of 3 images.
    score = metrics.mme_score([(True, True), (True, False), (False, False)])
    assert score.accuracy == pytest.approx(50)
    assert score.accuracy_plus == pytest.approx(100 / 3)
    assert score.score == pytest.approx(50 + 100 / 3)
