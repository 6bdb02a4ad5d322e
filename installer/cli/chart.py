"""Bars in the terminal, to an eighth of a character."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"


def bar(value: int, most: int, width: int) -> str:
    """A bar of up to `width` characters; what is not nothing shows."""
    eighths = (8 * width * value) // most if most else 0
    if value:
        eighths = max(1, eighths)
    whole, part = divmod(eighths, 8)
    return _FULL * whole + (_EIGHTHS[part] if part else "")


def bars(rows: Sequence[tuple[str, int, str]], width: int) -> list[str]:
    """A line for each (label, value, text of the value), at most `width` characters wide."""
    if not rows:
        return []
    labels = max(len(label) for label, _, _ in rows)
    texts = max(len(text) for _, _, text in rows)
    most = max(value for _, value, _ in rows)
    room = max(8, width - labels - texts - 4)
    return [
        f"{label:<{labels}}  {bar(value, most, room):<{room}}  {text:>{texts}}"
        for label, value, text in rows
    ]
