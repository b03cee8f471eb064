"""Prompt-lookup speculation: guess that the text repeats itself, check several tokens in one pass.

The answer equals plain greedy decoding exactly, not just nearly. A batch adds numbers up in
another order than single tokens do, so a logit may differ by the session's split tolerance. A
token is taken from a batch only where the best score leads by more than twice that; a closer
call goes back to the last place where the cache is what plain decoding would hold, feeds the
tokens one by one from there, and decides on those logits.

Source: prompt lookup decoding (Saxena 2023), with this verification added.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .prefix import PrefixCache
from .session import Logits, split_tolerance
from .steps import Chooser, Step

NGRAM_TOKENS = 3

# Drafts grow while they are right and start small again when they are wrong: wrong guesses cost time.
FIRST_DRAFT_TOKENS = 2
LONGEST_DRAFT_TOKENS = 16


@dataclass
class PromptLookup:
    """Finds where the last few tokens occurred before."""

    tokens: list[int] = field(default_factory=list[int])
    _ends: dict[tuple[int, ...], int] = field(default_factory=dict[tuple[int, ...], int], repr=False)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append ``tokens`` to the text that is looked through."""
        for token in tokens:
            # The n-gram that ends the text is entered only when it has a continuation.
            if len(self.tokens) >= NGRAM_TOKENS:
                self._ends[tuple(self.tokens[-NGRAM_TOKENS:])] = len(self.tokens)
            self.tokens.append(token)

    def propose(self, count: int) -> list[int]:
        """Return up to ``count`` tokens that followed the latest earlier occurrence of the text's end."""
        start = self._ends.get(tuple(self.tokens[-NGRAM_TOKENS:]))
        if start is None:
            return []
        # Ids below 0 are embeddings of the prompt, which nobody says again.
        return list(itertools.takewhile(lambda token: token >= 0, self.tokens[start : start + count]))


@dataclass
class _Verifier:
    """Decides on batch logits where they suffice, and on replayed ones where they do not.

    Attributes:
        exact_until: the position up to which the cache holds what plain decoding would hold.
        tolerance: the largest difference that the order of sums may make to a logit.
    """

    cache: PrefixCache
    chooser: Chooser
    exact_until: int
    tolerance: float

    def decide(self, position: int, logits: Logits) -> Step:
        """Return the step plain decoding takes after ``position`` tokens, given those tokens' last logits.

        After a replay the cache ends at ``position``.
        """
        scores = self.chooser.scores(logits)
        if position > self.exact_until and self._close(scores):
            self.cache.truncate(position)
            logits = self.replay(logits)
            scores = self.chooser.scores(logits)
        return Step(self.chooser.sampler.choose(scores), logits)

    def _close(self, scores: Logits) -> bool:
        if self.tolerance == 0:
            return False
        penalty = self.chooser.sampler.sampling.repetition_penalty
        second, first = np.partition(scores, -2)[-2:]
        return bool(first - second <= 2 * self.tolerance * max(penalty, 1 / penalty))

    def replay(self, logits: Logits) -> Logits:
        """Make the whole cache exact, token by token, and return the exact last logits."""
        tokens = self.cache.tokens[self.exact_until :]
        if not tokens or self.tolerance == 0:
            return logits
        self.cache.truncate(self.exact_until)
        exact = logits
        for token in tokens:
            exact = self.cache.forward([token])
        self.exact_until = self.cache.position
        # The difference seen is evidence: where the stated tolerance was too small, widen it.
        self.tolerance = max(self.tolerance, 2 * float(np.abs(exact - logits).max()))
        return exact


def decode_speculatively(
    cache: PrefixCache, chooser: Chooser, logits: Logits, context_shift: bool
) -> Iterator[Step]:
    """Yield the steps that `decode` would yield, several for one pass of the model where guesses hold."""
    verifier = _Verifier(cache, chooser, cache.position, split_tolerance(cache.session))
    try:
        yield from _guess_and_verify(verifier, logits, context_shift)
    finally:
        if verifier.tolerance > 0:  # what is not exact must not be the next answer's beginning
            cache.truncate(min(verifier.exact_until, cache.position))


def _guess_and_verify(verifier: _Verifier, logits: Logits, context_shift: bool) -> Iterator[Step]:
    cache, chooser = verifier.cache, verifier.chooser
    lookup = PromptLookup()
    lookup.extend(cache.tokens)
    draft_tokens = FIRST_DRAFT_TOKENS
    step = verifier.decide(cache.position, logits)
    while True:
        chooser.accept(step.token)
        lookup.extend([step.token])
        yield step
        if not cache.room:
            if not context_shift:
                return
            verifier.replay(step.logits)
            cache.shift()
            verifier.exact_until = cache.position
        draft = lookup.propose(min(draft_tokens, cache.room - 1))
        start = cache.position
        if not draft and verifier.exact_until == start:
            verifier.exact_until += 1
        rows = cache.forward([step.token, *draft], all_logits=True)
        accepted = 0
        for accepted, row in enumerate(rows):
            position = start + 1 + accepted
            step = verifier.decide(position, row)
            replayed = verifier.exact_until == position
            if accepted == len(draft) or replayed or step.token != draft[accepted]:
                break
            chooser.accept(step.token)
            lookup.extend([step.token])
            yield step
        cache.truncate(start + 1 + accepted)
        if draft:
            whole = accepted == len(draft)
            draft_tokens = min(2 * draft_tokens, LONGEST_DRAFT_TOKENS) if whole else FIRST_DRAFT_TOKENS
