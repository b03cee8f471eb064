"""Tokens to text as they arrive: whole characters only, and stop strings across token borders."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Utf8Stream:
    """Turns bytes that arrive in pieces into text; an unfinished character waits for its rest."""

    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace"), repr=False
    )

    def push(self, piece: bytes) -> str:
        """Return the text that ``piece`` completes."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """Return what is left; bytes that never became a character give U+FFFD."""
        return self._decoder.decode(b"", final=True)


@dataclass
class StopFilter:
    """Passes text on until a stop string is complete, however the text is cut into pieces.

    Of several stop strings the one that is complete first wins, and among those the longest.
    Text that may yet turn out to begin a stop string is held back.
    """

    stops: Sequence[str]
    stopped_by: str | None = None
    _held: str = ""

    def push(self, piece: str) -> str:
        """Return the text now known to come before any stop string."""
        if self.stopped_by is not None:
            return ""
        text = self._held + piece
        found = [
            (start + len(stop), -len(stop), stop)
            for stop in self.stops
            if stop and (start := text.find(stop)) >= 0
        ]
        if found:
            end, _, self.stopped_by = min(found)
            self._held = ""
            return text[: end - len(self.stopped_by)]
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back: the text ended before the stop string was complete."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
