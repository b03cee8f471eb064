"""Score questions in a session of the engine, going back to what the next tokens share with the last."""

from collections.abc import Sequence

import numpy as np

from mobillama.engine.session import Logits, Session, as_tokens

from .questions import Question, Score, common_length, split


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
        stem_logits = self._read(plan.stem)
        scores = []
        for branch, continuation in zip(plan.branches, question, strict=True):
            logits = stem_logits[None]  # (1 + branch, V): of the stem's last token and the branch
            if branch:
                self.session.truncate(len(plan.stem))
                logits = np.concatenate([logits, self.session.forward(as_tokens(branch), all_logits=True)])
            self._held = plan.stem + branch
            scores.append(score_of(logits[-continuation.scored :], continuation.targets))
        return scores

    def _read(self, tokens: tuple[int, ...]) -> Logits:
        """Bring the session to exactly `tokens` and return the logits (V,) of the last."""
        # At least one token is read anew, for its logits.
        kept = min(common_length([self._held, tokens]), len(tokens) - 1)
        self.session.truncate(kept)
        return self.session.forward(as_tokens(tokens[kept:]))


def score_of(logits: Logits, targets: Sequence[int]) -> Score:
    """Return the score of targets (N,) under logits (N, V)."""
    values = logits.astype(np.float64)
    highest = values.max(axis=1)
    normaliser = highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))
    chosen = values[np.arange(len(targets)), list(targets)] - normaliser
    return Score(float(chosen.sum()), bool((values.argmax(axis=1) == list(targets)).all()))
