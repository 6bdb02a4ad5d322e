"""What the parsers of generated text hand on, and how far they may hand it on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A fragment of the `index`-th tool call; `id` and `name` come with its first piece only."""

    index: int
    id: str = ""
    name: str = ""
    arguments_json: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that the reader may see: of the answer, of the reasoning, or of a tool call."""

    text: str = ""
    reasoning: str = ""
    tool_call: ToolCallPiece | None = None


def unsafe_suffix(text: str, tag: str) -> int:
    """Length of the longest proper beginning of `tag` that `text` ends with.

    So much must be held back: the next characters decide whether it is the tag.
    """
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def split_trailing_space(text: str) -> tuple[str, str]:
    """`text` without its trailing white space, and that white space."""
    kept = text.rstrip()
    return kept, text[len(kept) :]


def first_tag(text: str, tags: tuple[str, ...], start: int = 0) -> tuple[int, str]:
    """Place and name of the first of `tags` in `text` at or after `start`; (-1, "") if none.

    Of two that begin together, the longer.
    """
    found = [(place, -len(tag), tag) for tag in tags if (place := text.find(tag, start)) >= 0]
    if not found:
        return -1, ""
    place, _, tag = min(found)
    return place, tag


class TagFinder:
    """Hands text on up to the first of `tags`; white space in front of a tag is dropped.

    Held back is what may become a tag, and the white space at the end: in parts, so that a flood
    of it costs linear time.
    """

    def __init__(self, *tags: str) -> None:
        self._tags = tags
        self._space: list[str] = []
        self._partial = ""

    def feed(self, text: str) -> tuple[str, str, str]:
        """Text that is certain; the tag behind it, or ""; what follows the tag."""
        text = self._partial + text
        place, tag = first_tag(text, self._tags)
        if tag:
            before = self._kept(text[:place])
            self._space, self._partial = [], ""
            return before, tag, text[place + len(tag) :]
        safe = len(text) - max(unsafe_suffix(text, tag) for tag in self._tags)
        self._partial = text[safe:]
        return self._kept(text[:safe]), "", ""

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held = "".join(self._space) + self._partial
        self._space, self._partial = [], ""
        return held

    def _kept(self, text: str) -> str:
        kept, space = split_trailing_space(text)
        if kept:
            kept = "".join(self._space) + kept
            self._space = []
        if space:
            self._space.append(space)
        return kept
