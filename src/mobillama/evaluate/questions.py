"""What is scored: continuations that share a beginning, and how a model is given each beginning once.

A question is a list of token sequences, such as a prompt with each of four answers. Its *stem* is the
beginning all of them share; what remains of each is its *branch*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, Protocol

Cut = Literal["question", "request"]


@dataclass(frozen=True)
class Continuation:
    """A token sequence of which the last `scored` tokens are scored, each given all before it."""

    tokens: tuple[int, ...]
    scored: int

    def __post_init__(self) -> None:
        assert 1 <= self.scored < len(self.tokens)

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last token."""
        return self.tokens[:-1]

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens that are scored."""
        return self.tokens[-self.scored :]

    @property
    def first_scored(self) -> int:
        """The position in `inputs` whose logits score the first target; the others follow it."""
        return len(self.inputs) - self.scored


Question = Sequence[Continuation]


@dataclass(frozen=True)
class Score:
    """A continuation's log-likelihood in nats, and whether greedy decoding would give it."""

    loglikelihood: float
    greedy: bool


class Scorer(Protocol):
    """A model that scores continuations."""

    max_length: int
    """The most tokens of input."""

    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """Return the score of every continuation of every question."""
        ...


@dataclass(frozen=True)
class Branches:
    """A question as a stem, (S,) tokens and S >= 1, and the inputs of each continuation after it."""

    stem: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """How many tokens the model reads in all."""
        return len(self.stem) + sum(map(len, self.branches))


def split(question: Question) -> Branches:
    """Return the stem and the branches of a question.

    What answers have in common at their beginning is in the stem too, so logits are needed from the first
    scored position on, which may lie inside the stem.
    """
    inputs = [continuation.inputs for continuation in question]
    end = common_length(inputs)
    return Branches(inputs[0][:end], tuple(tokens[end:] for tokens in inputs))


def first_needed(stem: Sequence[int], question: Question) -> int:
    """Return the first position in the stem whose logits are needed, or that of its last token."""
    return min(len(stem) - 1, *(continuation.first_scored for continuation in question))


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all sequences share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


def cut_to_fit(question: Question, max_length: int, cut: Cut) -> tuple[list[Continuation], int]:
    """Return a question whose inputs fit into `max_length`, and how many tokens were cut off its beginning.

    Arguments:
        cut: `request` cuts each continuation as little as it needs, as lm-eval's own models do;
            `question` cuts all of them at one place, so that answers of different length are
            judged after the same text.
    """
    excess = [len(continuation.inputs) - max_length for continuation in question]
    if max(excess) <= 0:
        return list(question), 0
    # No cut reaches the scored tokens: one token before them must stay.
    most = min(continuation.first_scored for continuation in question)
    cuts = [max(excess)] * len(excess) if cut == "question" and max(excess) <= most else excess
    fitted = [
        Continuation(continuation.tokens[max(0, off) :], continuation.scored)
        for continuation, off in zip(question, cuts, strict=True)
    ]
    return fitted, max(excess)
