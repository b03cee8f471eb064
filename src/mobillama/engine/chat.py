"""Conversations: messages to a prompt, by the model's chat template or a plain one, and their course."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .generation import Event, GenerationOptions
from .language_model import LanguageModel
from .prefix import never
from .template import Message


@dataclass
class Conversation:
    """What was said so far; an answer joins it when it is complete or interrupted.

    Attributes:
        messages: each with ``role`` (system, user, assistant) and ``content``, and with ``images`` where
            it shows some; oldest first.
    """

    model: LanguageModel
    options: GenerationOptions = field(default_factory=GenerationOptions)
    messages: list[Message] = field(default_factory=list[Message])

    @classmethod
    def begin(
        cls, model: LanguageModel, options: GenerationOptions, *, system: str | None = None
    ) -> "Conversation":
        """Return a new conversation, with a system message if there is one to give."""
        messages: Sequence[Message] = [{"role": "system", "content": system}] if system else []
        return cls(model, options, list(messages))

    def ask(
        self, question: str, interrupted: Callable[[], bool] = never, *, images: Sequence[Any] = ()
    ) -> Iterator[Event]:
        """Yield the answer's events. When it fails, the question is forgotten as well.

        Arguments:
            images: what the model's eye takes; each is looked at once and stays in the conversation.

        Raises:
            UserError: the conversation no longer fits into the context, or an image cannot be read.
        """
        before = list(self.messages)
        rows = [self.model.look(image) for image in images]
        message: Message = {"role": "user", "content": question}
        self.messages.append({**message, "images": rows} if rows else message)
        answer: list[str] = []
        try:
            for event in self.model.chat(self.messages, self.options, interrupted=interrupted):
                answer.append(event.text)
                yield event
        except BaseException:
            self.messages = before
            raise
        self.messages.append({"role": "assistant", "content": "".join(answer).strip()})

    def forget(self) -> None:
        """Begin anew; the system message stays."""
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]
