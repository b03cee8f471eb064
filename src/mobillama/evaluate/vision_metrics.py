"""How answers about images are judged, each benchmark by the rule its authors publish."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

LETTERS = "ABCDE"

# Source: the answer processing of the VQA challenge (EvalAI), which TextVQA uses.
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
FULL_STOP = re.compile(r"\.(?!\d)")
# Written without their apostrophe these words can only be contractions ("well" and "its" can be others).
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
you'll you're you've
"""


@cache
def contractions() -> dict[str, str]:
    """Return the spelling of each contraction by its spellings that lack one apostrophe."""
    found: dict[str, str] = {"somebody'd": "somebodyd"}  # so in the official table
    for word in CONTRACTIONS.split():
        places = [place for place, character in enumerate(word) if character == "'"]
        found |= {word[:place] + word[place + 1 :]: word for place in places}
    return found


def vqa_normalised(answer: str) -> str:
    """Return an answer as the VQA challenge compares it: lower case, digits, no articles, no punctuation."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    number = COMMA_IN_NUMBER.search(text) is not None
    bare = text
    for mark in PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if alone or number else " ")
    words = [NUMBERS.get(word, word) for word in FULL_STOP.sub("", bare).split()]
    return " ".join(contractions().get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """Return how far an answer agrees with those that people gave: right if three others gave it.

    It is the mean, over leaving each person out, of min(1, how many others agree / 3).

    Source: Antol et al. 2015, section 4.1, as TextVQA's evaluation computes it.
    """
    answer, people = vqa_normalised(answer), [vqa_normalised(other) for other in given]
    agree = people.count(answer)
    return fmean(min(1.0, (agree - (person == answer)) / 3) for person in people)


def same_words(answer: str, gold: str) -> bool:
    """Tell whether an answer is the gold one but for case, blanks and a full stop at its end (GQA)."""
    return answer.strip().rstrip(".").strip().lower() == gold.strip().lower()


def option_letter(answer: str, options: int) -> int | None:
    """Return which of so many options an answer names, or None.

    An answer names one by its letter alone, by ``B. ...`` or by ``The answer is B``.

    Source: LLaVA's evaluation of ScienceQA.
    """
    text = answer.strip().replace("\n", ". ")
    letters = LETTERS[:options]
    if text.rstrip(".") in tuple(letters):
        return letters.index(text[0])
    found = re.match(rf"([{LETTERS}])\. ", text) or re.search(rf"The answer is ([{LETTERS}])", text)
    return letters.index(found[1]) if found and found[1] in letters else None


def pope_says_yes(answer: str) -> bool:
    """Tell whether an answer affirms: no word of its first sentence is "No", "no" or "not".

    Source: POPE's evaluation (Li et al. 2023).
    """
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def mme_says(answer: str) -> str:
    """Return ``yes`` or ``no`` as an answer begins, else ``other``.

    Source: MME's own calculation (Fu et al. 2023): the first four characters decide.
    """
    beginning = answer.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


@dataclass(frozen=True)
class YesNoScores:
    """Yes-or-no answers against the gold ones, "yes" being the class that is looked for."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def yes_no_scores(answers: Iterable[tuple[bool, bool]]) -> YesNoScores:
    """Return the scores of pairs (said yes, is yes); a ratio of nothing is 0."""
    pairs = list(answers)
    said = sum(yes for yes, _ in pairs)
    true = sum(gold for _, gold in pairs)
    hits = sum(yes and gold for yes, gold in pairs)
    precision, recall = hits / said if said else 0.0, hits / true if true else 0.0
    return YesNoScores(
        accuracy=fmean(yes == gold for yes, gold in pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        yes_ratio=said / len(pairs),
    )


MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True)
class MmeScore:
    """One category of MME, in percent: questions that are right, images with both questions right."""

    accuracy: float
    accuracy_plus: float

    @property
    def score(self) -> float:
        """Their sum, at most 200: what the benchmark adds up over its categories."""
        return self.accuracy + self.accuracy_plus


def mme_score(right_by_image: Iterable[Sequence[bool]]) -> MmeScore:
    """Return a category's score from whether each of an image's two questions was answered rightly."""
    images = list(right_by_image)
    accuracy = fmean(right for questions in images for right in questions)
    return MmeScore(100 * accuracy, 100 * fmean(all(questions) for questions in images))
