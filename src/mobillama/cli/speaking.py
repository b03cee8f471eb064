"""What ``generate`` and ``chat`` share: opening a model by any handle, options, and Ctrl-C."""

import json
import signal
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mobillama import engine
from mobillama.core.errors import UserError


def options(
    *,
    max_tokens: int | None,
    stop: list[str] | None,
    json_schema: str | None,
    regex: str | None,
    logprobs: int | None,
    context_shift: bool,
    speculate: bool,
    **sampling: Any,
) -> engine.GenerationOptions:
    """Return generation options from the command line's.

    Raises:
        UserError: a value is out of bounds, or two exclude each other.
    """
    if json_schema is not None and regex is not None:
        raise UserError("--json-schema and --regex exclude each other; give one")
    constraint = None
    if json_schema is not None:
        constraint = engine.json_schema(json_schema)
    elif regex is not None:
        constraint = engine.regex(regex)
    return engine.GenerationOptions(
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        sampling=engine.Sampling(**sampling),
        logprobs=logprobs,
        context_shift=context_shift,
        speculate=speculate,
        constraint=constraint,
    )


class Interruption:
    """Whether Ctrl-C was pressed since an answer began; pressed twice, it ends the program."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def press(self, *_: object) -> None:
        """Take note of Ctrl-C."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def ctrl_c_stops_the_answer() -> Iterator[Interruption]:
    """Turn Ctrl-C into an answer's early end while the body runs."""
    interruption = Interruption()
    before = signal.signal(signal.SIGINT, interruption.press)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


def generate(
    model: engine.LanguageModel,
    prompt: str,
    chosen: engine.GenerationOptions,
    prompt_cache: Path | None,
    images: Sequence[Path] = (),
) -> None:
    """Write the continuation of ``prompt`` to standard output as it arrives, and why it ended.

    With images the prompt is a question, laid out as a conversation: models that see learnt from those.

    Raises:
        UserError: the model, the prompt or an image cannot be used so.
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    if images and prompt_cache is not None:
        raise UserError("--prompt-cache keeps prompts of text only; leave it or --image out")
    if prompt_cache is not None and prompt_cache.exists():
        model.cache.load(prompt_cache, model.identity)
    finish = None
    with ctrl_c_stops_the_answer() as interrupted:
        if images:
            question = {"role": "user", "content": text, "images": images}
            events = model.chat([question], chosen, interrupted=interrupted)
        else:
            events = model.generate(text, chosen, interrupted=interrupted)
        for event in events:
            if chosen.logprobs is not None:
                print(json.dumps(as_json(model, event), ensure_ascii=False))
            else:
                print(shown(event.text), end="", flush=True)
            finish = event.finish
    if chosen.logprobs is None:
        print()
    if note := FINISH_NOTES.get(finish or ""):
        print(f"[{note}]", file=sys.stderr)
    if prompt_cache is not None:
        model.cache.truncate(min(model.cache.position, len(model.tokenizer.encode(text))))
        model.cache.save(prompt_cache, model.identity)


def shown(text: str) -> str:
    """Return text as it may go to a terminal: a model must not move the cursor or rename the window.

    Where standard output is no terminal the text goes through as it is.
    """
    if not sys.stdout.isatty():
        return text
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) != "Cc"
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


FINISH_NOTES = {
    "length": "stopped at --max-tokens",
    "context": "the context is full; --context-shift goes on",
    "interrupted": "stopped",
}


def as_json(model: engine.LanguageModel, event: engine.Event) -> dict[str, Any]:
    """Return one token with its alternatives as plain values."""

    def spelt(token: int) -> str:
        return model.tokenizer.token_bytes(token).decode("utf-8", errors="replace")

    return {
        "token": event.token,
        "text": None if event.token is None else spelt(event.token),
        "logprob": event.logprob,
        "top": [{"token": a.token, "text": spelt(a.token), "logprob": a.logprob} for a in event.alternatives],
        "finish": event.finish,
    }
