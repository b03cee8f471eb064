"""From logits to the next token: penalties, temperature, top-k, top-p, min-p.

The order is transformers': penalties, temperature, top-k, top-p, min-p. Each filter sees the
distribution the one before it left.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mobillama.core.errors import UserError

from .session import Logits

# Sorting the whole vocabulary costs milliseconds a token; the nucleus nearly always lies in so many.
NUCLEUS_CANDIDATES = 1024


@dataclass(frozen=True)
class Sampling:
    """How to choose among tokens.

    Attributes:
        temperature: 0 takes the likeliest token; above, logits are divided by it.
        top_k: keep only so many of the likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens whose probabilities reach this sum.
        min_p: keep tokens at least this many times as likely as the likeliest.
        repetition_penalty: divides positive and multiplies negative logits of every token that
            occurs in prompt or answer (Keskar et al. 2019, section 4.1).
        presence_penalty: subtracted from the logits of every token that occurs in the answer.
        seed: repeats a draw; None draws anew each time.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, holds, bounds in checks:
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}; choose {bounds}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0, top_p=1.0)


@dataclass
class Sampler:
    """Draws one answer's tokens; remembers which tokens occurred for the penalties."""

    sampling: Sampling
    vocab_size: int
    prompt: Iterable[int] = ()
    _in_text: NDArray[np.bool_] = field(init=False, repr=False)
    _in_answer: NDArray[np.bool_] = field(init=False, repr=False)
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._in_text = np.zeros(self.vocab_size, dtype=np.bool_)
        self._in_answer = np.zeros(self.vocab_size, dtype=np.bool_)
        prompt = np.fromiter(self.prompt, dtype=np.int64)
        self._in_text[prompt[prompt >= 0]] = True  # below 0 are embeddings
        self._random = np.random.default_rng(self.sampling.seed)

    def penalised(self, logits: Logits) -> Logits:
        """Return ``logits`` (V,) with the penalties taken off, in a new array."""
        logits = logits.astype(np.float32)
        if self.sampling.repetition_penalty != 1.0:
            seen = logits[self._in_text]
            penalty = np.float32(self.sampling.repetition_penalty)
            logits[self._in_text] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self.sampling.presence_penalty != 0.0:
            logits[self._in_answer] -= np.float32(self.sampling.presence_penalty)
        return logits

    def choose(self, penalised: Logits) -> int:
        """Return a token drawn from penalised (and perhaps masked) logits; ties go to the lowest id."""
        if self.sampling.greedy:
            return int(np.argmax(penalised))
        tokens, probabilities = distribution(penalised, self.sampling)
        edges = np.cumsum(probabilities)
        drawn = np.count_nonzero(edges <= self._random.random() * edges[-1])
        return int(tokens[min(drawn, len(tokens) - 1)])

    def accept(self, token: int) -> None:
        """Count ``token`` as part of the answer."""
        self._in_text[token] = self._in_answer[token] = True


def distribution(logits: Logits, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that pass every filter, likeliest first, and their probabilities (sum 1).

    Without any filter all tokens are returned, in order of id.
    """
    scores = logits.astype(np.float64) / sampling.temperature
    tokens = np.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        tokens = likeliest(scores, sampling.top_k)
    if sampling.top_p < 1:
        tokens = nucleus(scores, tokens, sampling.top_p)
    probabilities = softmax(scores[tokens])
    if sampling.min_p > 0:
        kept = probabilities >= sampling.min_p * probabilities.max()
        tokens, probabilities = tokens[kept], probabilities[kept]
    return tokens, probabilities / probabilities.sum()


def likeliest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the ids of the ``count`` highest scores, highest first, ties by the lower id."""
    threshold = np.partition(scores, -count)[-count]
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def nucleus(scores: NDArray[np.float64], tokens: NDArray[np.int64], top_p: float) -> NDArray[np.int64]:
    """Return the fewest likeliest of ``tokens`` whose probabilities among them reach ``top_p``."""
    among = scores[tokens]
    total = np.exp(among - among.max()).sum()
    for count in (min(NUCLEUS_CANDIDATES, len(tokens)), len(tokens)):
        order = likeliest(among, count)
        reached = np.cumsum(np.exp(among[order] - among.max()) / total)
        if reached[-1] >= top_p:
            break
    return tokens[order[: int(np.searchsorted(reached, top_p)) + 1]]


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities proportional to exp(score)."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return the model's own log-probabilities: no temperature, no penalty, no filter."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    return scores - np.log(np.exp(scores).sum())
