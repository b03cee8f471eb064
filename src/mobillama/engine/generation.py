"""The generation loop: prompt in, events out, one for each token."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mobillama.core.errors import UserError

from .constraints import Constraint, Matcher
from .prefix import PrefixCache, StoppedError, never
from .sampling import Sampler, Sampling, log_softmax
from .speculation import decode_speculatively
from .steps import Chooser, Step, decode
from .text import StopFilter, Utf8Stream
from .tokenizer import Tokenizer

FinishReason = Literal["stop", "stop_string", "length", "context", "interrupted"]


@dataclass(frozen=True)
class GenerationOptions:
    """What an answer should be like.

    Attributes:
        max_tokens: end after so many tokens; None goes on to the end of the context.
        stop: strings that end the answer; they are not part of it.
        sampling: how tokens are chosen.
        logprobs: report the token's log-probability and those of so many likeliest tokens.
        context_shift: when the context is full, drop the older half and go on.
        speculate: guess tokens that continue a repetition and check several at once; greedy only.
        constraint: a grammar the answer must match.
    """

    max_tokens: int | None = None
    stop: Sequence[str] = ()
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int | None = None
    context_shift: bool = False
    speculate: bool = False
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}; choose 1 or more")
        if self.logprobs is not None and self.logprobs < 0:
            raise UserError(f"logprobs is {self.logprobs}; choose 0 or more")
        if self.speculate and not self.sampling.greedy:
            raise UserError("speculation repeats greedy decoding exactly; set the temperature to 0")


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability under the model alone, before penalties and filters."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Event:
    """One step of an answer.

    Attributes:
        text: what can now be shown; empty while a character or a stop string is incomplete.
        token: the token of this step, None in a last event that brings none.
        logprob, alternatives: where asked for.
        finish: why the answer ended, None before its last event.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    alternatives: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


def generate(
    cache: PrefixCache,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    options: GenerationOptions,
    interrupted: Callable[[], bool] = never,
) -> Iterator[Event]:
    """Continue ``prompt``; yield an event for each token, the last with its ``finish`` reason.

    Arguments:
        cache: the session to use; what it already holds of the prompt is not computed again.
        interrupted: asked between tokens; True ends the answer with what there is.

    Raises:
        UserError: the prompt is empty or longer than the context, or the constraint is not usable.
    """
    vocab_size = cache.session.vocab_size
    matcher = Matcher(options.constraint, tokenizer, vocab_size) if options.constraint else None
    try:
        logits = cache.prefill(prompt, interrupted)
    except StoppedError:
        yield Event("", finish="interrupted")
        return
    chooser = Chooser(Sampler(options.sampling, vocab_size, prompt), matcher)
    if options.speculate:
        steps = decode_speculatively(cache, chooser, logits, options.context_shift)
    else:
        steps = decode(cache, chooser, logits, options.context_shift)
    yield from _events(steps, tokenizer, options, interrupted)


def _events(
    steps: Iterator[Step],
    tokenizer: Tokenizer,
    options: GenerationOptions,
    interrupted: Callable[[], bool],
) -> Iterator[Event]:
    characters, stop = Utf8Stream(), StopFilter(options.stop)

    def last(finish: FinishReason, event: Event | None = None) -> Event:
        text = stop.push(characters.flush())
        text += stop.flush() if stop.stopped_by is None else ""
        if event is None:
            return Event(text, finish=finish)
        return Event(event.text + text, event.token, event.logprob, event.alternatives, finish)

    for count, step in enumerate(steps, start=1):
        logprob, alternatives = _logprobs(step, options.logprobs)
        if step.token in tokenizer.end_tokens:
            yield last("stop", Event("", step.token, logprob, alternatives))
            return
        text = stop.push(characters.push(tokenizer.token_bytes(step.token)))
        event = Event(text, step.token, logprob, alternatives)
        if stop.stopped_by is not None:
            yield last("stop_string", event)
            return
        if count == options.max_tokens:
            yield last("length", event)
            return
        yield event
        if interrupted():
            yield last("interrupted")
            return
    yield last("context")


def _logprobs(step: Step, count: int | None) -> tuple[float | None, tuple[TokenLogprob, ...]]:
    if count is None:
        return None, ()
    scores = log_softmax(step.logits)
    best = np.argsort(-scores, kind="stable")[:count]
    return float(scores[step.token]), tuple(TokenLogprob(int(id_), float(scores[id_])) for id_ in best)
