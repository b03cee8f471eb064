"""Conversations about images as tokens: the template, the markers, and which tokens are answers. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from mobillama.core.errors import UserError
from mobillama.engine.template import render

from .images import ImageRules

Message = Mapping[str, Any]
Ids = NDArray[np.int64]

MARKER = "<image>"
# Stand for special tokens while a template is rendered, so that nobody's text can spell one.
BEGIN, END, IMAGE = "\ue000", "\ue001", "\ue002"
FIRST_CONTENT, MOST_MESSAGES = 0xE100, 4096
ROLES = ("system", "user", "assistant")

TEMPLATES = {
    # Source: Liu et al. 2023 (LLaVA-1.5), which took Vicuna's.
    "vicuna": (
        "{{ bos_token }}{% if messages[0].role != 'system' %}A chat between a curious user and an artificial "
        "intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's "
        "questions.{% endif %}{% for message in messages %}{% if message.role == 'user' %} USER: "
        "{{ message.content }} ASSISTANT:{% elif message.role == 'assistant' %} {{ message.content }}"
        "{{ eos_token }}{% else %}{{ message.content }}{% endif %}{% endfor %}"
    ),
    "plain": (
        "{{ bos_token }}{% for message in messages %}{{ message.content }}"
        "{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
    ),
    # What LLaVA aligns a projector on: the image, then its caption, whatever was asked.
    "caption": (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<image>"
        "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}


@dataclass(frozen=True)
class Spelled:
    """A conversation as tokens, each image one token yet."""

    ids: Ids
    answers: NDArray[np.bool_]
    """Which of ``ids`` the assistant wrote, the end of each answer included."""


@dataclass(frozen=True)
class Conversation:
    """How messages with images become a model's tokens.

    Arguments:
        definition: the text of a ``tokenizer.json`` that has ``<image>`` as a special token.
        template: a Jinja2 chat template.
        end_token: what begins a text and ends an answer.
        tokens: of one square of an image.
    """

    definition: str
    template: str
    end_token: str
    tokens: int

    @classmethod
    def read(cls, directory: Path) -> "Conversation":
        """Return the way of speaking of a model folder.

        Raises:
            UserError: it is a model of text only, or a file of it cannot be read.
        """
        tokens = ImageRules.read(directory).tokens
        try:
            definition = (directory / "tokenizer.json").read_text(encoding="utf-8")
            settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
            return cls(definition, settings["chat_template"], settings["eos_token"], tokens)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{directory}: tokenizer or chat template cannot be read ({error!r})") from None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; text that spells a special token is encoded as plain text."""
        tokenizer = Tokenizer.from_str(self.definition)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def special(self) -> dict[str, int]:
        """The ids that the stand-ins mean."""
        names = {BEGIN: self.end_token, END: self.end_token, IMAGE: MARKER}
        found: dict[str, int] = {}
        for sign, name in names.items():
            if (token := self.tokenizer.token_to_id(name)) is None:
                raise UserError(f"tokenizer.json: has no token {name}; this model cannot see")
            found[sign] = token
        return found

    @property
    def image_id(self) -> int:
        """The token whose place an image's features take."""
        return self.special[IMAGE]

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self.special[END]

    def prompt(self, messages: Sequence[Message], tiles: Sequence[int] = ()) -> list[int]:
        """Return the tokens up to where the model's answer begins.

        Arguments:
            messages: each with ``role`` and ``content``, one ``<image>`` in the contents for each image.
            tiles: squares that each image is shown as (`ImageRules.squares_of`).

        Raises:
            UserError: the markers are not as many as the images, or a message cannot be used.
        """
        spelled = self.spell(messages, images=len(tiles))
        return expand(spelled, self.image_id, np.asarray(tiles, dtype=np.int64) * self.tokens).ids.tolist()

    def spell(self, messages: Sequence[Message], *, images: int) -> Spelled:
        """Return a conversation as tokens.

        Raises:
            UserError: as ``prompt``.
        """
        require_messages(messages, images)
        pieces: list[tuple[str, bool]] = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = self.text(messages[:number]), self.text(messages[: number + 1])
                pieces += [(before[len(done) :], False), (after[len(before) :], True)]
                done = after
        pieces.append((self.text(messages)[len(done) :], False))
        spelled = [(self.encode(text), answer) for text, answer in pieces if text]
        ids = [token for tokens, _ in spelled for token in tokens]
        answers = [answer for tokens, answer in spelled for _ in tokens]
        return Spelled(np.asarray(ids, dtype=np.int64), np.asarray(answers, dtype=np.bool_))

    def text(self, messages: Sequence[Message]) -> str:
        """Return messages as the template lays them out, with stand-ins for special tokens."""
        layout = self.layout(tuple(message["role"] for message in messages))
        contents = {FIRST_CONTENT + n: message["content"] for n, message in enumerate(messages)}
        return layout.translate(contents).replace(MARKER, IMAGE)

    @lru_cache(maxsize=256)  # noqa: B019 - few conversations, for as long as the process
    def layout(self, roles: tuple[str, ...]) -> str:
        """Return how the template lays out messages of these roles; U+E100 + n stands for the nth content.

        Once for all conversations of one form: the sandbox takes a millisecond to read a template.
        """
        messages = [{"role": role, "content": chr(FIRST_CONTENT + n)} for n, role in enumerate(roles)]
        return render(self.template, messages, bos_token=BEGIN, eos_token=END)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a laid-out text."""
        ids: list[int] = []
        start = 0
        for place, sign in enumerate(text):
            if sign in self.special:
                ids += self.plain(text[start:place])
                ids.append(self.special[sign])
                start = place + 1
        return ids + self.plain(text[start:])

    def plain(self, text: str) -> list[int]:
        """Return the ids of text without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids if text else []


def expand(spelled: Spelled, image_id: int, tokens: NDArray[np.int64]) -> Spelled:
    """Return a conversation in which each image is as many tokens as the model sees of it.

    Arguments:
        tokens: of each image, (images,).
    """
    counts = np.ones(len(spelled.ids), dtype=np.int64)
    counts[spelled.ids == image_id] = tokens
    return Spelled(np.repeat(spelled.ids, counts), np.repeat(spelled.answers, counts))


def require_messages(messages: Sequence[Message], images: int) -> None:
    """Stop where messages cannot be spelled, or do not show where each image stands."""
    if not 0 < len(messages) <= MOST_MESSAGES:
        raise UserError(f"a conversation of {len(messages)} messages; give 1 to {MOST_MESSAGES}")
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"a message with role {role!r}: give a role of {', '.join(ROLES)}, and text")
        if any(sign in content for sign in (BEGIN, END, IMAGE)):
            raise UserError("a message holds one of U+E000 to U+E002, which stand for tokens here; remove it")
        if role != "user" and MARKER in content:
            raise UserError(f"a message of the {role} holds {MARKER}; only the user shows images")
    markers = sum(message["content"].count(MARKER) for message in messages)
    if markers != images:
        raise UserError(f"{markers} {MARKER} markers for {images} images; write one where each image belongs")


def with_markers(text: str, images: int) -> str:
    """Return text with a marker for each image in front, unless it has markers already."""
    return text if MARKER in text else "".join(f"{MARKER}\n" for _ in range(images)) + text


def with_image_token(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that knows ``<image>``: a new last token, unless it had one."""
    if tokenizer.token_to_id(MARKER) is None:
        tokenizer.add_special_tokens([AddedToken(MARKER, special=True, normalized=False)])
    return tokenizer
