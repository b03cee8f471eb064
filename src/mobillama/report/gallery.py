"""A gallery: what a model saw, was asked and said, as one HTML file that loads nothing else."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mobillama.core import atomic
from mobillama.core.records import now

from .page import asset, template


@dataclass(frozen=True)
class Picture:
    """One answer.

    Attributes:
        image: what the model saw, as a PNG or JPEG file's content.
        map: how much each pixel weighed in the answer, as a PNG to lay over it; None where it is not known.
        part: the type of question.
    """

    image: bytes
    question: str
    answer: str
    gold: str
    right: bool
    part: str
    map: bytes | None = None

    @property
    def image_uri(self) -> str:
        """The image as a link that needs no file."""
        return data_uri(self.image)

    @property
    def map_uri(self) -> str | None:
        """The map as a link that needs no file."""
        return None if self.map is None else data_uri(self.map)


@dataclass(frozen=True)
class Gallery:
    """What the page shows.

    Attributes:
        columns, rows: a table of scores: a header, and rows of words and figures.
    """

    model: str
    benchmark: str
    score: float
    questions: int
    pictures: Sequence[Picture]
    columns: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[str]]] = field(default_factory=tuple)


def write(gallery: Gallery, out: Path) -> Path:
    """Write the page and return its path."""
    style = asset("templates/style.css") + asset("templates/gallery.css")
    page = template("gallery.html.j2").render(gallery=gallery, style=style, made_at=now())
    atomic.write_text(out, page)
    return out


def data_uri(content: bytes) -> str:
    """Return a PNG or JPEG file's content as a data URI."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
