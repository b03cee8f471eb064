"""Images in a prompt: where their markers stand, and the rows of embeddings that take their place."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from mobillama.core.errors import UserError

from .prefix import PrefixCache
from .session import Embeddings
from .template import Message


class Eye(Protocol):
    """What shows images to a language model."""

    def __call__(self, image: Any, /) -> Embeddings:
        """Return an image as input embeddings (tokens, hidden_size).

        Raises:
            UserError: it cannot be read.
        """
        ...


def marked(text: str, images: int, marker: str) -> str:
    """Return ``text`` with one ``marker`` an image: its own, or before it where it has none.

    Raises:
        UserError: it has another number of them.
    """
    found = text.count(marker)
    if found == images:
        return text
    if found == 0:
        return f"{marker}\n" * images + text
    raise UserError(
        f"{counted(found, f'{marker} marker')} for {counted(images, 'image')}; "
        "write one where each image belongs, or none at all"
    )


def marked_messages(messages: Sequence[Message], marker: str) -> list[Message]:
    """Return messages with the markers of their own ``images``, which are left out of them.

    Raises:
        UserError: a message has more or fewer markers than images.
    """
    shown: list[Message] = []
    for message in messages:
        content = marked(message["content"], len(message.get("images", ())), marker)
        rest: Mapping[str, Any] = {key: value for key, value in message.items() if key != "images"}
        shown.append({**rest, "content": content})
    return shown


def placed(
    tokens: Sequence[int], image_token: int, rows: Sequence[Embeddings], cache: PrefixCache
) -> list[int]:
    """Return a prompt of ``cache`` in which each image token has become that image's rows.

    Raises:
        UserError: there are more or fewer image tokens than images.
    """
    found = sum(token == image_token for token in tokens)
    if found != len(rows):
        raise UserError(
            f"the prompt shows {counted(found, 'image')}, {len(rows)} given; the chat template loses them"
        )
    images: Iterator[Embeddings] = iter(rows)
    prompt: list[int] = []
    for token in tokens:
        prompt += cache.embed(next(images)) if token == image_token else [token]
    return prompt


def counted(number: int, what: str) -> str:
    """Return a number of things in words: 1 image, 2 images."""
    return f"{number} {what}" + ("" if number == 1 else "s")
