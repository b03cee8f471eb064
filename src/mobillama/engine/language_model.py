"""A language model as its users meet it: text in, events out, whatever computes the logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from . import template
from .generation import Event, GenerationOptions, generate
from .prefix import PrefixCache, never
from .session import Session
from .template import Message
from .tokenizer import Tokenizer

# For models without a chat template: base models continue a dialogue they recognise as one.
PLAIN_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")


@dataclass
class LanguageModel:
    """A model, its tokenizer and its chat template.

    Attributes:
        open_session: gives a fresh session on the weights.
        chat_template: the model's Jinja2 template; None uses a plain ``User:``/``Assistant:`` layout.
        metadata: what the model's file says about itself.
        identity: names these very weights, for caches on disk; empty if unknown.
    """

    name: str
    tokenizer: Tokenizer
    open_session: Callable[[], Session]
    chat_template: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    identity: str = ""

    @cached_property
    def cache(self) -> PrefixCache:
        """The session that answers use one after another, with the prompt it remembers."""
        return PrefixCache(self.open_session())

    def session(self) -> Session:
        """Return a fresh session on the same weights."""
        return self.open_session()

    def generate(
        self,
        prompt: str | Sequence[int],
        options: GenerationOptions | None = None,
        *,
        cache: PrefixCache | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Iterator[Event]:
        """Continue ``prompt`` (text or token ids); yield an event for each token.

        Arguments:
            cache: a session of one's own, for several answers at a time; the model's own otherwise.

        Raises:
            UserError: the prompt does not fit, or the options cannot be met.
        """
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return generate(
            cache or self.cache, self.tokenizer, tokens, options or GenerationOptions(), interrupted
        )

    def complete(self, prompt: str, *, max_tokens: int, options: GenerationOptions | None = None) -> str:
        """Return the text that continues ``prompt``, at most ``max_tokens`` long."""
        options = replace(options or GenerationOptions(), max_tokens=max_tokens)
        return "".join(event.text for event in self.generate(prompt, options))

    def chat(
        self,
        messages: Sequence[Message],
        options: GenerationOptions | None = None,
        *,
        cache: PrefixCache | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Iterator[Event]:
        """Answer the last of ``messages``; yield an event for each token.

        Raises:
            UserError: the conversation does not fit, or the template refuses it.
        """
        options = options or GenerationOptions()
        if self.chat_template is None:
            options = replace(options, stop=(*options.stop, *PLAIN_STOPS))
        prompt = self.chat_prompt(messages)
        return generate(cache or self.cache, self.tokenizer, prompt, options, interrupted)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to where the answer begins.

        Raises:
            UserError: the template cannot be rendered with these messages.
        """
        if self.chat_template is None:
            lines = [f"{message['role'].capitalize()}: {message['content']}\n" for message in messages]
            return self.tokenizer.encode("".join(lines) + "Assistant:")
        text = template.render(
            self.chat_template,
            messages,
            bos_token=self._spelling(self.tokenizer.begin_token),
            eos_token=self._spelling(min(self.tokenizer.end_tokens, default=None)),
        )
        # Templates write the beginning token themselves.
        return self.tokenizer.encode(text, special=False)

    def _spelling(self, token: int | None) -> str:
        return "" if token is None else self.tokenizer.backend.id_to_token(token) or ""
