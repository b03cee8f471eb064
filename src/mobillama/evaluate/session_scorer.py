"""Score questions in a session of the engine, going back to what the next tokens share with the last."""

from collections.abc import Sequence

import numpy as np

from mobillama.engine.session import Logits, Session, as_tokens

from .questions import Question, Score, common_length, first_needed, split


class SessionScorer:
    """Scores with any session: a device file is judged by the very arithmetic that will answer."""

    def __init__(self, session: Session):
        self.session = session
        self.max_length = session.context_length
        self._held: tuple[int, ...] = ()

    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """Return the score of every continuation of every question."""
        return [self._question(question) for question in questions]

    def _question(self, question: Question) -> list[Score]:
        plan = split(question)
        stem_logits = self._read(plan.stem, first_needed(plan.stem, question))
        scores = []
        for branch, continuation in zip(plan.branches, question, strict=True):
            logits = stem_logits
            if branch:
                self.session.truncate(len(plan.stem))
                logits = np.concatenate([logits, self.session.forward(as_tokens(branch), all_logits=True)])
            self._held = plan.stem + branch
            scores.append(score_of(logits[-continuation.scored :], continuation.targets))
        return scores

    def _read(self, tokens: tuple[int, ...], first: int) -> Logits:
        """Bring the session to exactly `tokens` and return the logits (N, V) from position `first` on."""
        kept = min(common_length([self._held, tokens]), first)
        self.session.truncate(kept)
        logits = self.session.forward(as_tokens(tokens[kept : first + 1]))[None]
        if tokens[first + 1 :]:
            rest = self.session.forward(as_tokens(tokens[first + 1 :]), all_logits=True)
            logits = np.concatenate([logits, rest])
        return logits


def score_of(logits: Logits, targets: Sequence[int]) -> Score:
    """Return the score of targets (N,) under float32 logits (N, V)."""
    rows, wanted = np.arange(len(targets)), np.asarray(targets)
    best = logits.argmax(axis=1)
    highest = logits[rows, best]
    # Exponentials in float32, where NumPy is twenty times as fast; only their sum needs more digits.
    shares = logits - highest[:, None]
    np.exp(shares, out=shares)
    normaliser = highest + np.log(shares.sum(axis=1, dtype=np.float64))
    return Score(float((logits[rows, wanted] - normaliser).sum()), bool((best == wanted).all()))
