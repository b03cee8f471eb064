"""A language model as its users meet it: text in, events out, whatever computes the logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from mobillama.core.errors import UserError

from . import template
from .generation import Event, GenerationOptions, generate
from .images import Eye, marked, marked_messages, placed
from .prefix import PrefixCache, never
from .session import Embeddings, Session
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
        image_token: stands in a prompt where an image belongs; None in a model of text only.
        eye: shows images to the model; None where only its language part is here.
    """

    name: str
    tokenizer: Tokenizer
    open_session: Callable[[], Session]
    chat_template: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    identity: str = ""
    image_token: int | None = None
    eye: Eye | None = None

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
        images: Sequence[Any] = (),
        cache: PrefixCache | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Iterator[Event]:
        """Continue ``prompt`` (text or token ids); yield an event for each token.

        Arguments:
            images: what the eye takes, or rows that `look` gave; each at its marker, or before the text.
            cache: a session of one's own, for several answers at a time; the model's own otherwise.

        Raises:
            UserError: the prompt does not fit, or the options cannot be met.
        """
        cache = cache or self.cache
        rows = [self.look(image) for image in images]
        if isinstance(prompt, str):
            if self.image_token is not None:
                prompt = marked(prompt, len(rows), self._spelling(self.image_token))
            prompt = self.tokenizer.encode(prompt)
        tokens = self._placed(prompt, rows, cache)
        return generate(cache, self.tokenizer, tokens, options or GenerationOptions(), interrupted)

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

        Arguments:
            messages: each with ``role`` and ``content``, and ``images`` where it has some (see `generate`).

        Raises:
            UserError: the conversation does not fit, or the template refuses it.
        """
        options = options or GenerationOptions()
        if self.chat_template is None:
            options = replace(options, stop=(*options.stop, *PLAIN_STOPS))
        cache = cache or self.cache
        rows = [self.look(image) for message in messages for image in message.get("images", ())]
        prompt = self._placed(self.chat_prompt(messages), rows, cache)
        return generate(cache, self.tokenizer, prompt, options, interrupted)

    def look(self, image: Any) -> Embeddings:
        """Return an image as rows of embeddings, to be given in its place as often as wanted.

        Raises:
            UserError: the model has no eye, or the image cannot be read.
        """
        if isinstance(image, np.ndarray):
            return cast(Embeddings, image)
        if self.image_token is None:
            raise UserError(f"{self.name}: a model of text only; leave the image out")
        if self.eye is None:
            raise UserError(f"{self.name}: its vision half is not here; put it beside the language half")
        return self.eye(image)

    def _placed(self, tokens: Sequence[int], rows: list[Embeddings], cache: PrefixCache) -> Sequence[int]:
        if self.image_token is None:
            return tokens
        return placed(tokens, self.image_token, rows, cache)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to where the answer begins; one for each image.

        Raises:
            UserError: the template cannot be rendered with these messages.
        """
        if self.image_token is not None:
            messages = marked_messages(messages, self._spelling(self.image_token))
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
