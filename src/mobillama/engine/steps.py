"""One token after another: choosing it, feeding it back, and what to do when the context is full."""

from collections.abc import Iterator
from dataclasses import dataclass

from .constraints import Matcher
from .prefix import PrefixCache
from .sampling import Sampler
from .session import Logits


@dataclass(frozen=True)
class Step:
    """A chosen token and the model's logits (V,) it was chosen from."""

    token: int
    logits: Logits


@dataclass
class Chooser:
    """Penalties, constraint and sampling as one decision."""

    sampler: Sampler
    matcher: Matcher | None = None

    def scores(self, logits: Logits) -> Logits:
        """Return logits after penalties and constraint, in a new array."""
        scores = self.sampler.penalised(logits)
        return scores if self.matcher is None else self.matcher.mask(scores)

    def choose(self, logits: Logits) -> int:
        """Return the next token."""
        return self.sampler.choose(self.scores(logits))

    def accept(self, token: int) -> None:
        """Make ``token`` part of the answer."""
        self.sampler.accept(token)
        if self.matcher is not None:
            self.matcher.accept(token)


def decode(cache: PrefixCache, chooser: Chooser, logits: Logits, context_shift: bool) -> Iterator[Step]:
    """Yield steps until the context is full; with ``context_shift`` for ever.

    The consumer ends the answer by not asking for more, so a last token is never fed in vain.
    """
    while True:
        token = chooser.choose(logits)
        chooser.accept(token)
        yield Step(token, logits)
        if not cache.room:
            if not context_shift:
                return
            cache.shift()
        logits = cache.forward([token])
