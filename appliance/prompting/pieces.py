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
